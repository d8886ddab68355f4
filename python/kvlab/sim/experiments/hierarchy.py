"""Replays over three tiers as rows of a table: hits by tier, bytes, and predicted times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab import _core
from kvlab.errors import InvalidArgumentError
from kvlab.sim import tiers
from kvlab.sim.cost_file import ASSUMED, CostModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvlab.sim.experiments.table import Row
    from kvlab.sim.trace import Trace

__all__ = ["Below", "block_bytes", "cold_seconds", "need_blocks", "service_seconds", "tier_columns"]

_TIERS = ("l1", "l2", "l3")


@dataclass(frozen=True, slots=True)
class Below:
    """What lies below L1, and what things cost.

    Attributes:
        l2: Blocks of L2; 0 if there is none, None for one that holds all.
        l3: Blocks of L3, likewise.
        model: What times are predicted by.
    """

    l2: int | None = 0
    l3: int | None = 0
    model: CostModel = field(default=ASSUMED)

    @property
    def empty(self) -> bool:
        """Whether there is L1 only."""
        return self.l2 == 0 and self.l3 == 0

    def together(self, l1: int | None) -> int | None:
        """Blocks of all tiers, None for all: what an oracle is given."""
        if l1 is None or self.l2 is None or self.l3 is None:
            return None
        return l1 + self.l2 + self.l3


def need_blocks(trace: Trace) -> None:
    """Refuses a trace without blocks.

    Raises:
        InvalidArgumentError: it has arrivals and lengths only.
    """
    if not trace.block_refs:
        raise InvalidArgumentError(
            f"{trace.info.name} has no blocks: there is nothing that could hit; take a trace with block ids"
        )


def block_bytes(trace: Trace, costs: tiers.Costs) -> int:
    """KV bytes of a block; of blocks that differ, of one of mean length.

    Raises:
        InvalidArgumentError: a trace without blocks.
    """
    need_blocks(trace)
    tokens = trace.info.block_tokens or max(1, round(trace.tokens / trace.block_refs))
    return tokens * costs.token_bytes


def service_seconds(replay: tiers.TiersReplay) -> NDArray[np.float64]:
    """Predicted seconds of each request to its first token, without its wait in line."""
    first_token = np.asarray(replay.first_token, np.float64)
    return first_token - np.asarray(replay.queued, np.float64)


def cold_seconds(trace: Trace, costs: tiers.Costs) -> NDArray[np.float64]:
    """Predicted seconds of each request if nothing were cached."""
    fixed, each, context = costs.prefill
    tokens = np.frombuffer(_core.sim_columns(trace.core)[0], np.uint32).astype(np.float64)
    return np.where(tokens > 0, fixed + each * tokens + context * tokens * tokens / 2, 0.0)


def tier_columns(
    trace: Trace,
    replay: tiers.TiersReplay,
    blocks: tuple[int | None, int | None, int | None],
    costs: tiers.Costs,
) -> Row:
    """What a replay counted and what is predicted of it.

    `mean_latency_ms` is a request's way to its first token once it is begun, TTFT has its wait in line
    as well. Nothing is fetched ahead in this mode: all bytes are demand.

    Args:
        trace: What was replayed.
        replay: The replay.
        blocks: What fits into L1, L2, L3; those of 0 have no columns.
        costs: What it was predicted by.
    """
    refs = max(1, replay.block_refs)
    size = block_bytes(trace, costs)
    hits, tokens = sum(replay.hits), trace.tokens
    seconds = service_seconds(replay)
    mean, middle, last = _milliseconds(np.asarray(replay.first_token))
    moved = sum(replay.bytes_read) + sum(replay.bytes_written)
    columns: dict[str, Any] = {
        "hits": hits,
        "hit_ratio": replay.hit_ratio,
        "misses": replay.block_refs - hits,
        "hit_tokens": tokens - replay.recomputed_tokens,
        "token_hit_ratio": (tokens - replay.recomputed_tokens) / tokens if tokens else 0.0,
        "recomputed_tokens": replay.recomputed_tokens,
        "left_alone_blocks": replay.left_alone_blocks,
        "evictions": sum(replay.evictions),
        "mean_latency_ms": 1000 * float(seconds.mean()) if len(seconds) else 0.0,
        "predicted_ttft_mean_ms": mean,
        "predicted_ttft_p50_ms": middle,
        "predicted_ttft_p99_ms": last,
        "bytes_moved": moved,
        "demand_bytes": moved,
        "prefetch_bytes": 0,
        "prefetches": 0,
        "useful_prefetches": 0,
        "wasted_prefetches": 0,
        "useful_prefetch_ratio": 0.0,
    }
    used = [place for place, capacity in enumerate(blocks) if capacity != 0]
    columns |= {f"tier_hit_rates.{_TIERS[place]}": replay.hits[place] / refs for place in used}
    columns |= {f"peak_bytes.{_TIERS[place]}": replay.peak_blocks[place] * size for place in used}
    return columns


def _milliseconds(seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, median and 99th percentile."""
    if not len(seconds):
        return 0.0, 0.0, 0.0
    middle, last = np.percentile(seconds, (50, 99))
    return 1000 * float(seconds.mean()), 1000 * float(middle), 1000 * float(last)
