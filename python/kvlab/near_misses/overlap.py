"""What two prompts share, where they part, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kvlab.near_misses.minhash import window_hashes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TEXT_TOKENS = 12
"""Tokens of text shown before and from where two prompts part."""


class Decoder(Protocol):
    """Anything with a `decode`, such as a tokenizer of transformers."""

    def decode(self, token_ids: list[int], /) -> Any:
        """The text of token ids."""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A prompt that was seen before, beside the one that is asked about.

    Attributes:
        label: What it was added under.
        tokens: Tokens of that prompt.
        shared_prefix: Leading tokens that are equal, all that can be reused as it is: the two part at the token of
            this index.
        lost_tokens: Tokens of the prompt behind that which stand in the other one, too, in stretches of at least
            a window: equal, but out of reach.
        similarity: Windows in common over windows in either, estimated by MinHash, 0 to 1.
        changed: ``(start, end)``, the tokens of the prompt from where they part to where they meet again; to the
            end if they do not.
        other_changed: The same in the other prompt.
        advice: What to do, in one sentence.
        before: The text that leads up to where they part; None without a tokenizer.
        here: What the prompt says from there on.
        there: What the other one says.
    """

    label: str
    tokens: int
    shared_prefix: int
    lost_tokens: int
    similarity: float
    changed: tuple[int, int]
    other_changed: tuple[int, int]
    advice: str
    before: str | None = None
    here: str | None = None
    there: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def common_prefix(ids: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    """Leading tokens that are equal."""
    length = min(len(ids), len(other))
    differing = np.flatnonzero(ids[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def compare(
    ids: NDArray[np.uint32],
    other: NDArray[np.uint32],
    *,
    window: int,
    label: str,
    similarity: float,
    tokenizer: Decoder | None,
) -> NearMiss:
    """Set a prompt beside another one; in time of their tokens, sorted."""
    parts = common_prefix(ids, other)
    behind, other_behind = ids[parts:], other[parts:]
    hashes, other_hashes = window_hashes(behind, window), window_hashes(other_behind, window)
    # A window of what both begin with repeats itself: no order of the parts would make it a prefix.
    shared = np.isin(hashes, other_hashes)
    lost = _covered(shared, window)
    end, other_end = len(behind), len(other_behind)
    if lost:
        end = int(np.argmax(shared))
        other_end = int(np.argmax(other_hashes == hashes[end]))
        while end and other_end and behind[end - 1] == other_behind[other_end - 1]:
            end, other_end = end - 1, other_end - 1
    changed, other_changed = (parts, parts + end), (parts, parts + other_end)

    def text(tokens: NDArray[np.uint32]) -> str | None:
        if tokenizer is None or len(tokens) == 0:
            return None
        return str(tokenizer.decode(tokens.tolist()))

    return NearMiss(
        label=label,
        tokens=len(other),
        shared_prefix=parts,
        lost_tokens=lost,
        similarity=similarity,
        changed=changed,
        other_changed=other_changed,
        advice=_advice(lost, changed, other_changed),
        before=text(ids[max(parts - _TEXT_TOKENS, 0) : parts]),
        here=text(behind[:_TEXT_TOKENS]),
        there=text(other_behind[:_TEXT_TOKENS]),
    )


def _covered(starts: NDArray[np.bool_], window: int) -> int:
    """Tokens that the windows with these starts cover together."""
    places = np.flatnonzero(starts)
    if len(places) == 0:
        return 0
    return int(np.minimum(np.diff(places), window).sum()) + window


def _advice(lost: int, changed: tuple[int, int], other_changed: tuple[int, int]) -> str:
    parts, end = changed
    if lost == 0:
        return f"what differs, from token {parts} on, stands at the end already: there is nothing to move"
    gain = f"then up to {parts + lost} tokens can be reused instead of {parts}"
    if end > parts:
        which = (
            f"token {parts} differs" if end == parts + 1 else f"tokens {parts} to {end - 1} differ"
        )
        return (
            f"{which}, and {lost} tokens behind are the same again: move what changes behind what stays, "
            f"to the end of the prompt; {gain}"
        )
    return (
        f"the other prompt has {other_changed[1] - parts} tokens at token {parts} that this one has not there, "
        f"and {lost} tokens that follow are the same: keep what stays in one order and what changes at the end; {gain}"
    )
