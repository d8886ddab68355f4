"""Why a prompt hits or misses: what is cached of it, and where it leaves what is cached."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from kvlab._core import PrefixCache
    from kvlab._types import Choice, PromptExplanation

_TEXT_TOKENS = 12
"""Tokens of text shown from where a prompt diverges."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of the prompt that one tier holds.

    Attributes:
        tier: ``"l1"``, ``"l2"``, ``"l3"``, ``"l4"``, ``"pending"`` (accepted for L3, not written
            yet), or None: nowhere.
        start: The first token.
        end: The token behind the last one.
        bytes: KV bytes that a restore brings from there.
    """

    tier: str | None
    start: int
    end: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the prompt leaves what is cached.

    Attributes:
        first: The first token that can differ.
        last: The last token that can be the first to differ: the same as ``first`` where the other
            tokens are known. On disk only keys of whole blocks are, so there it is the block's end.
        text: What the prompt says from ``first`` on; None without a tokenizer.
        other: What the closest cached prompt says there; None where it is not known or ends.
    """

    first: int
    last: int
    text: str | None = None
    other: str | None = None


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The same tokens under another namespace: another model, dtype, setting or salt.

    Attributes:
        namespace: In hexadecimal digits.
        tokens: Leading tokens of the prompt that are cached there.
    """

    namespace: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TierShare:
    """What a restore of the matched tokens brings from one tier.

    Attributes:
        tokens: How many.
        bytes: KV bytes.
    """

    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a request with ``restore="auto"`` is predicted to do and to take, by the costs learnt so far.

    Attributes:
        restored_tokens: Tokens that it would restore, L1's included.
        restore_ms: Milliseconds to restore all matched tokens; None where too little was measured.
        compute_ms: Milliseconds to compute instead what of them is below L1; None as above.
        decision: What it would do, in one sentence.
    """

    restored_tokens: int
    restore_ms: float | None
    compute_ms: float | None
    decision: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is cached of a prompt, and why the rest is not reused.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        reusable_tokens: The most that can be reused: whole steps (blocks, or chunks of the grid)
            before the last token, which is always computed.
        matched_tokens: What a request would find now.
        spans: Where each part of the reusable tokens is, in order.
        divergence: Where the prompt leaves what is cached; None if all of it that can be reused is.
        unreachable_tokens: Cached tokens behind the first one that is missing: of no use without it.
        elsewhere: Other namespaces that have the beginning of this prompt.
        tiers: By tier, the matched tokens that a restore would bring from there.
        forecast: What a restore would cost, and whether it would be done.
        reason: Why it hits or misses, in one sentence.
    """

    prompt_tokens: int
    reusable_tokens: int
    matched_tokens: int
    spans: tuple[Span, ...]
    divergence: Divergence | None
    unreachable_tokens: int
    elsewhere: tuple[Elsewhere, ...]
    tiers: dict[str, TierShare]
    forecast: Forecast
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def explain(
    cache: PrefixCache,
    namespace: bytes,
    ids: NDArray[np.int64],
    *,
    forward_key: bytes,
    grid: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    against: NDArray[np.int64] | None = None,
) -> Explanation:
    """Look a prompt up without using anything: no lock is taken, no recency changes.

    Args:
        cache: The prefix cache of the model's layout.
        namespace: 32 bytes, as of `Session.namespace`.
        ids: ``[tokens]``, the prompt.
        forward_key: 32 bytes that stand for what a forward's time depends on.
        grid: The chunk grid in tokens; 0 for none.
        tokenizer: Turns tokens into the text of the answer.
        against: ``[tokens]``, a prompt that was expected to share its beginning with this one. It
            tells the divergence to the token where only keys are known.

    Returns:
        The explanation.

    Raises:
        InvalidArgumentError: The prompt is empty.
        StoreClosedError: The store is closed.
    """
    found = cache.explain(ids, namespace, forward_key, grid=grid)
    block, block_bytes = cache.layout.block_tokens, cache.layout.block_bytes
    step = max(grid, block)
    reusable = (len(ids) - 1) // step * step
    tiers = _tiers(found, reusable // block, block)
    hit = next((index for index, tier in enumerate(tiers) if tier is None), len(tiers)) * block
    matched = hit // step * step
    spans = tuple(_spans(tiers, block, block_bytes))
    divergence = None
    if matched < reusable:
        divergence = _divergence(found, ids, hit, block, against=against, tokenizer=tokenizer)
    unreachable = sum(span.end - span.start for span in spans if span.tier and span.start > hit)
    elsewhere = tuple(
        Elsewhere(other.hex(), blocks * block) for other, blocks in found["elsewhere"]
    )
    reason = _reason(
        len(ids),
        reusable,
        matched,
        step,
        divergence=divergence,
        unreachable=unreachable,
        elsewhere=elsewhere,
    )
    return Explanation(
        prompt_tokens=len(ids),
        reusable_tokens=reusable,
        matched_tokens=matched,
        spans=spans,
        divergence=divergence,
        unreachable_tokens=unreachable,
        elsewhere=elsewhere,
        tiers=_shares(tiers[: matched // block], block, block_bytes),
        forecast=_forecast(found["choice"], matched),
        reason=reason,
    )


def _shares(tiers: Sequence[str | None], block: int, block_bytes: int) -> dict[str, TierShare]:
    counts = Counter(tier for tier in tiers if tier is not None)
    return {
        tier: TierShare(blocks * block, blocks * block_bytes) for tier, blocks in counts.items()
    }


def _forecast(choice: Choice, matched: int) -> Forecast:
    tokens, whole, none = choice["tokens"], choice["all"], choice["none"]
    if matched == 0:
        return Forecast(0, None, None, "there is nothing to restore")
    if whole is None or none is None:
        decision = "all is restored: too little was measured to weigh reading against computing"
        return Forecast(tokens, None, None, decision)
    restore_ms = whole["restore_ms"]
    compute_ms = none["prefill_ms"] - whole["prefill_ms"]
    if choice["left"] is None:
        decision = "all is restored"
    else:
        part = f"the first {tokens} tokens are restored" if tokens else "nothing is restored"
        decision = f"{part}, {matched - tokens} are computed again: that is quicker"
    return Forecast(tokens, restore_ms, compute_ms, decision)


def _tiers(found: PromptExplanation, blocks: int, block: int) -> list[str | None]:
    """The highest tier of each reusable block."""
    in_l1 = found["l1"]["matched"] // block
    return ["l1" if index < in_l1 else found["below"][index] for index in range(blocks)]


def _spans(tiers: Sequence[str | None], block: int, block_bytes: int) -> list[Span]:
    spans, start = [], 0
    for tier, group in groupby(tiers):
        blocks = len(list(group))
        end = start + blocks * block
        spans.append(Span(tier, start, end, blocks * block_bytes if tier else 0))
        start = end
    return spans


def _divergence(
    found: PromptExplanation,
    ids: NDArray[np.int64],
    hit: int,
    block: int,
    *,
    against: NDArray[np.int64] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Divergence:
    def text(tokens: NDArray[np.int64] | list[int]) -> str | None:
        if tokenizer is None or len(tokens) == 0:
            return None
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))

    if against is not None:
        length = min(len(ids), len(against))
        differing = np.flatnonzero(ids[:length] != against[:length])
        first = int(differing[0]) if len(differing) else length
        return Divergence(
            first,
            first,
            text(ids[first : first + _TEXT_TOKENS]),
            text(against[first : first + _TEXT_TOKENS]),
        )
    known = found["l1"]["common"]
    if known > hit:
        cached = found["l1"]["cached"]
        other = text([] if cached is None else [cached])
        return Divergence(known, known, text(ids[known : known + _TEXT_TOKENS]), other)
    last = min(hit + block, len(ids)) - 1
    return Divergence(hit, last, text(ids[hit : hit + _TEXT_TOKENS]))


def _reason(
    prompt: int,
    reusable: int,
    matched: int,
    step: int,
    *,
    divergence: Divergence | None,
    unreachable: int,
    elsewhere: tuple[Elsewhere, ...],
) -> str:
    if reusable == 0:
        return (
            f"nothing can be reused: the prompt has no {step} tokens before its last one, "
            "and less is not cached"
        )
    if divergence is None:
        return (
            f"{matched} of {prompt} tokens are cached: all that can be reused; the last token, and "
            f"what is left of {step} tokens, are always computed"
        )
    where = (
        f"token {divergence.first}"
        if divergence.first == divergence.last
        else f"one of the tokens {divergence.first} to {divergence.last}"
    )
    reason = f"{matched} of {prompt} tokens are cached; {where} is the first that is not"
    if divergence.text is not None:
        reason += f": the prompt goes on with {divergence.text!r}"
        if divergence.other is not None:
            reason += f", what is cached with {divergence.other!r}"
    if unreachable:
        reason += f"; {unreachable} tokens behind it are cached, but cannot be reached without it"
    if elsewhere:
        best = max(elsewhere, key=lambda other: other.tokens)
        reason += (
            f"; {best.tokens} tokens of it are cached under another namespace "
            f"({best.namespace[:12]}): another model, dtype, thread count, setting or salt"
        )
    return reason
