"""Block ids of a list of tokens: hashed in a chain, so that an id names its block and all before it."""

from __future__ import annotations

import hashlib
import sys
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["chain_ids"]


def chain_ids(tokens: Sequence[int], block_tokens: int, salt: bytes = b"") -> list[int]:
    """Ids of the full blocks of a prompt; what is left over at the end has none, as in an engine.

    Args:
        tokens: Each 0 to 2**32 - 1.
        block_tokens: Tokens of a block.
        salt: What prompts must have in common beside their tokens, such as an adapter.

    Raises:
        OverflowError: a token is out of range.
    """
    words = array("I", tokens)
    if sys.byteorder == "big":
        words.byteswap()
    text = words.tobytes()
    step = block_tokens * words.itemsize
    parent = hashlib.blake2b(salt, digest_size=16).digest() if salt else b""
    ids = []
    for end in range(step, len(text) + 1, step):
        parent = hashlib.blake2b(parent + text[end - step : end], digest_size=16).digest()
        ids.append(int.from_bytes(parent[:8], "little"))
    return ids
