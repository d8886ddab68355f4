"""Attention from raw tensor operations gives what PyTorch's gives, and costs the square of the length.

softmax(Q K^T / sqrt(d)) V has in Q K^T one score for every pair of tokens. That matrix is what grows with
the square of the length, in time and, if it is written down as it is here, in memory. Keys and values
themselves grow with the length alone; they are what a KV cache keeps.

The attention is in multi_head_attention.py; what it costs is measured here.

    python toys/attention.py [--quick] [--json] [--out attention.svg]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, need, panels
from timing import exponent, interleaved, one_thread

need("torch")

import torch
from multi_head_attention import MultiHeadAttention, attention, causal_mask, scores
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from matplotlib.figure import Figure

WIDTH, HEADS = 256, 4


@torch.no_grad()
def check_against_torch(lengths: Iterable[int]) -> float:
    """The largest difference from PyTorch's own attention; raises if it is above 1e-5."""
    worst = 0.0
    for tokens in lengths:
        own = MultiHeadAttention(WIDTH, HEADS)
        reference = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True)
        reference.in_proj_weight.data = own.query_key_value.data.T
        reference.out_proj.weight.data = own.mix.data.T
        x = torch.randn(1, tokens, WIDTH)
        hidden = ~causal_mask(tokens, tokens)
        q, k, v = own.project(x)
        pairs = [
            (
                attention(q, k, v),
                nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
            ),
            (own(x)[0], reference(x, x, x, attn_mask=hidden, need_weights=False)[0]),
        ]
        worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    if worst > 1e-5:
        raise AssertionError(f"differs from PyTorch's attention by {worst}, more than 1e-5")
    return worst


def parts(tokens: int) -> tuple[dict[str, Callable[[], object]], Results]:
    """The parts of one layer over so many tokens, to be timed, and the bytes they make."""
    layer = MultiHeadAttention(WIDTH, HEADS)
    x = torch.randn(1, tokens, WIDTH)
    q, k, v = layer.project(x)
    fused = nn.functional.scaled_dot_product_attention
    arms: dict[str, Callable[[], object]] = {
        "projections": lambda: (layer.project(x), x @ layer.mix),
        "attention": lambda: attention(q, k, v),
        "fused": lambda: fused(q, k, v, is_causal=True),
    }
    return arms, {"score_bytes": scores(q, k).nbytes, "kv_bytes": k.nbytes + v.nbytes}


@torch.no_grad()
def cost(lengths: list[int], rounds: int) -> list[Results]:
    """Seconds and bytes at each length, part by part; all lengths and parts take turns."""
    timed: dict[str, Callable[[], object]] = {}
    rows: list[Results] = []
    for tokens in lengths:
        arms, size = parts(tokens)
        timed |= {f"{name} {tokens}": action for name, action in arms.items()}
        rows.append({"tokens": tokens, **size, "seconds": dict.fromkeys(arms, 0.0)})
    for name, seconds in interleaved(timed, rounds).items():
        part, length = name.split()
        rows[lengths.index(int(length))]["seconds"][part] = seconds
    return rows


def measure(*, quick: bool = False) -> Results:
    """Compares with PyTorch, then times lengths that double."""
    torch.manual_seed(0)
    lengths = [128 << step for step in range(4 if quick else 6)]
    with one_thread():  # the powers are the same
        difference = check_against_torch([1, 2, 17, 128, 500])
        rows = cost(lengths, rounds=7 if quick else 9)
    # Where the matrix is small, starting an operation costs more than doing it: fit the long end.
    long = rows[-3:]
    tail = [row["tokens"] for row in long]
    exponents = {
        arm: exponent(tail, [row["seconds"][arm] for row in long]) for arm in rows[0]["seconds"]
    }
    for name in ("score_bytes", "kv_bytes"):
        exponents[name] = exponent(tail, [row[name] for row in long])
    if not math.isclose(exponents["score_bytes"], 2) or not math.isclose(exponents["kv_bytes"], 1):
        raise AssertionError(f"scores must grow quadratically, K and V linearly: {exponents}")
    if exponents["attention"] < 1.4 or exponents["attention"] < exponents["projections"] + 0.3:
        raise AssertionError(f"attention's time does not grow like a square: {exponents}")
    return {
        "width": WIDTH,
        "heads": HEADS,
        "difference": difference,
        "rows": rows,
        "exponents": exponents,
    }


def tell(results: Results) -> None:
    """Prints the comparison and the table."""
    print(f"largest difference from PyTorch: {results['difference']:.1e} (allowed: 1e-5)")
    print(
        f"one layer of width {results['width']}, {results['heads']} heads, one thread; times in ms\n"
    )
    print("tokens   projections   attention   fused   scores, MiB   K and V, MiB")
    for row in results["rows"]:
        took = {arm: 1e3 * seconds for arm, seconds in row["seconds"].items()}
        print(f"{row['tokens']:6}{took['projections']:14.2f}{took['attention']:12.2f}", end="")
        print(f"{took['fused']:8.2f}", end="")
        print(f"{row['score_bytes'] / 2**20:14.2f}{row['kv_bytes'] / 2**20:15.2f}")
    fit = results["exponents"]
    print(f"\ngrows like tokens to the power of: projections {fit['projections']:.2f}, ", end="")
    print(f"attention {fit['attention']:.2f}, fused {fit['fused']:.2f}; ", end="")
    print(f"bytes: scores {fit['score_bytes']:.0f}, K and V {fit['kv_bytes']:.0f}")
    print(
        "'fused' never writes the scores down: PyTorch's kernel. Its work is quadratic all the same, at less per score."
    )


def draw(results: Results) -> Figure:
    """Time and bytes against length, both axes logarithmic: a power is a straight line."""
    figure, (left, right) = panels(2)
    rows, fit = results["rows"], results["exponents"]
    tokens = [row["tokens"] for row in rows]
    for arm, mark in (("projections", "s"), ("attention", "o"), ("fused", "^")):
        seconds = [1e3 * row["seconds"][arm] for row in rows]
        left.plot(tokens, seconds, mark + "-", label=f"{arm}: power {fit[arm]:.2f}")
    left.set(title="Time of one layer", ylabel="ms")
    for name, label in (("score_bytes", "score matrix"), ("kv_bytes", "K and V")):
        size = [row[name] / 2**20 for row in rows]
        right.plot(tokens, size, "o-", label=f"{label}: power {fit[name]:.0f}")
    right.set(title="Memory of one layer", ylabel="MiB")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(tokens, [str(count) for count in tokens])
        axes.set_xlabel("tokens")
        axes.legend()
    return figure


def main() -> None:
    """Compares, measures and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
