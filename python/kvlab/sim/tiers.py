"""Three tiers, simulated: hits by tier, bytes moved, and what a cost model makes of them.

L1 is the live radix tree. L2 and L3 are the live memory tier and the live disk directory without payload;
what is found, what goes down when, in which runs, and what is weighed against computing again is decided by
the live store's own code. What time decides live is left out: a write is done at once, requests change the
tiers one after the other, and the costs that are given do not change.

Hits and bytes are exact for that model. Every time here is predicted from the costs that are given.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kvlab import _core
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvlab.sim.trace import Trace

__all__ = ["Costs", "Read", "Tiers", "TiersReplay", "run"]

WritePolicy = Literal["write_through", "write_through_selective", "write_back"]
RestoreMode = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Read:
    """What reading from a tier costs.

    Attributes:
        latency: Seconds before the first byte.
        bandwidth: Bytes a second of one transfer.
        transfers: Transfers at once; more of them wait.
    """

    latency: float
    bandwidth: float
    transfers: int = 1


@dataclass(frozen=True, slots=True)
class Costs:
    """What a simulated server's work costs. The defaults are SmolLM2-135M in fp32 on two x86-64 cores.

    Attributes:
        prefill: Seconds of a forward: once, per token, and per token and token of its context.
        decode: Seconds per token of an answer.
        token_bytes: KV bytes of a token.
        l1: Reading from L1.
        l2: Reading from L2.
        l3: Reading from L3.
        overlap: The share of the shorter of restore and forward that runs beside the longer one, 0 to 1.
        concurrency: Requests that are computed at once; others wait in line, the first come first.
    """

    prefill: tuple[float, float, float] = (2e-2, 1.2e-3, 4e-7)
    decode: float = 0.05
    token_bytes: int = 46_080
    l1: Read = Read(2e-5, 5e9, 4)
    l2: Read = Read(2e-5, 5e9, 4)
    l3: Read = Read(2e-4, 1e9, 4)
    overlap: float = 0.8
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class Tiers:
    """A hierarchy.

    Attributes:
        l1_blocks: Blocks that fit into L1, at least 1; None for one that holds all.
        l2_blocks: Of L2; 0 if there is none.
        l3_blocks: Of L3; 0 if there is none.
        policy: What evicts, one for all tiers or one for each.
        write_policy: When L3 gets what is new: when it is made, at its second use, or when L2 gives it up.
        restore: How much of what is found below L1 is restored: all, nothing, or as much as is predicted to
            pay.
        costs: What things cost.
    """

    l1_blocks: int | None
    l2_blocks: int | None = 0
    l3_blocks: int | None = 0
    policy: str | tuple[str, str, str] = "lru"
    write_policy: WritePolicy = "write_through"
    restore: RestoreMode = "auto"
    costs: Costs = field(default_factory=Costs)


@dataclass(frozen=True, slots=True)
class TiersReplay:
    """What a replay over three tiers counted. Triples are L1, L2, L3.

    Attributes:
        requests: Requests replayed.
        block_refs: Blocks of all requests.
        hits: Blocks used from each tier.
        hit_ratio: All of them by `block_refs`.
        tokens: Tokens of the prompts.
        recomputed_tokens: Tokens that were computed, the last of each prompt always.
        left_alone_blocks: Blocks found below L1 that were computed, because that was predicted to be faster.
        evictions: Blocks that each tier gave up for others, or as the policy said that their time was over.
        stored_blocks: Blocks that came into each.
        refused_blocks: Blocks that each did not take.
        lost_blocks: Blocks that L1 or L2 gave up and nothing below took, or whose time was over in the last
            tier that had them.
        peak_blocks: The most that each held.
        bytes_read: Payload bytes read from each; runs are read whole.
        bytes_written: Payload bytes written into each.
        queued: Predicted seconds in line, `[requests]`.
        first_token: Predicted seconds from arrival to the first token, `[requests]`.
        makespan: Predicted seconds until the last answer is done.
    """

    requests: int
    block_refs: int
    hits: tuple[int, int, int]
    hit_ratio: float
    tokens: int
    recomputed_tokens: int
    left_alone_blocks: int
    evictions: tuple[int, int, int]
    stored_blocks: tuple[int, int, int]
    refused_blocks: tuple[int, int, int]
    lost_blocks: int
    peak_blocks: tuple[int, int, int]
    bytes_read: tuple[int, int, int]
    bytes_written: tuple[int, int, int]
    queued: list[float]
    first_token: list[float]
    makespan: float

    def as_dict(self) -> dict[str, Any]:
        """All counts, and mean, median and 99th percentile of the predicted times, ready for JSON."""
        fields = asdict(self)
        for name in ("queued", "first_token"):
            fields[f"predicted_{name}_seconds"] = _summary(fields.pop(name))
        fields["predicted_makespan_seconds"] = fields.pop("makespan")
        return fields


def _summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {"mean": 0.0, "p50": 0.0, "p99": 0.0}
    last = len(ordered) - 1
    return {
        "mean": sum(ordered) / len(ordered),
        "p50": ordered[last // 2],
        "p99": ordered[round(last * 0.99)],
    }


def run(
    trace: Trace, tiers: Tiers, *, progress: Callable[[int, int], object] | None = None
) -> TiersReplay:
    """Replays a trace over three tiers, at the arrival times that it has.

    Args:
        trace: What to replay.
        tiers: The hierarchy.
        progress: Called now and then and at the end with requests done and in all. What it raises ends
            the replay and is raised here.

    Raises:
        ConfigError: an unknown policy, write policy or way to restore; the message lists the known ones.
        InvalidArgumentError: a capacity or cost that cannot be, or a trace without blocks.
    """
    capacities = (tiers.l1_blocks, tiers.l2_blocks, tiers.l3_blocks)
    for name, capacity in zip(("l1", "l2", "l3"), capacities, strict=True):
        least = 1 if name == "l1" else 0
        if capacity is not None and capacity < least:
            raise InvalidArgumentError(
                f"{name}_blocks = {capacity}: at least {least}; None is a tier that holds all"
            )
    if not trace.info.has_blocks:
        raise InvalidArgumentError(
            f"{trace.info.name} has arrivals and lengths only: there is nothing that could hit; "
            "take a trace with block ids"
        )
    costs = tiers.costs
    reads = [
        (read.latency, read.bandwidth, read.transfers) for read in (costs.l1, costs.l2, costs.l3)
    ]
    policies = (tiers.policy,) * 3 if isinstance(tiers.policy, str) else tiers.policy
    counts = _core.sim_replay_tiers(
        trace.core,
        capacities=capacities,
        policies=policies,
        write_policy=tiers.write_policy,
        restore=tiers.restore,
        costs={
            "prefill": costs.prefill,
            "decode": costs.decode,
            "token_bytes": costs.token_bytes,
            "read": reads,
            "overlap": costs.overlap,
            "concurrency": costs.concurrency,
        },
        progress=progress,
    )
    refs = counts["block_refs"]
    return TiersReplay(
        requests=counts["requests"],
        block_refs=refs,
        hits=tuple(counts["hits"]),
        hit_ratio=sum(counts["hits"]) / refs if refs else 0.0,
        tokens=counts["tokens"],
        recomputed_tokens=counts["recomputed_tokens"],
        left_alone_blocks=counts["left_alone"],
        evictions=tuple(counts["evictions"]),
        stored_blocks=tuple(counts["stored"]),
        refused_blocks=tuple(counts["refused"]),
        lost_blocks=counts["lost"],
        peak_blocks=tuple(counts["peak_blocks"]),
        bytes_read=tuple(counts["bytes_read"]),
        bytes_written=tuple(counts["bytes_written"]),
        queued=counts["queued"],
        first_token=counts["first_token"],
        makespan=counts["makespan"],
    )
