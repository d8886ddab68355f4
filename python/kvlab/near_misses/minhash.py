"""Hashes of a prompt's windows, and sketches by which the likeness of two prompts is estimated.

A window is a block's worth of consecutive tokens at any position, so that text which moved by a few tokens is still
found: the shingles of Broder, "On the resemblance and containment of documents" (1997). A sketch keeps the smallest
value of each of some random permutations of the hashes. Two sketches agree at a place with the probability that is the
two prompts' Jaccard similarity: windows in common over windows in either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.uint32]
    Hashes = NDArray[np.uint64]
    Sketch = NDArray[np.uint64]

PERMUTATIONS = 64
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_RANDOM = np.random.default_rng(0x6B766C6162)  # the same in every process
# Odd factors, so that each permutes the 64-bit numbers.
_FACTORS = _RANDOM.integers(0, 1 << 63, PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _RANDOM.integers(0, 1 << 63, PERMUTATIONS, dtype=np.uint64)


def window_hashes(ids: Tokens, window: int) -> Hashes:
    """A 64-bit hash of each ``window`` consecutive tokens, ``[tokens - window + 1]``; none of fewer tokens."""
    count = max(len(ids) - window + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    wide = ids.astype(np.uint64) + np.uint64(1)
    for place in range(window if count else 0):
        hashes = hashes * _MULTIPLIER + wide[place : place + count]
    # The finaliser of splitmix64 (Steele, Lea, Flood, 2014): neighbours' hashes have nothing in common then.
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def sketch(hashes: Hashes) -> Sketch:
    """The smallest value of each permutation, ``[PERMUTATIONS]``; the largest number there is for no hashes."""
    smallest = np.full(PERMUTATIONS, np.iinfo(np.uint64).max)
    if len(hashes) == 0:
        return smallest
    pairs = zip(_FACTORS, _OFFSETS, strict=True)
    for place, (factor, offset) in enumerate(pairs):
        smallest[place] = (hashes * factor + offset).min()
    return smallest
