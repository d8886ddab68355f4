"""The roofline: prefill is bound by arithmetic, decode by memory. Measured, and where it is not so.

A processor has a highest rate of arithmetic (FLOP/s) and memory a highest rate of delivery (bytes/s).
Work that does I operations for each byte it fetches can at best reach min(FLOP/s, I * bytes/s): a roof
with a slope and a flat part, and a ridge where they meet. Prefill multiplies every weight it fetches
with many tokens: far right of the ridge. Decode multiplies it with one token of each sequence: two
operations for four bytes, far left, whatever the model. That is why a batch of sequences decodes in
hardly more time than one, until the ridge.

Attention is different: each sequence has keys and values of its own, so a larger batch fetches more of
them. Only several queries of one sequence share what is fetched, as in prefill.

work.py counts the operations and bytes from shapes, roof.py measures the roof, phases.py the model.

Sources: Williams, Waterman, Patterson, "Roofline", CACM 2009 (https://doi.org/10.1145/1498765.1498785);
Pope et al., "Efficiently Scaling Transformer Inference", 2022 (https://arxiv.org/abs/2211.05102).

    python toys/roofline.py [--quick] [--json] [--out roofline.svg]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import Results, arguments, conclude, need, panels
from timing import interleaved
from work import CACHED, HEAD_DIM, HEADS, WIDE, attend, matmul

need("torch", "transformers")

import torch
from phases import Phases
from roof import machine_arms, machine_limits, point
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure


def sweep_arms(counts: list[int]) -> dict[str, Callable[[], object]]:
    """The bare operations of decode, from one row or query up."""
    weight = torch.randn(WIDE, WIDE)
    k, v = (torch.randn(1, HEADS, CACHED, HEAD_DIM) for _ in range(2))
    arms: dict[str, Callable[[], object]] = {}
    for count in counts:
        rows, queries = torch.randn(count, WIDE), torch.randn(1, HEADS, count, HEAD_DIM)

        def multiply(rows: Tensor = rows) -> Tensor:
            return nn.functional.linear(rows, weight)

        def look(queries: Tensor = queries) -> Tensor:
            return nn.functional.scaled_dot_product_attention(queries, k, v)

        arms |= {f"matmul {count}": multiply, f"attention {count}": look}
    return arms


@torch.no_grad()
def measure(*, quick: bool = False) -> Results:
    """The machine's limits, the model's points under them, and the bare sweeps, all in turns."""
    torch.manual_seed(0)
    counts = [1, 8, 64] if quick else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    phases = Phases(quick=quick)
    taken = interleaved(machine_arms() | sweep_arms(counts) | phases.arms, 3 if quick else 9)
    limits = machine_limits(taken)
    model = phases.points(taken, limits)
    swept = {
        name: [point(cost(n), taken[f"{name} {n}"], limits, count=n) for n in counts]
        for name, cost in (("matmul", matmul), ("attention", attend))
    }
    for name, points in swept.items():
        gain = points[-1]["flops_per_second"] / points[0]["flops_per_second"]
        if gain < 3:
            raise AssertionError(
                f"{name}: {counts[-1]} at once are only {gain:.1f} x as fast as one"
            )
    fast, slow = model["prefill"][-1]["flops_per_second"], model["decode"][0]["flops_per_second"]
    if fast < 3 * slow:
        raise AssertionError(f"prefill does {fast:.2e} FLOP/s, decode {slow:.2e}: not far apart")
    return {"machine": limits, "sweeps": swept, "model": model}


def tell(results: Results) -> None:
    """Prints the limits, the points, and what binds each."""
    limits, step = results["machine"], results["model"]["step"]
    print(f"this machine, fp32: {limits['flops_per_second'] / 1e9:.0f} GFLOP/s (matmul); ", end="")
    print(", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in limits["streams"].items()))
    print(f"the ridge is at {limits['ridge']:.1f} FLOP/byte\n")
    print(f"{'':34}FLOP/byte     ms   GFLOP/s    GB/s   of the roof   bound by")

    def line(label: str, row: Results) -> None:
        print(f"{label:34}{row['intensity']:9.1f}{1e3 * row['seconds']:7.1f}", end="")
        print(f"{row['flops_per_second'] / 1e9:10.1f}{row['bytes_per_second'] / 1e9:8.1f}", end="")
        print(f"{row['of_roof']:14.0%}   {row['bound']}")

    for row in results["model"]["prefill"]:
        line(f"SmolLM2: prefill of {row['tokens']}", row)
    for row in results["model"]["decode"]:
        line(f"SmolLM2: decode {row['batch']} after {row['tokens']}", row)
    for name, what in (("matmul", "rows"), ("attention", "queries")):
        for row in results["sweeps"][name]:
            line(f"bare {name}: {row['count']} {what}", row)
    floor, products, whole = (1e3 * step[part] for part in ("floor", "matrix_products", "whole"))
    print(f"\na decode step of SmolLM2 takes {whole:.1f} ms. Reading its weights takes ", end="")
    print(
        f"{floor:.1f} ms at full bandwidth; its matrix products alone take {products:.1f} ms; ",
        end="",
    )
    print(f"attention, norms and the framework between them the other {whole - products:.1f} ms.")
    if results["model"]["decode"][0]["bound"] == "overhead":
        print(
            "It is not bound by bandwidth: the model is too small. The bare products show the bound."
        )
    else:
        print("It is bound by bandwidth, or nearly so.")


def draw(results: Results) -> Figure:
    """The roof with all points under it; time against batch; the parts of a decode step."""
    figure, (roof, batch, parts) = panels(3, width=4.2)
    limits, model, swept = results["machine"], results["model"], results["sweeps"]
    series = {
        "bare matmul": (swept["matmul"], "s-", "C7"),
        "bare attention": (swept["attention"], "^-", "C4"),
        "SmolLM2 prefill": (model["prefill"], "o-", "C3"),
        "SmolLM2 decode": (model["decode"], "D", "C0"),
    }
    peak, rate = limits["flops_per_second"] / 1e9, limits["bytes_per_second"] / 1e9
    every = [row["intensity"] for points, _, _ in series.values() for row in points]
    corners = [min(every) / 1.5, limits["ridge"], max(every) * 1.5]
    roof.plot(corners, [min(peak, rate * x) for x in corners], color="black", label="roof")
    for label, (points, mark, colour) in series.items():
        x = [row["intensity"] for row in points]
        y = [row["flops_per_second"] / 1e9 for row in points]
        roof.plot(x, y, mark, ms=4, lw=0.8, color=colour, label=label)
    roof.set(title="Roofline of this machine", xlabel="FLOP/byte", ylabel="GFLOP/s")
    roof.legend(fontsize=7, loc="lower right")
    counts = [row["count"] for row in swept["matmul"]]
    for name, mark, colour in (("matmul", "s-", "C7"), ("attention", "^-", "C4")):
        took = [row["seconds"] / swept[name][0]["seconds"] for row in swept[name]]
        batch.plot(counts, took, mark, color=colour, ms=4, label=f"bare {name}")
    batch.plot(counts, counts, ":", color="gray", label="no sharing")
    batch.set(
        title="Rows or queries that share a fetch", xlabel="how many", ylabel="time, of one's"
    )
    batch.legend(fontsize=8)
    for axes in (roof, batch):
        axes.set_xscale("log")
        axes.set_yscale("log")
    labels = {
        "floor": "weights\nread once",
        "matrix_products": "matrix\nproducts",
        "whole": "whole\nstep",
    }
    heights = [1e3 * model["step"][part] for part in labels]
    bars = parts.bar(list(labels.values()), heights, color=["black", "C7", "C0"])
    parts.bar_label(bars, fmt="%.1f")
    parts.set(title="A decode step of SmolLM2-135M", ylabel="ms")
    return figure


def main() -> None:
    """Measures, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
