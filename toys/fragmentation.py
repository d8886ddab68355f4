"""Fragmentation: what paging saves over reserving the maximum length for every sequence.

50 sequences of varied lengths are stored twice: each in a contiguous reservation of the model's
maximum length, and in blocks of K tokens from one pool. A reservation wastes whatever a sequence
does not reach; paging wastes at most K - 1 slots at the end of each. Then a fork: it shares every
block with its parent until one of the two writes.

    python toys/fragmentation.py [--quick] [--json] [--out fragmentation.png]
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import kvlab

BLOCK_SIZES = (8, 16, 32, 64)
SHORTEST, LONGEST = 64, 2048
TOKEN_BYTES = 64  # The shares do not depend on it; SmolLM2-135M has 46,080 in fp32.


@dataclass(frozen=True)
class Paged:
    """One row of the sweep: 50 sequences in blocks of `block_tokens`."""

    block_tokens: int
    blocks: int
    wasted_bytes: int
    wasted: float


def draw_lengths(count: int, seed: int) -> list[int]:
    """Log-uniform lengths, mean about 570: many short chats, few long prompts."""
    rng = random.Random(seed)
    return [int(math.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST)))) for _ in range(count)]


def page(lengths: list[int], block_tokens: int, step: int) -> Paged:
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
    row = Paged(block_tokens, stats["used"], stats["wasted_bytes"], 1 - stats["utilisation"])
    for sequence in sequences:
        pool.free_sequence(sequence)
    return row


def fork_and_write(tokens: int) -> list[tuple[str, int, int]]:
    """Blocks (used, shared) as a sequence is forked and the fork writes."""
    pool = kvlab.PagedAllocator(num_blocks=256, block_tokens=16, block_bytes=16 * TOKEN_BYTES)
    beats: list[tuple[str, int, int]] = []

    def note(beat: str) -> None:
        stats = pool.stats()
        beats.append((beat, stats["used"], stats["shared"]))

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


def draw(rows: list[Paged], reserved: float, out: Path) -> str:
    """Draws the waste of each arm; says so if that takes matplotlib and it is absent."""
    try:
        import matplotlib as mpl
    except ImportError:
        return "no picture: matplotlib is not installed (pip install 'kvlab[plot]')"
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    labels = ["reserved", *(f"K = {row.block_tokens}" for row in rows)]
    bars = axes.bar(labels, [100 * reserved, *(100 * row.wasted for row in rows)])
    axes.bar_label(bars, fmt="%.1f %%")
    axes.set(ylabel="memory wasted, %", ylim=(0, 108), title="50 sequences: reserved against paged")
    figure.tight_layout()
    figure.savefig(out)
    plt.close(figure)
    return f"picture: {out}"


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--maximum", type=int, default=8192, help="the model's maximum length")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="grow by 64 tokens at a time, not 1")
    parser.add_argument("--out", type=Path, help="where to draw the picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.maximum < LONGEST:
        parser.error(f"--maximum {options.maximum}: give at least {LONGEST}, the longest sequence")

    lengths = draw_lengths(50, options.seed)
    tokens = sum(lengths)
    reserved = 1 - tokens / (len(lengths) * options.maximum)
    rows = [page(lengths, size, 64 if options.quick else 1) for size in BLOCK_SIZES]
    beats = fork_and_write(500)
    picture = draw(rows, reserved, options.out) if options.out else None
    if options.json:
        report = {
            "lengths": lengths,
            "maximum": options.maximum,
            "reserved_wasted": reserved,
            "paged": [asdict(row) for row in rows],
            "fork": [
                {"beat": beat, "used": used, "shared": shared} for beat, used, shared in beats
            ],
        }
        print(json.dumps(report, indent=2))
        return

    middle = sorted(lengths)[len(lengths) // 2]
    print(f"{len(lengths)} sequences, log-uniform from {SHORTEST} to {LONGEST} tokens, ", end="")
    print(f"seed {options.seed}: mean {tokens / len(lengths):.0f}, median {middle}")
    print(f"reserved at the maximum of {options.maximum} tokens each: {reserved:.1%} wasted\n")
    print("   K   blocks   wasted slots   wasted")
    for row in rows:
        slots = row.wasted_bytes // TOKEN_BYTES
        print(f"{row.block_tokens:4}   {row.blocks:6}   {slots:12}   {row.wasted:6.2%}")
    print("\nblocks of 16 tokens              used   shared")
    for beat, used, shared in beats:
        print(f"{beat:37}{used:5}{shared:9}")
    if picture:
        print(picture)


if __name__ == "__main__":
    main()
