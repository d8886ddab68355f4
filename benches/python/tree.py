"""The radix cache through Python: match, insert, evict and lock on the workload of the comparison with SGLang's trees.

1,000 prompts of 2,000 to 8,000 tokens: 50 groups that share a prefix of 500 to 1,500 tokens, each with 4 branches of
256 to 1,000 more, each with 5 prompts; blocks of 16 tokens. Every call is timed by itself, in rounds of which the first
is dropped. The prompts take 40 MB as int64 and the tree another 14: a match reads both from far memory, not from the
core's caches.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np
from report import Report

import kvlab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Blocks = NDArray[np.uint32]

BLOCK = 16
VOCABULARY = 150_000
EVICTED_BLOCKS = 8
NODES_MEASURED = 50_000

KNOWN_MATCH = "SGLang: Rust tree 15-16, Python tree 35-42"
KNOWN_INSERT = "SGLang: Rust tree 49-50, Python tree 66-75"
KNOWN_LOCK = "SGLang: Rust tree 2.8, Python tree 4.5-9"
KNOWN_EVICT = {
    1_000: "SGLang: Rust tree 9, Python tree 108",
    50_000: "SGLang: Rust tree 744, Python tree 20,000",
}


def make_prompts(groups: int, rng: np.random.Generator) -> list[Ids]:
    """The prompts, cut to whole blocks, in random order."""

    def tokens(low: int, high: int) -> Ids:
        return rng.integers(0, VOCABULARY, int(rng.integers(low, high)), dtype=np.int64)

    prompts: list[Ids] = []
    for _ in range(groups):
        group = tokens(500, 1_500)
        for _ in range(4):
            branch = np.concatenate([group, tokens(256, 1_000)])
            for _ in range(5):
                length = max(int(rng.integers(2_000, 8_000)), len(branch))
                rest = rng.integers(0, VOCABULARY, length - len(branch), dtype=np.int64)
                prompt = np.concatenate([branch, rest])
                prompts.append(prompt[: length // BLOCK * BLOCK].copy())
    return [prompts[index] for index in rng.permutation(len(prompts))]


def timed(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Microseconds of each call; what a call gives back is dropped after the clock was read."""
    samples = []
    for call in calls:
        start = perf_counter_ns()
        kept = call()
        end = perf_counter_ns()
        del kept
        samples.append((end - start) / 1e3)
    return samples


class Held:
    """An allocator's blocks for prompts, held by one sequence a prompt."""

    def __init__(self, blocks: int) -> None:
        self.allocator = kvlab.PagedAllocator(blocks, block_tokens=BLOCK)

    def sequence(self, tokens: int) -> tuple[int, Blocks]:
        """A new sequence and its blocks."""
        sequence = self.allocator.allocate_sequence(tokens)
        return sequence, np.array(self.allocator.block_table(sequence), dtype=np.uint32)


def lock_and_unlock(match: Any) -> None:
    """Protects a matched path and gives it free again."""
    match.lock()
    match.unlock()


