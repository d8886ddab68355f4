"""What a restore brought, and what reads and forwards were learnt to cost."""

from __future__ import annotations

from typing import Literal, TypedDict


class Restored(TypedDict):
    """What a restore brought.

    Attributes:
        tokens: Tokens that stand in the buffer now, as `(l1, l2, l3, l4)`; the tiers' parts need not
            be in that order below L1.
        l2_bytes: Payload bytes read from L2.
        l3_bytes: Payload bytes read from L3.
        l4_bytes: Payload bytes read from L4.
        l1_ms: Milliseconds until the L1 blocks were copied.
        below_ms: Milliseconds until the last byte from the tiers below was there and verified.
        ms: Milliseconds until all was there; what the caller computed meanwhile lies inside.
        failure: Why fewer tokens came than were found; None if all came.
    """

    tokens: tuple[int, int, int, int]
    l2_bytes: int
    l3_bytes: int
    l4_bytes: int
    l1_ms: float
    below_ms: float
    ms: float
    failure: str | None


class Cut(TypedDict):
    """What is predicted for restoring a part of what was found.

    Attributes:
        tokens: Tokens restored.
        restore_ms: Milliseconds to read them.
        prefill_ms: Milliseconds to compute the rest of the prompt.
        ms: Milliseconds of both, as far as they do not overlap.
    """

    tokens: int
    restore_ms: float
    prefill_ms: float
    ms: float


class Choice(TypedDict):
    """How much of a found prefix is restored, and why.

    Attributes:
        tokens: Tokens to restore.
        reason: `"asked"` (always or never), `"not_measured"` (everything, until enough was),
            `"cheapest"`, or `"trial"` (a run more than that, to see whether its tier became faster).
        predicted: What is predicted for that; None where it was not measured or not needed.
        all: The same for restoring everything.
        none: The same for restoring nothing below L1.
        left: The tier of the first token that is left alone; None if all are restored.
    """

    tokens: int
    reason: Literal["asked", "not_measured", "cheapest", "trial"]
    predicted: Cut | None
    all: Cut | None
    none: Cut | None
    left: str | None


class ReadCost(TypedDict):
    """What reading from a tier takes: latency and bytes over rate.

    Attributes:
        observations: Reads remembered.
        learnt: Whether these are enough; until then the figures are what is assumed.
        latency_us: Microseconds of a read, whatever its size.
        gb_per_s: 10^9 bytes a second; None where size makes no difference.
    """

    observations: int
    learnt: bool
    latency_us: float
    gb_per_s: float | None


class PrefillCost(TypedDict):
    """What a model's forward takes.

    Attributes:
        observations: Forwards remembered.
        learnt: Whether these are enough; until then the figures are what is assumed.
        fixed_ms: Milliseconds of a forward, whatever its size.
        tokens_per_s: Tokens a second beyond that, without context; None where number makes no
            difference.
        us_per_1k_context: Microseconds that a token takes more for each 1,000 tokens before it.
    """

    observations: int
    learnt: bool
    fixed_ms: float
    tokens_per_s: float | None
    us_per_1k_context: float


class ChoiceCounts(TypedDict):
    """What `restore="auto"` came to, since the store was opened.

    Attributes:
        all: Requests that restored everything found, being cheapest or near to it.
        part: Requests that restored a part.
        none: Requests that restored nothing below L1, though something was found.
        trials: Requests that restored a run more than was cheapest, to see whether its tier became
            faster.
        not_measured: Requests that restored everything because too little was measured.
        asked: Requests that were told what to do.
        recomputed_tokens: Found tokens that were computed again, all requests together.
    """

    all: int
    part: int
    none: int
    trials: int
    not_measured: int
    asked: int
    recomputed_tokens: int


class CostStats(TypedDict):
    """What was learnt at run time, now and in earlier runs of the store.

    Attributes:
        read: By tier.
        prefill: By a digest of model, dtype, attention, threads and library versions.
        overlap: The share of the shorter of restore and forward that the other one hides, 0 to 1.
        choices: What was decided by it.
    """

    read: dict[str, ReadCost]
    prefill: dict[str, PrefillCost]
    overlap: float
    choices: ChoiceCounts
