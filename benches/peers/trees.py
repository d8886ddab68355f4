"""Longest cached prefix: kvlab's radix cache, SGLang's tree core in Rust, a hash chain in Python, on the same prompts.

Prompts of 5,000 tokens: groups that share 1,000, branches that share 600 more, 5 prompts each. Each tree is given
tokens in the form that its own engine hands it, made off the clock: numpy for kvlab, `array` for SGLang, a list for the
hash chain. Blocks are of 16 tokens. Single thread; the trees take turns.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import random
import sys
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

import kvlab

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

BLOCK = 16
PROMPT = 5_000 // BLOCK * BLOCK
EVICTED = 128
LEAF = 512 + EVICTED
"""Tokens of a prompt of the eviction test: a root's and its own."""


class Tree(ABC):
    """What is measured of a tree."""

    name: ClassVar[str]
    title: ClassVar[str]

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Of the peer. Raises what says why the tree cannot run here."""

    @abstractmethod
    def __init__(self, tokens: int) -> None:
        """An empty tree with room for so many tokens."""

    @abstractmethod
    def form(self, tokens: NDArray[np.int64]) -> Any:
        """Tokens, and where their KV stands, as the tree wants them. Off the clock."""

    @abstractmethod
    def insert(self, formed: Any) -> None:
        """Keeps a prompt."""

    def release(self, formed: Any) -> None:  # noqa: B027 - most trees have nothing to do
        """Leaves what was inserted to the tree alone. Off the clock."""

    @abstractmethod
    def match(self, formed: Any) -> int:
        """Tokens of the longest prefix that is kept."""

    @abstractmethod
    def evict(self, tokens: int) -> int:
        """Gives up at least so many tokens, the least recently used leaves first; how many went."""


class Kvlab(Tree):
    """`kvlab.RadixCache`."""

    name = "kvlab"
    title = "kvlab.RadixCache"

    @classmethod
    def version(cls) -> str:
        """Of the extension."""
        return kvlab.build_info()["version"]

    def __init__(self, tokens: int) -> None:
        self.allocator = kvlab.PagedAllocator(tokens // BLOCK, block_tokens=BLOCK)
        self.cache = kvlab.RadixCache(self.allocator)

    def form(self, tokens: NDArray[np.int64]) -> Any:
        """Blocks are the prefix's own where the tree has it, and new ones behind it."""
        shared = self.cache.match_prefix(tokens)
        sequence = self.allocator.allocate_sequence(len(tokens) - shared.tokens)
        blocks = shared.blocks() + self.allocator.block_table(sequence)
        return tokens, np.array(blocks, dtype=np.uint32), sequence

    def insert(self, formed: Any) -> None:
        """The tree holds a reference to each block."""
        self.cache.insert(formed[0], formed[1])

    def release(self, formed: Any) -> None:
        """Leaves the blocks to the tree. Off the clock."""
        self.allocator.free_sequence(formed[2])

    def match(self, formed: Any) -> int:
        """A handle of the place."""
        return self.cache.match_prefix(formed[0]).tokens

    def evict(self, tokens: int) -> int:
        """Whole blocks."""
        return self.cache.evict(tokens // BLOCK) * BLOCK


class Sglang(Tree):
    """The default tree core of SGLang, in Rust, loaded out of its wheel by itself."""

    name = "sglang"
    title = "SGLang tree core (Rust), its binding"
    FULL = 0

    @classmethod
    def binding(cls) -> Any:
        """The extension module, which needs nothing but torch."""
        if "mem_cache" not in sys.modules:
            found = importlib.metadata.distribution("sglang")
            root = Path(str(found.locate_file("sglang"))) / "srt/mem_cache/rust_tree_core"
            tag = sys.implementation.cache_tag
            paths = sorted(root.glob(f"mem_cache.{tag}-*.so"))
            if not paths:
                raise ImportError(f"the wheel has no tree core for {tag}")
            spec = importlib.util.spec_from_file_location("mem_cache", paths[0])
            if spec is None or spec.loader is None:
                raise ImportError("the tree core cannot be loaded")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules["mem_cache"] = module
        return sys.modules["mem_cache"]

    @classmethod
    def version(cls) -> str:
        """Of the wheel."""
        cls.binding()
        return importlib.metadata.version("sglang")

    def __init__(self, tokens: int) -> None:
        self.module = self.binding()
        parameters = self.module.TreeCoreInitParamsBinding(
            eviction_policy="lru", page_size=BLOCK, device="cpu"
        )
        self.core = self.module.RustUnifiedTreeCoreBinding(parameters, [self.FULL])

    def form(self, tokens: NDArray[np.int64]) -> Any:
        """A key and a tensor of slots."""
        return array("q", tokens.tobytes()), torch.arange(len(tokens))

    def insert(self, formed: Any) -> None:
        """The tree keeps a clone of the slots."""
        key, value = formed
        self.core.insert(self.module.InsertParamsBinding(key=key, value=value))

    def match(self, formed: Any) -> int:
        """Length and node; slots would be gathered separately."""
        result = self.core.match_prefix(self.module.MatchParamsBinding(key=formed[0]))
        return int(result.device_prefix_len)

    def evict(self, tokens: int) -> int:
        """As its cache's `evict` walks."""
        gone = {self.FULL: 0}
        self.core.evict_device_start(self.FULL, tokens)
        try:
            while gone[self.FULL] < tokens:
                step = self.core.evict_device_next_node(self.FULL, gone)
                if step.node_id is None:
                    if not step.made_progress:
                        break
                    done = step
                else:
                    done = self.core.evict_device_leaf(step.node_id)
                gone[self.FULL] += done.tracker.get(self.FULL, 0)
        finally:
            self.core.evict_device_end(self.FULL)
        return gone[self.FULL]


class HashChain(Tree):
    """No tree: a hash a block over its parent's hash and its tokens, looked up one after the other.

    As nano-vllm's `BlockManager` and vLLM's block pool keep prefixes, written here from that description: xxh64 over
    the parent's 8 bytes and the block's tokens, token ids compared on a hit, freed blocks reused oldest first.
    """

    name = "hash-chain"
    title = "hash chain in Python (as nano-vllm)"

    @classmethod
    def version(cls) -> str:
        """Of xxhash."""
        return f"xxhash {importlib.metadata.version('xxhash')}"

    def __init__(self, tokens: int) -> None:
        self.hasher = importlib.import_module("xxhash").xxh64
        self.blocks: OrderedDict[int, list[int]] = OrderedDict()

    def form(self, tokens: NDArray[np.int64]) -> Any:
        """A list, as a tokenizer gives it."""
        return tokens.tolist()

    def chain(self, tokens: list[int]) -> Any:
        """Hash and tokens of each whole block."""
        parent = 0
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            block = tokens[start : start + BLOCK]
            state = self.hasher(parent.to_bytes(8, "little"))
            state.update(np.array(block, dtype=np.int64).tobytes())
            parent = state.intdigest()
            yield parent, block

    def insert(self, formed: Any) -> None:
        """Each block by its hash."""
        for key, block in self.chain(formed):
            if key not in self.blocks:
                self.blocks[key] = block

    def match(self, formed: Any) -> int:
        """Until the first block that is not there; each is used."""
        matched = 0
        for key, block in self.chain(formed):
            if self.blocks.get(key) != block:
                break
            self.blocks.move_to_end(key)
            matched += BLOCK
        return matched

    def evict(self, tokens: int) -> int:
        """The oldest blocks, whatever is behind them."""
        blocks = min(len(self.blocks), -(-tokens // BLOCK))
        for _ in range(blocks):
            self.blocks.popitem(last=False)
        return blocks * BLOCK


TREES: tuple[type[Tree], ...] = (Kvlab, Sglang, HashChain)


@dataclass
class TreeOutcome:
    """What became of a tree: microseconds, the median call of each round."""

    name: str
    title: str
    version: str = ""
    not_run: str = ""
    insert: list[float] = field(default_factory=list)
    match: list[float] = field(default_factory=list)
    evict: list[float] = field(default_factory=list)


def prompts(groups: int, seed: int = 3) -> list[NDArray[np.int64]]:
    """Ten prompts a group, in random order."""
    generator = np.random.default_rng(seed)

    def tokens(count: int) -> NDArray[np.int64]:
        return generator.integers(0, 150_000, count, dtype=np.int64)

    made = []
    for _ in range(groups):
        group = tokens(1_000)
        for _ in range(2):
            branch = tokens(600)
            made += [np.concatenate([group, branch, tokens(PROMPT - 1_600)]) for _ in range(5)]
    random.Random(seed).shuffle(made)
    return made


def median_call(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds."""
    samples = []
    for call in calls:
        start = perf_counter_ns()
        call()
        samples.append((perf_counter_ns() - start) / 1e3)
    return float(np.median(samples))


def measure_calls(kind: type[Tree], asked: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
    """Median of cold inserts into an empty tree, and of full hits."""
    tree = kind(len(asked) * PROMPT)
    formed = [tree.form(each) for each in asked]
    inserts = median_call([lambda each=each: tree.insert(each) for each in formed])  # type: ignore[misc]
    matches = median_call([lambda each=each: tree.match(each) for each in formed])  # type: ignore[misc]
    for each in formed:
        if tree.match(each) != PROMPT:
            raise RuntimeError(f"{tree.name} did not find a prompt that it was given")
    return inserts, matches


class Evictions:
    """A tree of many leaves, each of 128 tokens under one of 50 roots; what is evicted is put back."""

    def __init__(self, kind: type[Tree], leaves: int) -> None:
        self.generator = np.random.default_rng(9)
        self.tree = kind(50 * LEAF + (leaves + 16) * EVICTED)
        self.roots = [self.tokens(LEAF - EVICTED) for _ in range(50)]
        for _ in range(leaves):
            self.add()

    def tokens(self, count: int) -> NDArray[np.int64]:
        """Random ones."""
        return self.generator.integers(0, 150_000, count, dtype=np.int64)

    def add(self) -> None:
        """One leaf."""
        root = self.roots[int(self.generator.integers(50))]
        formed = self.tree.form(np.concatenate([root, self.tokens(EVICTED)]))
        self.tree.insert(formed)
        self.tree.release(formed)

    def measure(self, evictions: int) -> float:
        """Median of so many evictions of 128 tokens."""
        samples = []
        for _ in range(evictions):
            start = perf_counter_ns()
            gone = self.tree.evict(EVICTED)
            samples.append((perf_counter_ns() - start) / 1e3)
            if gone < EVICTED:
                raise RuntimeError(f"{self.tree.name} gave up {gone} tokens instead of {EVICTED}")
            self.add()
        return float(np.median(samples))


def run(rounds: int, groups: int, leaves: int, evictions: int) -> list[TreeOutcome]:
    """All trees, in turns, the order rotated, the first round dropped."""
    kinds = {kind.name: kind for kind in TREES}
    outcomes = []
    for kind in TREES:
        outcome = TreeOutcome(kind.name, kind.title)
        try:
            outcome.version = kind.version()
        except Exception as error:  # noqa: BLE001 - whatever a peer's import raises is the reason
            outcome.not_run = f"{type(error).__name__}: {error}"
        outcomes.append(outcome)
    alive = [outcome for outcome in outcomes if not outcome.not_run]
    able = {outcome.name for outcome in alive}
    asked = prompts(groups)
    full = {name: Evictions(kind, leaves) for name, kind in kinds.items() if name in able}
    gc.collect()
    gc.disable()
    try:
        for round_ in range(rounds + 1):
            first = round_ % max(1, len(alive))
            for outcome in alive[first:] + alive[:first]:
                insert, match = measure_calls(kinds[outcome.name], asked)
                evict = full[outcome.name].measure(evictions)
                if round_:
                    outcome.insert.append(insert)
                    outcome.match.append(match)
                    outcome.evict.append(evict)
    finally:
        gc.enable()
    return outcomes
