"""Prompts as block ids: what generators of requests build on."""

from __future__ import annotations

import hashlib
from typing import Self

from kvlab.errors import InvalidArgumentError

__all__ = ["Prompt"]


class Prompt:
    """A prompt that grows by named pieces of text, cut into blocks.

    A block's id is a hash of all that came up to its end, so two prompts share ids exactly as far
    as they share their pieces. A piece is its name and its length; equal names are equal text.

    Args:
        block_tokens: Tokens of a block.

    Raises:
        InvalidArgumentError: blocks of fewer than 1 token.
    """

    def __init__(self, block_tokens: int = 16) -> None:
        if block_tokens < 1:
            message = f"block_tokens = {block_tokens}; use at least 1"
            raise InvalidArgumentError(message)
        self._block_tokens = block_tokens
        self._blocks: list[int] = []
        # What stands in the block that is not full: each piece's name with its first token there
        # and the first behind it.
        self._open: list[tuple[str, int, int]] = []
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._tokens

    def append(self, name: str, tokens: int) -> Self:
        """Adds a piece of text; gives the prompt back."""
        at = 0
        while at < tokens:
            room = self._block_tokens - self._tokens % self._block_tokens
            taken = min(room, tokens - at)
            self._open.append((name, at, at + taken))
            self._tokens += taken
            at += taken
            if taken == room:
                self._blocks.append(self._close())
                self._open = []
        return self

    def blocks(self) -> tuple[int, ...]:
        """The blocks' ids, 0 to 2**64 - 1; the last may be of a block that is not full."""
        if self._open:
            return (*self._blocks, self._close())
        return tuple(self._blocks)

    def fork(self) -> Prompt:
        """A copy that grows on its own."""
        copy = Prompt(self._block_tokens)
        copy._blocks = self._blocks.copy()
        copy._open = self._open.copy()
        copy._tokens = self._tokens
        return copy

    def _close(self) -> int:
        parent = self._blocks[-1] if self._blocks else 0
        content = repr((parent, self._open)).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
