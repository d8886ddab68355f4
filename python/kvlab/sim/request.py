"""One request of a trace: what generators and importers give, and what replays take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, as the blocks that it consists of.

    Attributes:
        at_ms: When it arrives, in milliseconds from the start of the trace; never before the one
            that precedes it in the trace.
        blocks: Ids of its blocks from the first token on, each 0 to 2**64 - 1. Equal ids are equal
            content behind equal blocks: an id names the whole prefix up to and with its block.
        tokens: Tokens of the prompt. The last block may be partial.
        output_tokens: Tokens that were generated.
        session: The conversation that it belongs to, if known.
        category: What kind of request it is; empty if unknown.
    """

    at_ms: float
    blocks: Sequence[int]
    tokens: int
    output_tokens: int = 0
    session: str | None = None
    category: str = ""
