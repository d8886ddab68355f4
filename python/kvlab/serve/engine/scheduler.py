"""Whose turn it is, and who waits for whom. Nothing here touches a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

OLDEST_EVERY = 4
"""So many chunks at most go to other prompts before the oldest one gets one."""
_WORTH = 4
"""A prefix is waited for if it has at least one in so many of the tokens that are computed until it is there."""


def next_prefill(left: Sequence[int], turn: int) -> int:
    """Which of several prompts gets the next chunk.

    The one with the fewest tokens left, because that makes the mean wait for a first token shortest;
    but every `OLDEST_EVERY`-th chunk goes to the oldest, so that none waits for ever.

    Args:
        left: Tokens to compute of each prompt, the oldest first; at least one prompt.
        turn: Counts the chunks.

    Returns:
        Its place in ``left``.
    """
    if turn % OLDEST_EVERY == OLDEST_EVERY - 1:
        return 0
    return min(range(len(left)), key=lambda place: left[place])


def shared_prefix(one: NDArray[np.int64], other: NDArray[np.int64], step: int) -> int:
    """The tokens of ``one`` that a cache of ``other`` can answer.

    Args:
        one: ``[tokens]``, the prompt to be answered, whose last token is always computed.
        other: ``[tokens]``.
        step: Tokens in a block, or of the chunk grid.

    Returns:
        A multiple of ``step``.
    """
    length = min(len(one) - 1, len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    common = int(differ[0]) if len(differ) else length
    return common // step * step


def worth_waiting(shared: int, *, restored: int, rows: int, prompt: int, chunk: int) -> bool:
    """Whether a request that has a prefix in common with one that is being computed should wait for it.

    Args:
        shared: Tokens in common, whole blocks.
        restored: Tokens that the other one did not have to compute: whoever waits would find them, too.
        rows: Tokens of the other one whose KV is there.
        prompt: Tokens of its prompt.
        chunk: Tokens of a forward: nothing can be had before its end.
    """
    missing = shared - rows
    until_there = min(-(-missing // chunk) * chunk, prompt - rows)
    return missing > 0 and (shared - restored) * _WORTH >= until_there
