"""Sweeps and miss-ratio curves over traces of requests, in prefix and flat mode."""

from __future__ import annotations

from array import array
from functools import partial
from typing import TYPE_CHECKING

from kvlab.errors import InvalidArgumentError
from kvlab.sim import prefix
from kvlab.sim.columns import columns, hit_tokens
from kvlab.sim.costs import queue_ms, spread_of
from kvlab.sim.experiments.parallel import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvlab.sim.costs import CostModel
    from kvlab.sim.experiments.table import Row
    from kvlab.sim.trace import Trace

__all__ = ["ORACLES", "auto_rate", "curves", "latency", "oracle_hits", "row_of", "sizes_of", "sweep"]

ORACLES = ("belady", "belady_bypass")
"""They know the future; the better of them at a size is what others are compared with."""

_SAMPLE_BLOCKS = 20_000
"""Distinct blocks that a sampled curve keeps at least, if there are so many."""


def sizes_of(trace: Trace, texts: Iterable[str]) -> list[int | None]:
    """Capacities in blocks: `1000`, `5%` of the distinct blocks, `inf` for all.

    Raises:
        InvalidArgumentError: a size is none of these, or below one block.
    """
    sizes: list[int | None] = []
    for text in texts:
        sizes.append(_size(trace, text.strip()))
    return list(dict.fromkeys(sizes))


def _size(trace: Trace, text: str) -> int | None:
    if text == "inf":
        return None
    if text.endswith("%"):
        try:
            share = float(text[:-1])
        except ValueError:
            share = 0.0
        if 0 < share <= 100:
            return max(1, int(trace.unique_blocks * share / 100))
    elif text.isascii() and text.isdecimal() and int(text) >= 1:
        return int(text)
    raise InvalidArgumentError(
        f"a capacity of {text}: give blocks from 1 on, a share of the distinct blocks such as 5%, or inf"
    )


def oracle_hits(trace: Trace, capacity: int | None, mode: prefix.Mode) -> int:
    """Hits of the best policy that knows the future, at a size."""
    if capacity is None:
        return prefix.run(trace, capacity_blocks=None, mode=mode).hits
    return max(
        prefix.run(trace, policy=name, capacity_blocks=capacity, mode=mode).hits for name in ORACLES
    )


def row_of(trace: Trace, replay: prefix.Replay, best: int | None) -> Row:
    """A replay as a row, without what depends on the clock.

    Args:
        trace: What was replayed.
        replay: What was counted.
        best: Hits of the oracle at that size, if that is known.
    """
    row: Row = {"trace": trace.info.name, **replay.as_dict()}
    del row["seconds"], row["events_per_second"]
    if best is not None:
        row["oracle_hits"] = best
        row["percent_of_oracle"] = 100.0 * replay.hits / best if best else 100.0
    return row


def latency(
    trace: Trace, hits_by_request: array[int], costs: CostModel, servers: int
) -> dict[str, float]:
    """What the first tokens would take if everything found lay in L1, with queueing: estimated."""
    known = columns(trace)
    service = costs.ttft_ms(known.tokens, {"l1": hit_tokens(trace, hits_by_request)})
    waits = queue_ms(known.at_ms, service, servers)
    return {**spread_of(service + waits, "ttft"), **{"queue_mean_ms": float(waits.mean()) if len(waits) else 0.0}}


def sweep(
    trace: Trace,
    *,
    policies: Sequence[str],
    capacities: Sequence[int | None],
    mode: prefix.Mode = "prefix",
    costs: CostModel | None = None,
    servers: int = 1,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Row]:
    """Replays a trace under each policy at each size, beside the oracle.

    Args:
        trace: What to replay.
        policies: Of `kvlab.sim.prefix.policies(mode)`; oracles are added where they are missing.
        capacities: In blocks; None for a cache that holds all.
        mode: What a hit is.
        costs: For an estimate of the time to the first token.
        servers: How many requests that estimate serves at once.
        workers: Threads.
        progress: Called with the replays done, of `len(cells(...))`.

    Returns:
        A row a size and policy, sizes first.

    Raises:
        ConfigError: an unknown policy or mode.
        InvalidArgumentError: a capacity below 1, or a trace without blocks.
    """
    names = wanted(policies)
    cells = [
        partial(prefix.run, trace, policy=name, capacity_blocks=capacity, mode=mode)
        for capacity in capacities
        for name in names
    ]
    replays = run_all(cells, workers=workers, progress=progress)
    rows = []
    for start in range(0, len(replays), len(names)):
        group = replays[start : start + len(names)]
        best = max(replay.hits for replay in group if replay.policy in ORACLES)
        for replay in group:
            row = row_of(trace, replay, best)
            if costs is not None:
                row |= latency(trace, replay.hits_by_request, costs, servers)
            rows.append(row)
    return rows


def wanted(policies: Sequence[str]) -> list[str]:
    """The policies with the oracles behind them, each once."""
    return list(dict.fromkeys((*policies, *ORACLES)))


def auto_rate(trace: Trace) -> float:
    """The part of the blocks that a sampled curve replays, if nobody says."""
    return min(1.0, max(0.001, _SAMPLE_BLOCKS / max(1, trace.unique_blocks)))


def curves(
    trace: Trace,
    *,
    policies: Sequence[str],
    capacities: Sequence[int],
    mode: prefix.Mode = "prefix",
    rate: float | None = None,
    seeds: Sequence[int] = (0,),
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Row]:
    """Hit ratios at many sizes: `lru` exactly by stack distances, the rest from samples.

    Where the whole trace is the sample (`rate` = 1) the others are exact, too. A policy's percent of
    the oracle compares the two in the same sample.

    Args:
        trace: What to replay.
        policies: Of `kvlab.sim.prefix.policies(mode)`; oracles are added.
        capacities: In blocks, at least 1.
        mode: What a hit is.
        rate: The part of the blocks in a sample; by default enough for 20,000 of them.
        seeds: Which samples; one row each.
        workers: Threads.
        progress: Called with the curves done.

    Raises:
        ConfigError: an unknown policy or mode.
        InvalidArgumentError: a capacity, rate or number of workers out of range.
    """
    part = auto_rate(trace) if rate is None else rate
    draws = [0] if part == 1.0 else list(dict.fromkeys(seeds))
    sampled = wanted(policies)
    cells = [
        partial(
            prefix.sampled_curve, trace, capacities, policy=name, mode=mode, rate=part, seed=seed
        )
        for seed in draws
        for name in sampled
    ]
    found = run_all(cells, workers=workers, progress=progress)
    rows: list[Row] = []
    exact = prefix.lru_curve(trace, capacities, mode=mode) if "lru" in policies else None
    for draw, seed in enumerate(draws):
        ratios = dict(zip(sampled, found[draw * len(sampled) :], strict=False))
        for name in sampled:
            for at, capacity in enumerate(capacities):
                best = max(ratios[oracle][at] for oracle in ORACLES)
                ratio, known = ratios[name][at], part == 1.0
                if name == "lru" and exact is not None:
                    ratio, known = exact[at] / max(1, trace.block_refs), True
                rows.append(
                    {
                        "trace": trace.info.name,
                        "mode": mode,
                        "policy": name,
                        "method": "exact" if known else f"sample of {part:.3g}",
                        "capacity_blocks": capacity,
                        "seed": seed,
                        "hit_ratio": ratio,
                        "percent_of_oracle": 100.0 * ratios[name][at] / best if best else 100.0,
                    }
                )
    return rows
