"""Prefix and flat mode: traces replayed on the radix tree and the policies that run live.

In prefix mode a request is looked up whole before its own blocks go in, a block hits only if all before
it do, and what was used ages from its tail. In flat mode every block is an object of its own, used one
after the other in the order of the trace, as libCacheSim has it.

Everything here is simulated; hits and evictions are exact, and no payload is moved.
"""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from kvlab import _core
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvlab.sim.trace import Trace

__all__ = ["Mode", "Replay", "lru_curve", "policies", "run", "sampled_curve"]

Mode = Literal["prefix", "flat"]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay counted.

    Attributes:
        mode: "prefix" or "flat".
        policy: Its name.
        capacity_blocks: Blocks that fit; None for a cache that holds all, which gives the ideal.
        requests: Requests replayed.
        block_refs: Blocks of all requests.
        unique_blocks: Distinct block ids.
        hits: Blocks found.
        hit_ratio: `hits / block_refs`; 0 for a trace without blocks.
        tokens: Tokens of the prompts.
        hit_tokens: Tokens of the blocks found; of a partial last block, what the request has.
        token_hit_ratio: `hit_tokens / tokens`.
        recomputed_tokens: `tokens - hit_tokens`.
        recomputed_cost: What recomputing them costs, in tokens at the start of a prompt: attention makes a
            token dearer the more there is before it.
        evictions: Blocks given up for others.
        refused_blocks: Blocks that were not taken: their request was larger than the cache, or the
            policy passed them by.
        peak_blocks: The most held between two requests.
        seconds: Wall-clock time of the replay, parsing excluded.
        events_per_second: `block_refs / seconds`.
        hits_by_request: Blocks found, `[requests]`, uint32.
    """

    mode: Mode
    policy: str
    capacity_blocks: int | None
    requests: int
    block_refs: int
    unique_blocks: int
    hits: int
    hit_ratio: float
    tokens: int
    hit_tokens: int
    token_hit_ratio: float
    recomputed_tokens: int
    recomputed_cost: float
    evictions: int
    refused_blocks: int
    peak_blocks: int
    seconds: float
    events_per_second: float
    hits_by_request: array[int]

    def as_dict(self) -> dict[str, Any]:
        """All but `hits_by_request`, ready for JSON."""
        fields = asdict(self)
        del fields["hits_by_request"]
        return fields


def policies(mode: Mode = "prefix") -> list[str]:
    """The names of the policies that `run` knows in a mode.

    Beside those that run live there are `belady` (MIN; what is used goes in) and `belady_bypass` (it
    need not), which know the future, and in prefix mode `oracle_cost`, which also knows what a block costs
    (greedy: no bound, but MIN where all cost the same), `lru_root_first`, the bad example: a request's
    first block counts as used longest ago, and `fifo_root_first`, which kvcache-simulator calls fifo.

    Raises:
        ConfigError: the mode is unknown.
    """
    return _core.sim_policies(mode)


def run(
    trace: Trace,
    *,
    policy: str = "lru",
    capacity_blocks: int | None,
    mode: Mode = "prefix",
    progress: Callable[[int, int], object] | None = None,
) -> Replay:
    """Replays a trace.

    Args:
        trace: What to replay.
        policy: One of `policies(mode)`.
        capacity_blocks: Blocks that fit, at least 1; None for a cache that holds all.
        mode: What a hit is.
        progress: Called now and then and at the end with requests done and in all. What it raises ends
            the replay and is raised here.

    Raises:
        ConfigError: an unknown policy or mode; the message lists the known ones.
        InvalidArgumentError: a capacity of less than 1, or a trace without blocks.
    """
    if capacity_blocks is not None and capacity_blocks < 1:
        raise InvalidArgumentError(
            f"capacity_blocks = {capacity_blocks}: a cache holds at least 1 block; None is one that holds all"
        )
    if not trace.info.has_blocks:
        raise InvalidArgumentError(
            f"{trace.info.name} has arrivals and lengths only: there is nothing that could hit; "
            "take a trace with block ids"
        )
    counts = _core.sim_replay(
        trace.core, mode=mode, policy=policy, capacity_blocks=capacity_blocks, progress=progress
    )
    seconds = counts["nanoseconds"] / 1e9
    refs, tokens = counts["block_refs"], counts["tokens"]
    hits = array("I")
    hits.frombytes(counts["hits_by_request"])
    return Replay(
        mode=mode,
        policy=policy,
        capacity_blocks=capacity_blocks,
        requests=counts["requests"],
        block_refs=refs,
        unique_blocks=counts["unique_blocks"],
        hits=counts["hits"],
        hit_ratio=counts["hits"] / refs if refs else 0.0,
        tokens=tokens,
        hit_tokens=counts["hit_tokens"],
        token_hit_ratio=counts["hit_tokens"] / tokens if tokens else 0.0,
        recomputed_tokens=tokens - counts["hit_tokens"],
        recomputed_cost=counts["recomputed_cost"],
        evictions=counts["evictions"],
        refused_blocks=counts["refused"],
        peak_blocks=counts["peak_blocks"],
        seconds=seconds,
        events_per_second=refs / seconds if seconds else 0.0,
        hits_by_request=hits,
    )


def lru_curve(trace: Trace, capacities: Sequence[int], *, mode: Mode = "prefix") -> list[int]:
    """Hits of `lru` at each capacity, exactly, from one pass over the trace (Mattson and others, 1970).

    Args:
        trace: What to replay.
        capacities: In blocks, in any order, at least 1.
        mode: What a hit is. In prefix mode the curve is exact too: what a cache holds is the top of one
            stack, whatever its size.

    Raises:
        InvalidArgumentError: a capacity of less than 1.
    """
    _check(capacities)
    return _core.sim_lru_curve(trace.core, mode=mode, capacities=list(capacities))


def sampled_curve(
    trace: Trace,
    capacities: Sequence[int],
    *,
    policy: str,
    mode: Mode = "prefix",
    rate: float = 0.1,
    seed: int = 0,
) -> list[float]:
    """Hit ratios of any policy at each capacity, estimated from a sample of the blocks.

    Spatial sampling with caches scaled down alike (SHARDS, Waldspurger and others, FAST '15; ATC '17). In
    prefix mode nodes of the prefix tree are sampled, so that a sampled block still hits only if those
    before it in the sample do. A few blocks that are in most requests make samples differ in how many
    uses they have: what a sample has more or less than its part counts as hits of such blocks, as
    SHARDS-adj does.

    Args:
        trace: What to replay.
        capacities: In blocks, in any order, at least 1.
        policy: One of `policies(mode)`.
        mode: What a hit is.
        rate: The part of the blocks that is replayed, above 0 and at most 1. Capacities of less than about
            `100 / rate` blocks are estimated badly.
        seed: Which part.

    Raises:
        InvalidArgumentError: a rate or capacity out of range.
        ConfigError: an unknown policy or mode.
    """
    _check(capacities)
    whole = trace.core.prefix_ids() if mode == "prefix" else trace.core
    sample = whole.sampled(rate, seed=seed)
    expected = rate * whole.block_refs
    ratios = []
    for capacity in capacities:
        counts = _core.sim_replay(
            sample,
            mode=mode,
            policy=policy,
            capacity_blocks=max(1, round(capacity * rate)),
        )
        hits = counts["hits"] + expected - counts["block_refs"]
        ratios.append(min(1.0, max(0.0, hits / expected)) if expected else 0.0)
    return ratios


def _check(capacities: Sequence[int]) -> None:
    for capacity in capacities:
        if capacity < 1:
            raise InvalidArgumentError(f"a capacity of {capacity} blocks: at least 1 is needed")
