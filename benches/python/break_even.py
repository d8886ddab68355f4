"""Time to the first token where a disk is slow: restoring all, restoring nothing, and deciding by the learnt costs.

A prefix of a real model lies on L3, whose reads are held back to several rates (`l3_read_limit`, a bandwidth limit
under the code that is measured). At each rate the three arms take turns on one store; the costs are learnt in the first
requests, which are not counted. Writes a picture if matplotlib is there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from report import Report

import kvlab
from kvlab import hf
from kvlab.demo.prompt import prompt

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["always", "auto", "never"]
ARMS: tuple[Mode, ...] = ("always", "auto", "never")
COLOURS = {"always": "#4c72b0", "auto": "#55a868", "never": "#c44e52"}
WARM_UP = 3
"""Requests that restore everything before the rule decides: what it takes to know a disk."""


def measure(
    model: Any, ids: Tensor, path: Path, limit: int | None, rounds: int
) -> tuple[dict[Mode, list[float]], list[Any], dict[str, Any]]:
    """Milliseconds to the first token by arm, the reports of `auto`, and the learnt costs, at one rate."""
    times: dict[Mode, list[float]] = {arm: [] for arm in ARMS}
    reports: list[Any] = []
    with kvlab.Store.open(path, l1="1GiB", l2=0, l3="4GiB", l3_read_limit=limit) as store:
        sessions = {arm: hf.attach(model, store, restore=arm) for arm in ARMS}
        if store.stats()["l3"]["runs"] == 0:
            sessions["never"].prefill(ids)
        store.evict()
        for _ in range(WARM_UP):
            store.drop_page_cache()
            sessions["always"].prefill(ids, keep=False)
        for round_ in range(rounds):
            # The order turns, so that no arm always follows the same one.
            for arm in ARMS[round_ % 3 :] + ARMS[: round_ % 3]:
                store.drop_page_cache()
                report = sessions[arm].prefill(ids, keep=False).report
                times[arm].append(report.ttft_ms)
                if arm == "auto":
                    reports.append(report)
        costs: dict[str, Any] = {**store.costs()}
        for session in sessions.values():
            session.close()
    return times, reports, costs


def picture(results: list[tuple[str, dict[Mode, list[float]]]], title: str, path: Path) -> bool:
    """Draws TTFT against the rate; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvlab"
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4))
    places = range(len(results))
    for shift, arm in zip((-0.06, 0.0, 0.06), ARMS, strict=True):
        medians = [statistics.median(times[arm]) for _, times in results]
        errors = [
            [middle - min(times[arm]) for middle, (_, times) in zip(medians, results, strict=True)],
            [max(times[arm]) - middle for middle, (_, times) in zip(medians, results, strict=True)],
        ]
        axis.errorbar(
            [place + shift for place in places],
            medians,
            yerr=errors,
            label=f'restore="{arm}"',
            color=COLOURS[arm],
            marker="o",
            capsize=3,
        )
    axis.set_yscale("log")
    axis.set_xticks(list(places), [name for name, _ in results])
    axis.set_xlabel("L3 read limit")
    axis.set_ylabel("time to first token, ms (log)")
    axis.set_title(title)
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="name, path or hub id")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tokens", type=int, default=512, help="prefix tokens")
    parser.add_argument("--rounds", type=int, default=3, help="rounds at each rate")
    parser.add_argument(
        "--limits", default="none,100MiB,20MiB,5MiB", help="L3 read limits, or none"
    )
    parser.add_argument(
        "--cache-dir", type=Path, help="where the store is made; a temporary directory"
    )
    parser.add_argument("--picture", type=Path, help="where to draw the result, as SVG")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    model, tokenizer = hf.load(arguments.model, dtype=arguments.dtype)
    ids = prompt(tokenizer, arguments.tokens, 1)
    settings: dict[str, object] = {name: str(value) for name, value in vars(arguments).items()}
    report = Report("Restore or compute, by the rate of the disk", settings)
    results: list[tuple[str, dict[Mode, list[float]]]] = []
    with tempfile.TemporaryDirectory(prefix="kvlab-bench-", dir=arguments.cache_dir) as name:
        for limit in arguments.limits.split(","):
            rate = None if limit == "none" else kvlab.parse_size(limit)
            times, reports, costs = measure(model, ids, Path(name), rate, arguments.rounds)
            results.append((limit, times))
            for arm in ARMS:
                report.add(f"{limit}: {arm}, TTFT", [times[arm]], unit="ms")
            for other in ("always", "never"):
                ratios = [
                    auto / each for auto, each in zip(times["auto"], times[other], strict=True)
                ]
                report.add(f"{limit}: auto / {other}", [ratios], unit="x")
            errors = [
                each.predicted_ms / each.prefill_ms
                for each in reports
                if each.predicted_ms is not None
            ]
            if errors:
                report.add(f"{limit}: auto, predicted / actual", [errors], unit="x")
            last, read = reports[-1], costs["read"]["l3"]
            report.remarks.append(
                f"{limit}: auto restored {last.hit_tokens.total} of {last.found_tokens.total} found tokens; "
                f"learnt {read['gb_per_s'] or 0:.3f} GB/s and {read['latency_us']:.0f} us. {last.recomputed or ''}"
            )
    if arguments.picture is not None:
        title = f"{arguments.model}, {arguments.dtype}, {arguments.tokens:,} tokens on L3"
        if not picture(results, title, arguments.picture):
            report.remarks.append("No picture: matplotlib is not installed.")
    report.print(as_json=arguments.json)


if __name__ == "__main__":
    main()
