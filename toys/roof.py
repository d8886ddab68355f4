"""The roof: a machine's two limits, and how near to it some work of known size comes.

Work that does I operations for each byte it fetches can at best reach min(FLOP/s, I * bytes/s): a roof
with a slope and a flat part, and a ridge where they meet. Both limits change with what else the machine
does, so they are measured in turns with the work that is held against them.

Source: Williams, Waterman, Patterson, "Roofline", CACM 2009 (https://doi.org/10.1145/1498765.1498785).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from work import FLOAT, WIDE, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from common import Results

SQUARE = 2048
NEAR = 0.6  # this share of what the roof allows counts as reaching it


def machine_arms() -> dict[str, Callable[[], object]]:
    """The simple operations that come nearest to this machine's two limits."""
    a, b, c = (torch.randn(SQUARE, SQUARE) for _ in range(3))
    long = [torch.ones(WIDE * WIDE) for _ in range(3)]
    return {
        "square": lambda: torch.matmul(a, b, out=c),
        "copy": lambda: long[1].copy_(long[0]),
        "triad": lambda: torch.add(long[0], long[1], alpha=3.0, out=long[2]),
        "sum": long[0].sum,
    }


def machine_limits(taken: Mapping[str, float]) -> Results:
    """The limits, from the seconds of the arms."""
    streams = {"copy": 2, "triad": 3, "sum": 1}
    rates = {name: count * FLOAT * WIDE * WIDE / taken[name] for name, count in streams.items()}
    flops = 2 * SQUARE**3 / taken["square"]
    best = max(rates.values())
    return {
        "flops_per_second": flops,
        "streams": rates,
        "bytes_per_second": best,
        "ridge": flops / best,
    }


def point(work: Work, seconds: float, limits: Results, **what: object) -> Results:
    """One measured point, and what of the roof above it it reached."""
    rate = work.flops / seconds
    ceiling = min(limits["flops_per_second"], work.intensity * limits["bytes_per_second"])
    side = "compute" if work.intensity >= limits["ridge"] else "bandwidth"
    return {
        **what,
        "intensity": work.intensity,
        "seconds": seconds,
        "flops_per_second": rate,
        "bytes_per_second": work.bytes / seconds,
        "of_roof": rate / ceiling,
        "bound": side if rate / ceiling >= NEAR else "overhead",
    }
