"""Fragmentation: what paging saves over reserving the maximum length for every sequence.

50 sequences of varied lengths are stored twice: each in a contiguous reservation of the model's
maximum length, and in blocks of K tokens from one pool. A reservation wastes whatever a sequence
does not reach; paging wastes at most K - 1 slots at the end of each. Then a fork: it shares every
block with its parent until one of the two writes, and then copies the one block that is written (copy on write).

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
2023 (arXiv:2309.06180).

    python toys/fragmentation.py [--quick] [--json] [--out fragmentation.svg]
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, panels

import kvlab

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK_SIZES = (8, 16, 32, 64)
SHORTEST, LONGEST = 64, 2048
TOKEN_BYTES = 64  # The shares do not depend on it; SmolLM2-135M has 46,080 in fp32.


def draw_lengths(count: int, seed: int) -> list[int]:
    """Log-uniform lengths, mean about 570: many short chats, few long prompts."""
    rng = random.Random(seed)
    return [int(math.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST)))) for _ in range(count)]


def page(lengths: list[int], block_tokens: int, step: int) -> Results:
    """Grows all sequences side by side, `step` tokens at a time, as a batch of requests does."""
    blocks = sum(math.ceil(length / block_tokens) for length in lengths)
    pool = kvlab.PagedAllocator(
        num_blocks=blocks, block_tokens=block_tokens, block_bytes=block_tokens * TOKEN_BYTES
    )
    sequences = [pool.allocate_sequence() for _ in lengths]
    for held in range(0, max(lengths), step):
        for sequence, length in zip(sequences, lengths, strict=True):
            if held < length:
                pool.append_tokens(sequence, min(step, length - held))
    stats = pool.stats()
    row = {
        "block_tokens": block_tokens,
        "blocks": stats["used"],
        "wasted_bytes": stats["wasted_bytes"],
        "wasted": 1 - stats["utilisation"],
    }
    for sequence in sequences:
        pool.free_sequence(sequence)
    return row


def fork_and_write(tokens: int) -> list[Results]:
    """Blocks used and shared as a sequence is forked and the fork writes."""
    pool = kvlab.PagedAllocator(num_blocks=256, block_tokens=16, block_bytes=16 * TOKEN_BYTES)
    beats: list[Results] = []

    def note(beat: str) -> None:
        stats = pool.stats()
        beats.append({"beat": beat, "used": stats["used"], "shared": stats["shared"]})

    parent = pool.allocate_sequence(tokens)
    pool.write(parent, 0, b"p" * (tokens * TOKEN_BYTES))
    note(f"a sequence of {tokens} tokens")
    child = pool.fork(parent)
    note("a fork of it")
    pool.write(child, tokens // 2, b"c" * TOKEN_BYTES)
    note("the fork's first write, in the middle")
    pool.write(child, tokens // 2, b"d" * TOKEN_BYTES)
    note("another one to the same block")
    if pool.read(parent, tokens // 2, 1) != b"p" * TOKEN_BYTES:
        message = "the fork's write reached its parent"
        raise AssertionError(message)
    pool.free_sequence(parent)
    note("the parent freed")
    return beats


def measure(*, quick: bool = False, maximum: int = 8192, seed: int = 4) -> Results:
    """Stores the same sequences reserved and paged, at each block size, and forks one.

    Args:
        quick: Grow by 64 tokens at a time, not by 1; the result is the same.
        maximum: Tokens that a contiguous reservation holds, at least `LONGEST`.
        seed: Of the lengths.
    """
    lengths = draw_lengths(50, seed)
    reserved = 1 - sum(lengths) / (len(lengths) * maximum)
    rows = [page(lengths, size, 64 if quick else 1) for size in BLOCK_SIZES]
    for row in rows:
        slots = row["wasted_bytes"] // TOKEN_BYTES
        if slots > len(lengths) * (row["block_tokens"] - 1) or row["wasted"] >= reserved:
            raise AssertionError(f"paging wasted more than K - 1 slots a sequence: {row}")
    return {
        "lengths": lengths,
        "seed": seed,
        "maximum": maximum,
        "reserved_wasted": reserved,
        "paged": rows,
        "fork": fork_and_write(500),
    }


def tell(results: Results) -> None:
    """Both tables."""
    lengths = results["lengths"]
    mean, middle = sum(lengths) / len(lengths), sorted(lengths)[len(lengths) // 2]
    print(f"{len(lengths)} sequences, log-uniform from {SHORTEST} to {LONGEST} tokens, ", end="")
    print(f"seed {results['seed']}: mean {mean:.0f}, median {middle}")
    print(f"reserved at the maximum of {results['maximum']} tokens each: ", end="")
    print(f"{results['reserved_wasted']:.1%} wasted\n")
    print("   K   blocks   wasted slots   wasted")
    for row in results["paged"]:
        slots = row["wasted_bytes"] // TOKEN_BYTES
        print(f"{row['block_tokens']:4}   {row['blocks']:6}   {slots:12}   {row['wasted']:6.2%}")
    print("\nblocks of 16 tokens              used   shared")
    for beat in results["fork"]:
        print(f"{beat['beat']:37}{beat['used']:5}{beat['shared']:9}")


def draw(results: Results) -> Figure:
    """The waste of each arm, and the blocks of a fork step by step."""
    figure, (waste, fork) = panels(2)
    rows, beats = results["paged"], results["fork"]
    labels = ["reserved", *(f"K = {row['block_tokens']}" for row in rows)]
    shares = [results["reserved_wasted"], *(row["wasted"] for row in rows)]
    bars = waste.bar(labels, [100 * share for share in shares])
    waste.bar_label(bars, fmt="%.1f %%")
    title = f"{len(results['lengths'])} sequences: reserved against paged"
    waste.set(ylabel="memory wasted, %", ylim=(0, 108), title=title)
    names = [beat["beat"].replace(", ", ",\n") for beat in beats]
    own = [beat["used"] - beat["shared"] for beat in beats]
    shared = [beat["shared"] for beat in beats]
    fork.barh(names, shared, label="shared by both")
    fork.barh(names, own, left=shared, label="one owner")
    fork.invert_yaxis()
    fork.set(xlabel="blocks of 16 tokens in use", title="A fork copies what is written")
    fork.set_xlim(0, 1.7 * max(beat["used"] for beat in beats))
    fork.legend(fontsize=8, loc="center right")
    return figure


def main() -> None:
    """Measures, tells and draws."""
    parser = arguments(__doc__)
    parser.add_argument("--maximum", type=int, default=8192, help="the model's maximum length")
    parser.add_argument("--seed", type=int, default=4, help="of the lengths")
    options = parser.parse_args()
    if options.maximum < LONGEST:
        parser.error(f"--maximum {options.maximum}: give at least {LONGEST}, the longest sequence")
    results = measure(quick=options.quick, maximum=options.maximum, seed=options.seed)
    conclude(options, results, tell, draw)


if __name__ == "__main__":
    main()
