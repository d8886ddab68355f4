"""The demo's results as tables and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

_ARMS = {
    "recomputed": ("recomputed", "#c44e52", "o"),
    "restored": ("restored from L3, new process", "#4c72b0", "s"),
    "never_evicted": ("never evicted", "#8c8c8c", "^"),
}


def written(beats: dict[str, Any], console: Console) -> None:
    """Print beats 1 and 2: prefill, write-through, eviction, page cache."""
    for beat in beats["lengths"]:
        console.print(
            f"  {beat['prefix_tokens']:>5} tokens: cold prefill {beat['cold_prefill_ms']:.0f} ms, "
            f"write-through {beat['write_through_ms']:.0f} ms, "
            f"eviction {beat['eviction_ms']:.0f} ms; left: {beat['l1_used_blocks']} blocks in L1, "
            f"{beat['l2_used_bytes']} bytes in L2; L3 holds {beat['l3_used_bytes'] / 1e6:.0f} MB"
        )
    drop = beats["page_cache"]
    console.print(
        f"  page cache of the segments dropped in {drop['drop_ms']:.0f} ms, "
        f"{drop['resident_bytes']} bytes still resident by mincore"
    )


def tables(result: dict[str, Any], console: Console) -> None:
    """Print the runs: times and ratios, what was reused, the verdicts, the texts. 80 columns wide."""
    times = _table(
        "Time to the first token of turn 2, ms: median (min-max)",
        ("restored from L3", "never evicted", "recomputed"),
    )
    ratios = _table(
        "Ratios of these times, pair by pair: median (min-max)",
        ("recomputed / restored", "restored / never evicted"),
    )
    parts = _table(
        "What the restored time is made of, ms, and with a prefetch before the request",
        (
            "suffix prefill, ms",
            "restore beside it, ms",
            "waited for layers, ms",
            "TTFT, prefetched 0 / 50 / 200 ms before",
        ),
    )
    reuse = _table(
        "What was reused, and what a fork then shares",
        (
            "hit tokens L1 / L2 / L3",
            "computed tokens",
            "blocks reused",
            "read MB",
            "fork, blocks: reused / shared / saved",
        ),
    )
    for run in result["runs"]:
        ttft, hit, pool = run["ttft_ms"], run["hit_tokens"], run["pool"]
        name = (run["dtype"], f"{run['prefix_tokens']:,}")
        arms = ("restored", "never_evicted", "recomputed")
        times.add_row(*name, *(_span(ttft[arm]) for arm in arms))
        ratios.add_row(
            *name,
            _span(run["ratios"]["recomputed_over_restored"], 1) + " x",
            _span(run["ratios"]["restored_over_never_evicted"], 2) + " x",
        )
        parts.add_row(
            *name,
            _span(run["suffix_prefill_ms"]),
            _span(run["restore_ms"]),
            _span(run["restore_wait_ms"]),
            " / ".join(f"{spread['median']:.0f}" for spread in run["prefetched_ttft_ms"].values()),
        )
        reuse.add_row(
            *name,
            f"{hit['l1']}/{hit['l2']}/{hit['l3']}",
            str(run["computed_tokens"]),
            str(run["blocks_reused"]),
            f"{run['bytes_read'] / 1e6:.1f}",
            f"{pool['blocks_reused']}/{pool['blocks_shared']}/{pool['blocks_saved']}",
        )
    for table in (times, ratios, parts, reuse):
        console.print(table)
    for run in result["runs"]:
        exact = "yes, bit for bit" if run["bit_exact"] else "[red]NO[/red]"
        same = "the same text" if run["same_text"] else "[red]different texts[/red]"
        console.print(
            f"{run['dtype']} {run['prefix_tokens']:>5}: restored logits == never-evicted logits: "
            f"{exact}; {same}"
        )
    text = result["runs"][-1]["text"]
    console.print("restored:     ", text["restored"].strip(), style="dim", markup=False)
    console.print("never evicted:", text["never_evicted"].strip(), style="dim", markup=False)
    run = longest(result["runs"])
    ratio = run["ratios"]["recomputed_over_restored"]
    console.print(
        f"[bold]{run['prefix_tokens']:,} tokens, {run['dtype']}: the first token comes "
        f"{ratio['median']:.1f}x sooner from NVMe than by recomputing "
        f"({ratio['min']:.1f}-{ratio['max']:.1f}x)[/bold]"
    )


def longest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run of the longest prefix, of the first dtype measured: the headline's."""
    return max(runs, key=lambda run: run["prefix_tokens"])


def _table(title: str, columns: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for name in ("dtype", "prefix tokens", *columns):
        table.add_column(name, justify="right", max_width=22)
    return table


def picture(result: dict[str, Any], path: Path) -> bool:
    """Draw TTFT against prefix length; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvlab"
    from matplotlib import pyplot as plt

    dtypes = list(dict.fromkeys(run["dtype"] for run in result["runs"]))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(5.2 * len(dtypes), 4), squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        runs = [run for run in result["runs"] if run["dtype"] == dtype]
        lengths = [run["prefix_tokens"] for run in runs]
        for arm, (label, colour, marker) in _ARMS.items():
            spreads = [run["ttft_ms"][arm] for run in runs]
            medians = [spread["median"] for spread in spreads]
            errors = [
                [spread["median"] - spread["min"] for spread in spreads],
                [spread["max"] - spread["median"] for spread in spreads],
            ]
            axis.errorbar(
                lengths, medians, yerr=errors, label=label, color=colour, marker=marker, capsize=3
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axis.set_xlabel("prefix tokens")
        axis.set_ylabel("time to first token, ms (log)")
        axis.set_title(f"{result['environment']['model']}, {dtype}")
        axis.grid(visible=True, which="both", alpha=0.25)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def _span(spread: dict[str, float], digits: int = 0) -> str:
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f}-{spread['max']:.{digits}f})"
