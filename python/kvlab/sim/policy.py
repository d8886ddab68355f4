"""Policies of your own, in Python, for page mode.

The hooks are those of kv-hierarchy-lab's policies. `docs/adding-a-policy.md` shows one from the
start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvlab._core import PolicyContext
    from kvlab.sim.workloads.pages import Page

__all__ = ["PolicyBase"]


class PolicyBase:
    """A policy that evicts the page of the lowest score, the one longest in its tier among equals.

    Override what you need; a subclass with nothing but `score_page` is a policy. One object serves
    all tiers of one run: give `sweep` the class, or a function that makes one, so that each run has
    a fresh one. The context is the same object all along and says what is so during the call.

    What a hook raises ends the run and comes out of `simulate` as it was raised. Each hook that is
    overridden costs about a microsecond a call; choosing a victim is O(n) in the tier's pages.

    Attributes:
        name: What the policy is called in results; the name of the class if it is empty.
    """

    name: str = ""

    def on_access(self, context: PolicyContext, page: Page, hit_tier: str | None) -> None:
        """A page is used. `hit_tier` is the fastest tier that it is in; None if it is in none."""

    def on_miss(self, context: PolicyContext, page: Page) -> None:
        """The page that is used is not in the first tier."""

    def on_insert(self, context: PolicyContext, page: Page, tier: str) -> None:
        """A page came into the first tier, or into the last because it was in none."""

    def on_evict(self, context: PolicyContext, page: Page, tier: str) -> None:
        """A page was evicted from a tier: it goes one tier down, or is dropped from the last."""

    def on_promote(self, context: PolicyContext, page: Page, source: str, target: str) -> None:
        """A page was moved up."""

    def select_eviction_candidate(
        self, context: PolicyContext, tier: str, candidates: Sequence[Page], incoming: Page
    ) -> Page:
        """The page that leaves `tier` so that `incoming` fits.

        Args:
            context: What is so now.
            tier: The tier that needs room.
            candidates: Its pages, the one that came first at the front; never empty.
            incoming: The page that needs the room.

        Returns:
            One of the candidates. Anything else is an `InvalidArgumentError`.
        """
        return min(candidates, key=lambda page: self.score_page(context, page, tier))

    def maybe_prefetch(self, context: PolicyContext, page: Page) -> Iterable[int]:
        """Numbers of pages to fetch to the first tier after the use of `page`, the likeliest first.

        Asked after each access of a scenario with prefetch; the first 2 are followed, or what the
        scenario says. A number that is no page is an `InvalidArgumentError`.
        """
        return ()

    def score_page(self, context: PolicyContext, page: Page, tier: str) -> float:
        """What the page is worth in the tier; the lowest goes first."""
        return 0.0
