"""Columns of a trace as arrays, one number a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvlab import _core

if TYPE_CHECKING:
    from array import array

    from numpy.typing import NDArray

    from kvlab.sim.trace import Trace

__all__ = ["Columns", "columns", "hit_tokens"]


@dataclass(frozen=True, slots=True)
class Columns:
    """What is known of each request, `[requests]` each.

    Attributes:
        at_ms: Arrivals in milliseconds, float64.
        blocks: Blocks, uint32.
        tokens: Prompt tokens, int64.
        output_tokens: Tokens of the answer, int64.
        sessions: From 1, 0 for none, uint32.
        categories: The same for categories.
    """

    at_ms: NDArray[np.float64]
    blocks: NDArray[np.uint32]
    tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    sessions: NDArray[np.uint32]
    categories: NDArray[np.uint32]


def columns(trace: Trace) -> Columns:
    """The columns of a trace."""
    raw = _core.sim_columns(trace.core)

    def words(name: str) -> NDArray[np.uint32]:
        return np.frombuffer(raw[name], dtype=np.uint32)

    return Columns(
        at_ms=np.frombuffer(raw["at_ms"], dtype=np.float64),
        blocks=words("blocks"),
        tokens=words("tokens").astype(np.int64),
        output_tokens=words("output_tokens").astype(np.int64),
        sessions=words("sessions"),
        categories=words("categories"),
    )


def hit_tokens(trace: Trace, hits_by_request: array[int]) -> NDArray[np.int64]:
    """Tokens of the first blocks of each request, `[requests]`.

    Args:
        trace: The trace.
        hits_by_request: How many blocks each found, see `kvlab.sim.prefix.Replay`.

    Raises:
        InvalidArgumentError: it is not of that trace.
    """
    raw = _core.sim_hit_tokens(trace.core, hits_by_request)
    return np.frombuffer(raw, dtype=np.uint64).astype(np.int64)
