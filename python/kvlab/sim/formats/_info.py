"""What an importer tells of its trace beside the requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlab.sim.request import Request

__all__ = ["Source", "TraceInfo"]


@dataclass(slots=True)
class TraceInfo:
    """What a trace's ids and columns mean. Complete once the requests were read to the end.

    Attributes:
        name: What is read, for titles.
        block_tokens: Tokens of a block, 0 if they differ or are unknown.
        block_lengths: Tokens of each block by its id, where they differ and are known.
        prefix_ids: Whether an id stands for a block and all before it. If not, it stands for content
            that may come back behind other blocks.
        has_blocks: Whether there are ids at all. Without, a trace has arrivals and lengths only, and
            no hit ratio.
        notes: What a reader should know: what was sorted, cut, filled in or left out, and how often.
    """

    name: str
    block_tokens: int = 0
    block_lengths: Mapping[int, int] | None = None
    prefix_ids: bool = True
    has_blocks: bool = True
    notes: list[str] = field(default_factory=list)


class Source:
    """Requests of a trace, to be iterated once, and what is known of them."""

    def __init__(self, info: TraceInfo, requests: Iterator[Request]) -> None:
        self.info = info
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return self._requests
