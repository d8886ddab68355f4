"""A node of a radix tree over token sequences: how it is found, split and taken out.

A node holds the tokens of one or more consecutive blocks and the ids of the blocks that hold their KV.
Nodes begin and end on block borders, so siblings differ in their first block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(eq=False, slots=True)
class Node:
    """Consecutive blocks; a root has none."""

    parent: Node | None
    tokens: tuple[int, ...] = ()
    blocks: list[int] = field(default_factory=list)
    start: int = 0  # blocks on the path before this node
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)  # by their first block
    locks: int = 0  # on this node or below it
    last_use: int = 0

    @property
    def end(self) -> int:
        """Blocks on the path up to and with this node."""
        return self.start + len(self.blocks)

    @property
    def block_tokens(self) -> int:
        """Tokens of a block; not for a root."""
        return len(self.tokens) // len(self.blocks)

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def add(self, tokens: Sequence[int], blocks: Sequence[int]) -> Node:
        """A new child with these blocks; none of the others begins with the same one."""
        child = Node(self, tuple(tokens), list(blocks), self.end)
        self.children[child.tokens[: child.block_tokens]] = child
        return child

    def split(self, end: int) -> Node:
        """Makes the first `end` blocks of the path end with a node; a new one is the upper part."""
        if end == self.end or self.parent is None:
            return self
        keep = end - self.start
        cut = keep * self.block_tokens
        upper = self.parent.add(self.tokens[:cut], self.blocks[:keep])
        upper.locks, upper.last_use = self.locks, self.last_use
        self.parent, self.start = upper, end
        self.tokens, self.blocks = self.tokens[cut:], self.blocks[keep:]
        upper.children[self.tokens[: self.block_tokens]] = self
        return upper

    def drop(self, keep: int) -> tuple[tuple[int, ...], list[int]]:
        """Gives up all blocks but the first `keep`; a node without blocks leaves its parent."""
        cut = keep * self.block_tokens
        if keep == 0 and self.parent is not None:
            del self.parent.children[self.tokens[: self.block_tokens]]
        gone = self.tokens[cut:], self.blocks[keep:]
        self.tokens, self.blocks = self.tokens[:cut], self.blocks[:keep]
        return gone


@dataclass(frozen=True, slots=True)
class Match:
    """A place in the tree: `blocks` blocks deep, in `node` or, once that has split, above it."""

    node: Node
    blocks: int
    tokens: int

    def resolve(self) -> Node:
        """The node that holds the last matched block now; `ValueError` if it was evicted."""
        node = self.node
        if self.blocks and not node.start < node.end >= self.blocks:
            raise ValueError("the match is stale: its blocks were evicted")
        while node.parent is not None and node.start >= self.blocks:
            node = node.parent
        return node


def walk(root: Node, tokens: Sequence[int], block_tokens: int) -> Match:
    """As far down as the tokens agree, in whole blocks."""
    node, at = root, 0
    while child := node.children.get(tuple(tokens[at : at + block_tokens])):
        node = child
        for start in range(0, len(node.tokens), block_tokens):
            if tuple(tokens[at : at + block_tokens]) != node.tokens[start : start + block_tokens]:
                return Match(node, at // block_tokens, at)
            at += block_tokens
    return Match(node, at // block_tokens, at)
