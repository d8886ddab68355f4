"""KV bytes that only one prefix of one namespace has, written to and checked in cache buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kvlab import KvLayout, PrefixCache
from kvlab._core import CacheBuffer, Request

# Odd in every way: K and V differ, rows have odd lengths, no power of two anywhere.
LAYERS = ((1, 131, 2, 67), (3, 77, 1, 301))
K = 5
LAYOUT = KvLayout(LAYERS, element_bytes=1, block_tokens=K)


@cache
def rows_of(namespace: bytes, prefix: tuple[int, ...]) -> NDArray[np.uint8]:
    """The KV bytes of the last token of a prefix, over all layers."""
    seed = hashlib.sha256(namespace + np.array(prefix, "<u4").tobytes())
    return np.frombuffer(hashlib.shake_128(seed.digest()).digest(LAYOUT.token_bytes), np.uint8)


def data_of(buffer: CacheBuffer) -> NDArray[np.uint8]:
    """All bytes of a buffer, without a copy."""
    return np.frombuffer(memoryview(buffer), np.uint8)


def views(buffer: CacheBuffer) -> list[NDArray[np.uint8]]:
    """K and V of every layer, `[heads, capacity, dim]` each."""
    flat = data_of(buffer)
    found = []
    for (k_heads, k_dim, v_heads, v_dim), starts in zip(LAYERS, buffer.offsets(), strict=True):
        for start, heads, dim in zip(starts, (k_heads, v_heads), (k_dim, v_dim), strict=True):
            size = heads * buffer.capacity * dim
            found.append(flat[start : start + size].reshape(heads, buffer.capacity, dim))
    return found


def pack(buffer: CacheBuffer, position: int) -> NDArray[np.uint8]:
    """The bytes of one token in a buffer, over all layers."""
    return np.concatenate([view[:, position].ravel() for view in views(buffer)])


def poison(buffer: CacheBuffer) -> None:
    """Makes sure that what is found in a buffer later was put there later."""
    data_of(buffer)[:] = 0xEE


def compute(buffer: CacheBuffer, namespace: bytes, tokens: Sequence[int], start: int) -> None:
    """Stands in for a model: writes the KV of `tokens[start:]`."""
    for position in range(start, len(tokens)):
        rows, at = rows_of(namespace, tuple(tokens[: position + 1])), 0
        for view in views(buffer):
            heads, _, dim = view.shape
            view[:, position] = rows[at : at + heads * dim].reshape(heads, dim)
            at += heads * dim


def holds(buffer: CacheBuffer, namespace: bytes, tokens: Sequence[int], end: int) -> bool:
    """Whether a buffer has the KV of `tokens[:end]`."""
    return all(
        np.array_equal(pack(buffer, at), rows_of(namespace, tuple(tokens[: at + 1])))
        for at in range(end)
    )


def restored(request: Request, buffer: CacheBuffer) -> tuple[int, int, int, int]:
    """Restores into a poisoned buffer; the tokens that came, by tier."""
    poison(buffer)
    return request.restore(buffer)["tokens"]


def serve(
    cache: PrefixCache, namespace: bytes, prompt: Sequence[int], more: Sequence[int] = ()
) -> tuple[int, int, int, int]:
    """One request from begin to close; the tokens that it reused, by tier."""
    tokens = [*prompt, *more]
    request = cache.begin(prompt, namespace)
    buffer = cache.lease(len(tokens))
    tiers = restored(request, buffer)
    assert sum(tiers) < len(prompt)
    assert holds(buffer, namespace, prompt, sum(tiers))
    compute(buffer, namespace, tokens, sum(tiers))
    request.commit(tokens, buffer)
    assert request.wait_committed()
    request.close()
    return tiers
