"""2.1: a radix cache against brute force. Without the learner's own, kvlab's core is what is held against it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from kvlab import PagedAllocator, RadixCache
from kvlab.course.checks import Mine, claim

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["leaves_first", "locked_stays", "longest_prefix"]

_BLOCK = 4


class CoreTree:
    """kvlab's radix cache as the course's checks ask one."""

    def __init__(self, block_tokens: int) -> None:
        self.pool = PagedAllocator(4096, block_tokens=block_tokens)
        self.tree = RadixCache(self.pool)
        self.block_tokens = block_tokens

    def insert(self, tokens: list[int]) -> None:
        """Keeps what fills whole blocks."""
        whole = len(tokens) // self.block_tokens * self.block_tokens
        if whole == 0:
            return
        sequence = self.pool.allocate_sequence(whole)
        self.tree.insert(tokens[:whole], self.pool.block_table(sequence))
        self.pool.free_sequence(sequence)  # the tree holds what it took

    def match(self, tokens: list[int]) -> int:
        """Cached tokens at the head, in whole blocks; a use."""
        return self.tree.match_prefix(tokens).tokens

    def evict(self, blocks: int) -> int:
        """Gives blocks up; returns how many."""
        return self.tree.evict(blocks)


def _prompt(rng: random.Random) -> list[int]:
    # Two tokens, one of them rare: long prefixes are shared and part at every depth.
    return [int(rng.random() < 0.15) for _ in range(rng.randint(0, 40))]


def _chains(tokens: list[int]) -> set[tuple[int, ...]]:
    """Every whole-block prefix of a prompt: what it keeps."""
    return {tuple(tokens[:end]) for end in range(_BLOCK, len(tokens) + 1, _BLOCK)}


def _longest(held: set[tuple[int, ...]], tokens: list[int]) -> int:
    end = _BLOCK
    while end <= len(tokens) and tuple(tokens[:end]) in held:
        end += _BLOCK
    return end - _BLOCK


def longest_prefix(mine: Mine) -> str:
    """Random prompts, matched and inserted; a set of all prefixes answers for comparison."""
    make: Callable[[int], Any] = mine or CoreTree
    rng = random.Random(9)
    matches = 0
    for _ in range(20):
        cache, held = make(_BLOCK), set[tuple[int, ...]]()
        for _ in range(60):
            tokens = _prompt(rng)
            found, expected = cache.match(list(tokens)), _longest(held, tokens)
            claim(
                found == expected,
                f"match({tokens}) gave {found} tokens, brute force finds {expected}",
            )
            matches += 1
            if rng.random() < 0.7:
                cache.insert(list(tokens))
                held |= _chains(tokens)
    return f"{matches} random prompts, each match as brute force finds it"


def leaves_first(mine: Mine) -> str:
    """Evicts at random; what is left is asked for by matching every prompt that was put in."""
    make: Callable[[int], Any] = mine or CoreTree
    rng = random.Random(10)
    gone = 0
    for _ in range(40):
        cache, held = make(_BLOCK), set[tuple[int, ...]]()
        prompts = [prompt for prompt in (_prompt(rng) for _ in range(12)) if len(prompt) >= _BLOCK]
        for tokens in prompts:
            cache.insert(list(tokens))
            held |= _chains(tokens)
        latest = rng.choice(prompts)
        cache.match(list(latest))
        wanted = rng.randint(0, len(held))
        evicted = cache.evict(wanted)
        claim(evicted == wanted, f"evict({wanted}) of {len(held)} blocks said that {evicted} went")
        gone += evicted
        # A block without its predecessors is never matched: then less is found than is left.
        kept = {
            tuple(tokens[:end])
            for tokens in prompts
            for end in range(_BLOCK, cache.match(list(tokens)) + 1, _BLOCK)
        }
        claim(
            len(kept) == len(held) - evicted,
            f"{len(held) - evicted} blocks are left and only {len(kept)} of them are found again: "
            "did a block go before those that follow it?"
            if len(kept) < len(held) - evicted
            else f"{evicted} of {len(held)} blocks were to go, and {len(kept)} are still found",
        )
        lost = _chains(latest) - kept
        claim(
            not lost or kept <= _chains(latest),
            f"a block of the prompt used last went while {len(kept - _chains(latest))} of others stayed",
        )
    return f"{gone} blocks evicted, the rest found again, the latest prompt gone last"


def locked_stays(mine: Mine) -> str:
    """A locked prompt in the core's tree, and an eviction of everything."""
    del mine
    rng = random.Random(11)
    for _ in range(40):
        cache = CoreTree(_BLOCK)
        prompts = [prompt for prompt in (_prompt(rng) for _ in range(12)) if len(prompt) >= _BLOCK]
        held = set[tuple[int, ...]]()
        for tokens in prompts:
            cache.insert(tokens)
            held |= _chains(tokens)
        locked = rng.choice(prompts)
        chains = _chains(locked)
        with cache.tree.match_prefix(locked):
            evicted = cache.evict(len(held))
            claim(
                evicted == len(held) - len(chains),
                f"{evicted} blocks went; {len(held) - len(chains)} of {len(held)} were not locked",
            )
            found = cache.match(locked)
            claim(
                found == len(chains) * _BLOCK, f"only {found} tokens of the locked prompt are left"
            )
        claim(cache.evict(len(held)) == len(chains), "after the lock its blocks did not go")
        cache.tree.validate()
    return "40 trees evicted as far as they go: each locked path stayed whole, and went when it was unlocked"
