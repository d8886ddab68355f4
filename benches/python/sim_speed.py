"""Block events a second of `kvlab.sim` in prefix mode: LRU on one core, parsing excluded.

`python benches/python/sim_speed.py`, with `KVLAB_TRACES` set to the folder of the traces. Sizes take turns,
so that a busy minute hits all of them; beside the clock on the wall the thread's own time is shown, which leaves
out what others took of the core (not what they took of its caches).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from kvlab.sim import prefix
from kvlab.sim.trace import load

SIZES = (1_000, 10_000, None)


def main() -> None:
    """Prints a table, or one JSON object with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", default="mooncake_conversation")
    parser.add_argument("--format", default="mooncake")
    parser.add_argument("--policy", default="lru")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    trace = load(options.trace, options.format)
    wall: dict[int | None, list[float]] = {size: [] for size in SIZES}
    own: dict[int | None, list[float]] = {size: [] for size in SIZES}
    # The first round warms up.
    for turn in range(options.rounds + 1):
        for size in SIZES:
            start = time.thread_time()
            run = prefix.run(trace, policy=options.policy, capacity_blocks=size)
            spent = time.thread_time() - start
            if turn:
                wall[size].append(run.events_per_second / 1e6)
                own[size].append(run.block_refs / spent / 1e6)
    results = {
        "inf" if size is None else str(size): {
            name: {
                "median": statistics.median(values[size]),
                "least": min(values[size]),
                "most": max(values[size]),
            }
            for name, values in (("wall", wall), ("own", own))
        }
        for size in SIZES
    }
    if options.json:
        print(
            json.dumps({"million_events_per_second": results, "rounds": options.rounds}, indent=2)
        )
        return
    for name, columns in results.items():
        cells = [
            f"{clock} {found['median']:.1f} ({found['least']:.1f} to {found['most']:.1f})"
            for clock, found in columns.items()
        ]
        print(f"{name:>6} blocks: million events/s, {', '.join(cells)}")


if __name__ == "__main__":
    main()
