"""1.1: what paging wastes, and what a fork shares; held against kvlab's own pool."""

from __future__ import annotations

import random

from kvlab import PagedAllocator
from kvlab.course.checks import Mine, claim

__all__ = ["fork_shares_until_written", "waste"]


def waste(mine: Mine) -> str:
    """Blocks and wasted slots of random sequences, by the pool's own count."""
    rng = random.Random(5)
    cases = 0
    for block_tokens in (1, 2, 16, 64):
        for count in (1, 3, 40):
            lengths = [rng.randint(1, 300) for _ in range(count)]
            blocks = sum(-(-length // block_tokens) for length in lengths)
            pool = PagedAllocator(blocks, block_tokens=block_tokens, block_bytes=block_tokens)
            for length in lengths:
                pool.allocate_sequence(length)
            stats = pool.stats()
            # A slot is a byte here.
            counted = (stats["used"], stats["wasted_bytes"])
            result = tuple((mine or _paged)(lengths, block_tokens))
            where = f"{count} sequences in blocks of {block_tokens}"
            claim(result == counted, f"{where}: gave {result}, the pool counts {counted}")
            claim(
                counted[1] <= count * (block_tokens - 1),
                f"{where}: {counted[1]} slots wasted, more than {block_tokens - 1} a sequence",
            )
            cases += 1
    return f"as the pool counts in {cases} cases, below one block a sequence"


def _paged(lengths: list[int], block_tokens: int) -> tuple[int, int]:
    blocks = [-(-length // block_tokens) for length in lengths]
    return sum(blocks), sum(blocks) * block_tokens - sum(lengths)


def fork_shares_until_written(mine: Mine) -> str:
    """Forks of random lengths that are written to at random: who reads what, and how many blocks that takes."""
    del mine
    rng = random.Random(6)
    copies = 0
    for _ in range(30):
        tokens = rng.randint(1, 120)
        pool = PagedAllocator(64, block_tokens=8, block_bytes=8)
        parent = pool.allocate_sequence(tokens)
        expected = {parent: bytearray(rng.randbytes(tokens))}
        pool.write(parent, 0, bytes(expected[parent]))
        alone = pool.stats()["used"]
        child = pool.fork(parent)
        expected[child] = bytearray(expected[parent])
        claim(pool.stats()["used"] == alone, f"a fork of {tokens} tokens took blocks of its own")
        claim(pool.stats()["shared"] == alone, f"a fork of {tokens} tokens does not share them all")
        touched = set()
        for _ in range(rng.randint(1, 6)):
            writer, position = rng.choice((parent, child)), rng.randrange(tokens)
            byte = rng.randbytes(1)
            pool.write(writer, position, byte)
            expected[writer][position : position + 1] = byte
            touched.add(position // 8)
        copies += len(touched)
        claim(
            pool.stats()["used"] == alone + len(touched),
            f"{len(touched)} blocks were written to and {pool.stats()['used'] - alone} were copied",
        )
        for sequence, content in expected.items():
            claim(
                pool.read(sequence, 0, tokens) == bytes(content),
                "a write reached the other side of the fork",
            )
        pool.validate()
    return f"30 forks: {copies} blocks written to, {copies} copied, no write seen by the other side"