def match_and_insert(report: Report, prompts: list[Ids], rounds: int) -> None:
    """Cold inserts into an empty tree, then full hits in random order, then locks; arrays and lists take turns."""
    held = Held(sum(len(prompt) for prompt in prompts) // BLOCK)
    blocks = [held.sequence(len(prompt))[1] for prompt in prompts]
    lists = [prompt.tolist() for prompt in prompts]
    narrow = [prompt.astype(np.uint32) for prompt in prompts]
    block_lists = [each.tolist() for each in blocks]
    shuffled = random.Random(2)
    results: dict[str, list[list[float]]] = {
        name: []
        for name in (
            "insert",
            "insert_lists",
            "match",
            "match_narrow",
            "match_lists",
            "lock",
            "blocks",
        )
    }
    for _ in range(rounds + 1):
        cache = kvlab.RadixCache(held.allocator)
        pairs = zip(lists, block_lists, strict=True)
        results["insert_lists"].append(timed(partial(cache.insert, *pair) for pair in pairs))
        cache.clear()
        cache = kvlab.RadixCache(held.allocator)
        arrays = zip(prompts, blocks, strict=True)
        results["insert"].append(timed(partial(cache.insert, *pair) for pair in arrays))
        order = shuffled.sample(range(len(prompts)), len(prompts))
        results["match"].append(timed(partial(cache.match_prefix, prompts[at]) for at in order))
        matches = [cache.match_prefix(prompts[at]) for at in order]
        expected = [len(prompts[at]) for at in order]
        if [match.tokens for match in matches] != expected:
            raise RuntimeError("a prompt that was inserted did not match in full")
        results["blocks"].append(timed(match.blocks for match in matches))
        results["lock"].append(timed(partial(lock_and_unlock, match) for match in matches))
        results["match_lists"].append(timed(partial(cache.match_prefix, lists[at]) for at in order))
        results["match_narrow"].append(
            timed(partial(cache.match_prefix, narrow[at]) for at in order)
        )
        del matches
        cache.clear()
    kept = {name: samples[1:] for name, samples in results.items()}
    length = round(statistics.mean(len(prompt) for prompt in prompts))
    of = f"{length:,}-token prompts (mean)"
    report.add(f"match, {of}, full hit", kept["match"], target=5, known=KNOWN_MATCH)
    report.add(f"insert, cold, {of}", kept["insert"], target=15, known=KNOWN_INSERT)
    report.add("lock + unlock of a match", kept["lock"], known=KNOWN_LOCK)
    report.add("block ids of a match, as a list", kept["blocks"])
    report.add("match, uint32 arrays", kept["match_narrow"])
    report.add("match, Python lists", kept["match_lists"])
    report.add("insert, Python lists", kept["insert_lists"])


@dataclass
class Pool:
    """A full tree: leaves of `leaf_blocks` blocks under 50 roots of 512 tokens, every other leaf locked."""

    leaves: int
    leaf_blocks: int
    rng: np.random.Generator

    def __post_init__(self) -> None:
        tokens = 50 * 512 + (self.leaves + EVICTED_BLOCKS) * self.leaf_blocks * BLOCK
        self.held = Held(tokens // BLOCK + 2 * EVICTED_BLOCKS)
        self.cache = kvlab.RadixCache(self.held.allocator)
        self.roots = [self.rng.integers(0, VOCABULARY, 512, dtype=np.int64) for _ in range(50)]
        self.root_blocks = [self.held.sequence(512)[1] for _ in self.roots]
        self.locked: list[Any] = []
        for index in range(self.leaves):
            prompt = self.add_leaf()
            if index % 2 == 0:
                match = self.cache.match_prefix(prompt)
                match.lock()
                self.locked.append(match)

    def add_leaf(self) -> Ids:
        """Inserts a prompt whose own blocks nobody but the tree holds."""
        root = int(self.rng.integers(0, len(self.roots)))
        own_tokens = self.leaf_blocks * BLOCK
        own = self.rng.integers(0, VOCABULARY, own_tokens, dtype=np.int64)
        prompt = np.concatenate([self.roots[root], own])
        sequence, blocks = self.held.sequence(own_tokens)
        self.cache.insert(prompt, np.concatenate([self.root_blocks[root], blocks]))
        self.held.allocator.free_sequence(sequence)
        return prompt

    def evict(self, calls: int) -> list[float]:
        """Evicts 128 tokens so many times, each time putting as many back before the next."""
        samples = []
        for _ in range(calls):
            start = perf_counter_ns()
            gone = self.cache.evict(EVICTED_BLOCKS)
            samples.append((perf_counter_ns() - start) / 1e3)
            if gone != EVICTED_BLOCKS:
                raise RuntimeError(f"{gone} blocks were evicted instead of {EVICTED_BLOCKS}")
            for _ in range(EVICTED_BLOCKS // self.leaf_blocks):
                self.add_leaf()
        return samples


def evict(report: Report, leaf_counts: Sequence[int], rounds: int, calls: int) -> None:
    """Evictions at each size of the tree, the sizes taking turns."""
    shapes = [(leaves, size) for size in (EVICTED_BLOCKS, 1) for leaves in leaf_counts]
    pools = {shape: Pool(*shape, np.random.default_rng(3)) for shape in shapes}
    results: dict[tuple[int, int], list[list[float]]] = {shape: [] for shape in shapes}
    for _ in range(rounds + 1):
        for shape, pool in pools.items():
            results[shape].append(pool.evict(calls))
    for (leaves, size), samples in results.items():
        victims = "1 leaf of 8 blocks" if size == EVICTED_BLOCKS else "8 leaves of 1 block"
        known = KNOWN_EVICT.get(leaves, "") if size == EVICTED_BLOCKS else ""
        name = f"evict 128 tokens: {victims}, of {leaves:,} leaves"
        report.add(name, samples[1:], target=5, known=known)


def resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not tell it this way."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    import resource

    return int(status.read_text().split()[1]) * resource.getpagesize()


def memory(report: Report) -> None:
    """Growth of the resident memory for 50,000 leaves of one block, tokens and block ids taken off."""
    held = Held(NODES_MEASURED + 64)
    root = np.arange(512, dtype=np.int64)
    root_blocks = held.sequence(512)[1]
    _, blocks = held.sequence(NODES_MEASURED * BLOCK)
    rng = np.random.default_rng(4)
    prompts = rng.integers(0, VOCABULARY, (NODES_MEASURED, 512 + BLOCK), dtype=np.int64)
    prompts[:, :512] = root
    rows = np.empty((NODES_MEASURED, 33), dtype=np.uint32)
    rows[:, :32] = root_blocks
    rows[:, 32] = blocks
    cache = kvlab.RadixCache(held.allocator)
    gc.collect()
    before = resident_bytes()
    if before is None:
        return
    for prompt, row in zip(prompts, rows, strict=True):
        cache.insert(prompt, row)
    after = resident_bytes() or before
    stats = cache.stats()
    payload = (BLOCK + 1) * 4 * stats["leaves"]
    a_node = (after - before - payload) / stats["nodes"]
    report.add("memory of a node, 50,000 leaves", [[a_node]], unit="bytes", target=192)
    report.remarks.append(
        "Memory: growth of the resident set, less 4 bytes for each token and block id; it includes what the "
        "allocator notes of the blocks that the tree holds, and what the C library's heap loses."
    )


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--groups", type=int, default=50, help="groups of 20 prompts")
    parser.add_argument("--evictions", type=int, default=200, help="evictions in a round")
    parser.add_argument("--leaves", type=int, nargs="+", default=[1_000, 50_000])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    report = Report("Radix cache through Python", vars(arguments))
    memory(report)
    gc.collect()
    gc.disable()
    prompts = make_prompts(arguments.groups, np.random.default_rng(1))
    match_and_insert(report, prompts, arguments.rounds)
    evict(report, arguments.leaves, arguments.rounds, arguments.evictions)
    empty = statistics.median(timed([partial(int)] * 10_000))
    report.remarks.append(f"Timing a call of nothing gives {empty:.2f} us; it is not taken off.")
    report.remarks.append(
        "* Figures of SGLang 0.5's trees on a machine of this kind (2 shared x86-64 cores), same workload, single "
        "thread, median of a call; measured by others, not in this run."
    )
    report.print(as_json=arguments.json)


if __name__ == "__main__":
    main()
