"""The results as a table and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table


def table(rows: list[dict[str, Any]]) -> Table:
    """One row an arm and dtype, 100 columns wide."""
    from rich import box
    from rich.table import Table

    out = Table(box=box.SIMPLE, padding=(0, 1))
    out.add_column("dtype")
    out.add_column("codec", max_width=28)
    for name in ("smaller", "encode", "decode", "perplexity", "change", "KL, nats", "same top-1"):
        out.add_column(name, justify="right")
    for row in rows:
        speeds = (
            f"{row[key]:.1f} GB/s" if row["stored"] else ""
            for key in ("encode_gbps", "decode_gbps")
        )
        out.add_row(
            row["dtype"],
            row["arm"] if row["stored"] else f"(int8 {row['arm']})",
            f"{row['ratio']:.2f} x",
            *speeds,
            f"{row['perplexity']:.3f}",
            f"{row['change']:+.2f} %",
            f"{row['kl']:.1e}",
            f"{row['top1'] * 100:.1f} %",
        )
    return out


def picture(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draw KL against the ratio; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvlab"
    from matplotlib import pyplot as plt

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(5.2 * len(dtypes), 4), squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        shown = [row for row in rows if row["dtype"] == dtype and row["arm"] != "exact"]
        for row in shown:
            axis.scatter(
                row["ratio"], max(row["kl"], 1e-9), color="#4c72b0" if row["stored"] else "#8c8c8c"
            )
            axis.annotate(
                row["arm"],
                (row["ratio"], max(row["kl"], 1e-9)),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )
        axis.set_yscale("log")
        axis.margins(x=0.4, y=0.2)
        axis.set_xlabel("times smaller than exact")
        axis.set_ylabel("KL to exact, nats (log)")
        axis.set_title(f"int8 of {dtype} (grey: not in the store)")
        axis.grid(visible=True, which="both", alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True
