"""Pages and the order in which they are used: what page mode replays."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from kvlab.errors import InvalidArgumentError
from kvlab.sim.schemes import SchemePlan, footprint

__all__ = ["Access", "Metadata", "Page", "PageWorkload", "build_pages"]

PAGE_TOKENS = 16
"""Tokens of a page."""

LAYERS = 16
HEAD_GROUPS = 8

Metadata: TypeAlias = Mapping[str, str | int | float]
"""Whatever a trace says of a row besides."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of KV cache.

    Attributes:
        id: Its number: its place among the workload's pages.
        tokens: The first token that it holds, and the first behind it.
        layer: The layer that it belongs to.
        head_group: The group of KV heads.
        size_bytes: Its size as it is stored.
        scheme: How it is stored: one of `kvlab.sim.schemes.SCHEMES`.
        tier: The tier that it lies in before the first access; None if it is in none.
    """

    id: int
    tokens: tuple[int, int]
    layer: int
    head_group: int
    size_bytes: int
    scheme: str
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """One row of a page trace.

    Attributes:
        step: When, in steps; never less than in the row before.
        page: The page that is used.
        sequence: The sequence that it is used for.
        prefetch_hint: The page is not used: whoever wrote the trace says that it will be.
        metadata: Anything else.
    """

    step: int
    page: int
    sequence: str = "seq-0"
    prefetch_hint: bool = False
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PageWorkload:
    """Pages, and a trace of their uses in columns.

    Attributes:
        name: What it is called in results.
        pages: The pages, by number.
        trace: The page of each row.
        steps: The step of each row; None for 0, 1, 2 and so on.
        sequences: The sequence of each row; None for one sequence.
        hints: The rows that are prefetch hints.
        metadata: What else is said of a row, by row.
        seed: What its random choices came from; None if from nothing.
    """

    name: str
    pages: Sequence[Page]
    trace: Sequence[int]
    steps: Sequence[int] | None = None
    sequences: Sequence[str] | None = None
    hints: frozenset[int] = frozenset()
    metadata: Mapping[int, Metadata] = field(default_factory=dict)
    seed: int | None = None

    def accesses(self) -> Iterator[Access]:
        """The trace row by row."""
        for row, page in enumerate(self.trace):
            yield Access(
                step=row if self.steps is None else self.steps[row],
                page=page,
                sequence="seq-0" if self.sequences is None else self.sequences[row],
                prefetch_hint=row in self.hints,
                metadata=self.metadata.get(row, {}),
            )

    @classmethod
    def of(
        cls, name: str, pages: Sequence[Page], accesses: Sequence[Access], seed: int | None = None
    ) -> PageWorkload:
        """A workload from rows.

        Raises:
            InvalidArgumentError: a page's id is not its place.
        """
        for place, page in enumerate(pages):
            if page.id != place:
                message = f"page {page.id} stands at place {place}; number the pages from 0 on"
                raise InvalidArgumentError(message)
        return cls(
            name=name,
            pages=pages,
            trace=[access.page for access in accesses],
            steps=[access.step for access in accesses],
            sequences=[access.sequence for access in accesses],
            hints=frozenset(row for row, access in enumerate(accesses) if access.prefetch_hint),
            metadata={
                row: access.metadata for row, access in enumerate(accesses) if access.metadata
            },
            seed=seed,
        )


def build_pages(
    num_pages: int, base_scalars: int, scheme: str | SchemePlan, seed: int
) -> list[Page]:
    """Pages of about `base_scalars` numbers each, 64 more or less, drawn as kv-hierarchy-lab does.

    Raises:
        ConfigError: an unknown scheme.
        InvalidArgumentError: fewer than 1 page.
    """
    if num_pages < 1:
        message = f"num_pages = {num_pages}; use at least 1"
        raise InvalidArgumentError(message)
    plan = scheme if isinstance(scheme, SchemePlan) else SchemePlan.parse(scheme)
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    pages = []
    for index in range(num_pages):
        layer, head_group = index % LAYERS, index % HEAD_GROUPS
        name = plan.of(layer, head_group)
        scalars = max(1, base_scalars + rng.randint(-64, 64))
        tokens = (index * PAGE_TOKENS, (index + 1) * PAGE_TOKENS)
        pages.append(Page(index, tokens, layer, head_group, footprint(scalars, name), name))
    return pages


def trace_of(pages: Iterable[int]) -> array[int]:
    """Page numbers in a row of 32 bits each."""
    return array("I", pages)
