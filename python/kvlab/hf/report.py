"""What one request reused, computed and cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HitTokens:
    """Prompt tokens by the tier they came from."""

    l1: int = 0
    l2: int = 0
    l3: int = 0
    l4: int = 0

    @property
    def total(self) -> int:
        """All tiers together."""
        return self.l1 + self.l2 + self.l3 + self.l4


@dataclass(frozen=True, slots=True)
class Report:
    """One request, in tokens, bytes and milliseconds.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        found_tokens: Tokens that were there to be restored, by tier.
        hit_tokens: Tokens restored, by tier.
        computed_tokens: Prompt tokens the model computed; with ``hit_tokens`` they add up to the
            prompt.
        blocks_reused: Whole blocks that were restored instead of computed.
        bytes_read: Payload bytes read from L2, L3 and L4.
        lookup_ms: Match, lock and directory lookup.
        restore_ms: From the start of the restore until all restored bytes stood verified in the
            cache buffer. The forward begins meanwhile, so it overlaps with ``prefill_ms``.
        restore_wait_ms: What the forward waited for restored layers: the part of the restore that
            the computation did not hide.
        prefill_ms: The forward over the rest of the prompt, up to the first token's logits; its
            waits and an aborted forward included.
        ttft_ms: From the call to the first token's logits: lookup, ``prefill_ms`` and the checks
            around them.
        predicted_ms: What ``prefill_ms`` was predicted to be; None where too little was measured
            yet, or where `attach` was told what to do.
        recomputed: Why found tokens were computed again instead of restored, or None if none were.
        missed: Why the tokens that were not restored had to be computed.
        fallback: Why the request was left to plain transformers, or None.
        not_kept: Why its tokens were not handed over to be cached, or None.
        resident: Whether the hit tokens still stood in their cache buffer, so that nothing was
            copied; they count as L1's.
        aborted_forwards: Forwards that were given up and computed again because a restored layer
            could not be read (0 or 1).
    """

    prompt_tokens: int
    found_tokens: HitTokens = field(default_factory=HitTokens)
    hit_tokens: HitTokens = field(default_factory=HitTokens)
    computed_tokens: int = 0
    blocks_reused: int = 0
    bytes_read: int = 0
    lookup_ms: float = 0.0
    restore_ms: float = 0.0
    restore_wait_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    predicted_ms: float | None = None
    recomputed: str | None = None
    missed: str = ""
    fallback: str | None = None
    not_kept: str | None = None
    resident: bool = False
    aborted_forwards: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
