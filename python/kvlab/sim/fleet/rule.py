"""Restore or compute: the live rule (core/src/cost), for one tier that others use, too.

The rule is not to be had from Rust without a store, so it is written down here again: its margin, its trials and what
it does where it leaves a tier alone. A test holds it against the replay of three tiers, which runs the live one. What
it goes by is learnt in a simpler way than live: the median of the last reads' times against what a free network would
have taken.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Cut", "Learnt", "weigh"]

MARGIN_SECONDS = 0.002
MARGIN_SHARE = 0.05
TRIAL_REQUESTS = 16
TRIAL_SHARE = 0.05
_REMEMBERED = 9


class Cut(NamedTuple):
    """Somewhere to stop restoring.

    Attributes:
        blocks: Fetched from L4.
        restore: Predicted seconds to read them.
        total: Predicted seconds to the first token.
    """

    blocks: int
    restore: float
    total: float


def weigh(cuts: Sequence[Cut]) -> tuple[Cut, Cut | None]:
    """The cut to take, and, if that is not all, the next one.

    Args:
        cuts: The shortest first: nothing; the last: all.
    """
    everything = cuts[-1]
    cheapest = min(reversed(cuts), key=lambda cut: cut.total)
    if everything.total - cheapest.total <= max(MARGIN_SECONDS, MARGIN_SHARE * everything.total):
        return everything, None
    return cheapest, next(cut for cut in cuts if cut.blocks > cheapest.blocks)


class Learnt:
    """What one machine believes of L4: how slow it is, and when to try it again."""

    __slots__ = (
        "_credit",
        "_promising",
        "_ratios",
        "_requests",
        "_share",
        "leaves_alone",
        "slower",
    )

    def __init__(self) -> None:
        self.slower = 1.0
        self.leaves_alone = False
        self._ratios: deque[float] = deque(maxlen=_REMEMBERED)
        self._forget_trial(promising=False)

    def _forget_trial(self, *, promising: bool) -> None:
        self._requests = 0
        self._credit = 0.0
        self._share = 0.0
        self._promising = promising

    def asks(self) -> bool:
        """Whether a request asks L4 at all: where the last one left all alone, one in 16 does."""
        if not self.leaves_alone or self._promising or self._requests + 1 >= TRIAL_REQUESTS:
            return True
        self._requests += 1
        self._credit += self._share
        return False

    def choose(self, cuts: Sequence[Cut]) -> Cut:
        """The cut that is taken: the rule's, or a look at what it leaves alone if one is due."""
        chosen, following = weigh(cuts)
        if following is None:
            self.leaves_alone = False
            return chosen
        self._requests += 1
        self._share = TRIAL_SHARE * chosen.total
        self._credit += self._share
        due = self._requests >= TRIAL_REQUESTS and self._credit >= following.total - chosen.total
        if self._promising or due:
            chosen = following
        self.leaves_alone = chosen.blocks == 0
        return chosen

    def read(self, ideal: float, predicted: float, seconds: float) -> None:
        """A read took so long, where a free network would have taken `ideal` and `predicted` was expected."""
        self._ratios.append(seconds / ideal)
        self.slower = statistics.median(self._ratios)
        self._forget_trial(promising=seconds < predicted / 2)
