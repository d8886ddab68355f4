"""What `kvlab sim fleet` needs of this machine, and one prediction of it held against a measurement.

A model's prompts lie on a Redis server of this machine. From prompts of up to 1,024 tokens come the ingredients: what
a forward costs, what a look-up and a read of L4 cost, and how far reads hide behind computing (all as the store learns
them). From these the simulator predicts the first token behind a prefix of twice that length, fetched and computed;
then both are measured, in turns, and the errors are written down beside the ingredients.

    python benches/python/fleet_costs.py --out artifacts/fleet/measured.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fleet_prediction import BLOCK, NEW, predicted
from report import Report

import kvlab
from kvlab import hf
from kvlab.hf.layout import read_layout
from kvlab.remote.server import local_server

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = (256, 512, 1024)


class Rig:
    """Two stores on one server: one that writes, and one with nothing of its own."""

    def __init__(self, model: Any, writer: kvlab.Store, reader: kvlab.Store) -> None:
        self.writer, self.reader = writer, reader
        self._writing = hf.attach(model, writer, restore="never")
        self._restoring = hf.attach(model, reader, restore="always")
        self._computing = hf.attach(model, reader, restore="never")

    def publish(self, ids: Tensor) -> None:
        """Brings a prompt to the server."""
        self._writing.prefill(ids)
        self.writer.flush()

    def restore(self, ids: Tensor) -> Any:
        """The report of a request that finds its prefix on the server only."""
        self.reader.clear()
        report = self._restoring.prefill(ids, keep=False).report
        if report.hit_tokens.l4 != report.prompt_tokens - NEW:
            raise RuntimeError(f"not all of the prefix came from the server: {report}")
        return report

    def compute(self, ids: Tensor) -> Any:
        """The report of a request that computes all."""
        self.reader.clear()
        return self._computing.prefill(ids, keep=False).report

    def looked_up(self) -> tuple[int, int]:
        """Look-ups of the reader so far, and their microseconds."""
        stats: Any = self.reader.stats()["remote"]
        return stats["lookups"], stats["lookup_micros"]


def ingredients(rig: Rig, prompts: dict[int, Tensor], rounds: int) -> dict[str, float]:
    """What forwards, look-ups and reads cost, from the shorter prompts."""
    waits: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for round_ in range(rounds + 1):
        for length in LENGTHS:
            rig.compute(prompts[length])
            before = rig.looked_up()
            rig.restore(prompts[length])
            after = rig.looked_up()
            if round_ and after[0] > before[0]:
                waits[length].append((after[1] - before[1]) / (after[0] - before[0]) / 1e6)
    costs: Any = rig.reader.costs()
    (forward,) = costs["prefill"].values()
    reads = [cost for tier, cost in costs["read"].items() if tier.startswith("l4")]
    read = next(cost for cost in reads if cost["learnt"])
    medians = {length: statistics.median(times) for length, times in waits.items()}
    short, long = LENGTHS[0], LENGTHS[-1]
    key = max(0.0, (medians[long] - medians[short]) / ((long - short) / BLOCK))
    return {
        "forward_seconds": forward["fixed_ms"] / 1e3,
        "forward_seconds_per_token": 1 / forward["tokens_per_s"],
        "forward_seconds_per_token_and_context": forward["us_per_1k_context"] / 1e9,
        "overlap": costs["overlap"],
        "read_seconds": read["latency_us"] / 1e6,
        "read_bytes_per_second": read["gb_per_s"] * 1e9,
        "lookup_seconds": max(0.0, medians[short] - key * short / BLOCK),
        "lookup_seconds_per_block": key,
    }


def summary(times: list[float]) -> dict[str, float]:
    """Seconds: the median, the least and the most."""
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def main() -> None:
    """Measures, predicts, measures again, compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--tokens", type=int, default=2048, help="of the prefix that is predicted")
    parser.add_argument("--model", default="smollm2-135m", help="name, path or hub id")
    parser.add_argument("--out", type=Path, help="where to write what was measured, as JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    report = Report("What a simulated fleet needs of this machine", {**vars(arguments), "out": ""})
    model, _ = hf.load(arguments.model)
    token_bytes = read_layout(model).bytes_per_token
    # Drawn: none begins like another, and what tokens say does not change what they cost.
    draw = torch.Generator().manual_seed(0)
    prompts = {
        length: torch.randint(3, model.config.vocab_size, (1, length + NEW), generator=draw)
        for length in (*LENGTHS, arguments.tokens)
    }
    times: dict[str, list[float]] = {"from_l4": [], "computed": []}
    with (
        local_server() as server,
        kvlab.Store.open(l1="512MiB", l2=0, remote=server.url, remote_timeout=30.0) as writer,
        kvlab.Store.open(l1="512MiB", l2=0, remote=server.url, remote_timeout=30.0) as reader,
    ):
        rig = Rig(model, writer, reader)
        for length, ids in prompts.items():
            rig.publish(ids[:, :length])
        measured = ingredients(rig, prompts, arguments.rounds)
        expected = predicted(measured, token_bytes, arguments.tokens)
        for round_ in range(arguments.rounds + 1):
            for arm, work in (("from_l4", rig.restore), ("computed", rig.compute)):
                took = work(prompts[arguments.tokens]).ttft_ms / 1e3
                if round_:
                    times[arm].append(took)
    found = {arm: summary(samples) for arm, samples in times.items()}
    ratios = [slow / fast for slow, fast in zip(times["computed"], times["from_l4"], strict=True)]
    result = {
        "model": arguments.model,
        "token_bytes": token_bytes,
        "prefix_tokens": arguments.tokens,
        "new_tokens": NEW,
        "rounds": arguments.rounds,
        "ingredients": measured,
        "predicted_seconds": expected,
        "measured_seconds": found,
        "computed_over_from_l4": summary(ratios),
        "error": {arm: expected[arm] / found[arm]["median"] - 1 for arm in found},
    }
    for arm, samples in times.items():
        report.add(f"first token, {arm}", [[1e3 * each for each in samples]], unit="ms")
        report.add(f"the same, predicted, {arm}", [[1e3 * expected[arm]]], unit="ms")
    for name, value in measured.items():
        report.add(name, [[value]], unit="")
    report.remarks.append(
        f"Ingredients are from prefixes of {LENGTHS[0]} to {LENGTHS[-1]} tokens; what is predicted is longer."
    )
    report.print(as_json=arguments.json)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
