"""The tree of a radix cache: prompts share the blocks of their common beginnings.

The cache of kvlab's Rust core in plain Python: the same operations, splits and order of eviction.
Its nodes are in radix_node.py. Every namespace has a root of its own. Whatever is locked, and the path
above it, stays.

Order of eviction: every match and insert uses the nodes on its path, the leaf first and the root's
side last, each at a tick of one clock. Unlocked leaves go in the order of their last use. A use
that ends inside a node is one of the whole node; when a node splits, both parts keep its last use.
Locking and unlocking use nothing. What the Rust core does in O(log n) is a plain search here.

The lesson that shows it at work is radix_cache.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from radix_node import Match, Node, walk

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Inserted:
    """Tokens that were there already, whose blocks the tree did not take, and the whole path."""

    present: int
    path: Match


@dataclass(frozen=True, slots=True)
class Evicted:
    """Consecutive blocks that left the tree."""

    tokens: tuple[int, ...]
    blocks: list[int]


class RadixCache:
    """Longest cached prefix, in blocks of `block_tokens` tokens."""

    def __init__(self, block_tokens: int) -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens must be at least 1, got {block_tokens}")
        self.block_tokens = block_tokens
        self.total_blocks = 0
        self.protected_blocks = 0
        self._roots: dict[bytes, Node] = {}
        self._locks: dict[int, Node] = {}
        self._last_lock = 0
        self._clock = 0

    @property
    def evictable_blocks(self) -> int:
        """Blocks that eviction can free."""
        return self.total_blocks - self.protected_blocks

    def nodes(self) -> list[Node]:
        """All nodes that hold blocks, parents before their children."""
        found = list(self._roots.values())
        for node in found:
            found.extend(node.children.values())
        return found[len(self._roots) :]

    def match_prefix(self, tokens: Sequence[int], namespace: bytes = b"") -> Match:
        """The longest prefix in whole blocks; uses its path."""
        found = self._walk(tokens, namespace)
        self._use(found.node)
        return found

    def match_partial(
        self, tokens: Sequence[int], namespace: bytes = b""
    ) -> tuple[Match, tuple[int, int] | None]:
        """A match, and (block, tokens) of the block that shares most of what follows it.

        Of several blocks that share as much, the one with the lowest id. It counts as used.
        """
        found = self._walk(tokens, namespace)
        rest = tokens[found.tokens :]
        node, inside = found.node, found.blocks - found.node.start
        candidates = [(node, inside)] if inside < len(node.blocks) else []
        candidates = candidates or [(child, 0) for child in node.children.values()]
        best: tuple[int, int, Node] | None = None
        for source, at in candidates:
            own = source.tokens[at * self.block_tokens :]
            shared = next(
                (i for i, pair in enumerate(zip(own, rest, strict=False)) if pair[0] != pair[1]),
                min(len(own), len(rest)),
            )
            block = source.blocks[at]
            if shared and (best is None or (-shared, block) < (-best[0], best[1])):
                best = (shared, block, source)
        if best is None:
            self._use(node)
            return found, None
        # Of a source below the match, the path goes on to the match itself.
        self._use(best[2])
        return found, (best[1], best[0])

    def insert(
        self, tokens: Sequence[int], blocks: Sequence[int], namespace: bytes = b""
    ) -> Inserted:
        """Puts a prompt of whole blocks in; uses its path."""
        if not blocks or len(tokens) != len(blocks) * self.block_tokens:
            raise ValueError(f"{len(tokens)} tokens do not fill {len(blocks)} blocks")
        root = self._roots.setdefault(namespace, Node(None))
        found = walk(root, tokens, self.block_tokens)
        node = found.node
        if found.blocks < len(blocks):
            above = node.split(found.blocks)
            node = above.add(tokens[found.tokens :], blocks[found.blocks :])
            self.total_blocks += len(node.blocks)
        self._use(node)
        return Inserted(found.tokens, Match(node, len(blocks), len(tokens)))

    def blocks_of(self, found: Match) -> list[int]:
        """The ids of the matched blocks."""
        parts = [node.blocks for node in found.resolve().path()]
        return [block for part in reversed(parts) for block in part][: found.blocks]

    def lock(self, found: Match) -> int:
        """Keeps the path of a match from eviction until the lock that is returned is given back."""
        lowest = found.resolve().split(found.blocks)
        for node in lowest.path():
            self.protected_blocks += 0 if node.locks else len(node.blocks)
            node.locks += 1
        self._last_lock += 1
        self._locks[self._last_lock] = lowest
        return self._last_lock

    def unlock(self, lock: int) -> None:
        """Gives a lock back; `KeyError` if that was done already."""
        for node in self._locks.pop(lock).path():
            node.locks -= 1
            self.protected_blocks -= 0 if node.locks else len(node.blocks)

    def evict(self, wanted: int) -> list[Evicted]:
        """Gives up `wanted` blocks, or all that are evictable; of the last leaf only its tail."""
        evicted = []
        while wanted > 0:
            leaves = [node for node in self.nodes() if not node.children and not node.locks]
            if not leaves:
                break
            victim = min(leaves, key=lambda node: node.last_use)
            evicted.append(Evicted(*victim.drop(max(0, len(victim.blocks) - wanted))))
            wanted -= len(evicted[-1].blocks)
            self.total_blocks -= len(evicted[-1].blocks)
        self._forget_empty_roots()
        return evicted

    def remove_namespace(self, namespace: bytes = b"") -> list[int]:
        """Gives up all unlocked blocks of a namespace."""
        root = self._roots.get(namespace)
        freed: list[int] = []
        for node in reversed(self.nodes()):
            if not node.locks and [*node.path()][-1].parent is root:
                freed += node.drop(0)[1]
        self._forget_empty_roots()
        self.total_blocks -= len(freed)
        return freed

    def _walk(self, tokens: Sequence[int], namespace: bytes) -> Match:
        return walk(self._roots.get(namespace, Node(None)), tokens, self.block_tokens)

    def _use(self, lowest: Node) -> None:
        for node in lowest.path():
            self._clock += 1
            node.last_use = self._clock

    def _forget_empty_roots(self) -> None:
        self._roots = {name: root for name, root in self._roots.items() if root.children}
