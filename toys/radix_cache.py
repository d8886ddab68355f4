"""A radix cache: which blocks of KV cache does a new prompt share with the prompts before it?

A token's key and value depend on the tokens before it and on nothing after it. So two prompts that begin
alike have the same KV for as long as they are alike, and a tree of token sequences finds that beginning:
each node holds tokens and the blocks with their KV, and a prompt walks down as far as it agrees. Where it
stops agreeing inside a node, the node splits. Memory is given back leaf by leaf, the least recently used
first: a node further up is the beginning of everything below it.

Two requests behind one system prompt come in here, then one that leaves it half way. The tree itself is
radix_tree.py, which does what kvlab's Rust core does.

Source: SGLang's RadixAttention, Zheng et al. 2023 (arXiv:2312.07104).

    python toys/radix_cache.py [--quick] [--json] [--out radix_cache.svg]
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, panels
from radix_tree import RadixCache

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK_TOKENS = 16


def serve(cache: RadixCache, prompt: list[int], next_block: int) -> dict[str, int]:
    """One request: reuses what matches, computes the rest into blocks from `next_block` on."""
    hit = cache.match_prefix(prompt)
    whole = len(prompt) // cache.block_tokens
    new = range(next_block, next_block + whole - hit.blocks)
    cache.insert(prompt[: whole * cache.block_tokens], [*cache.blocks_of(hit), *new])
    return {
        "prompt_tokens": len(prompt),
        "hit_tokens": hit.tokens,
        "computed_tokens": len(prompt) - hit.tokens,
        "blocks_saved": hit.blocks,
        "new_blocks": len(new),
    }


def picture_of(cache: RadixCache, prompts: list[list[int]]) -> list[Results]:
    """The nodes, parents first: where each begins, what it holds and which prompts (from 1) go through it."""
    nodes = cache.nodes()
    paths = [{id(node) for node in cache.match_prefix(prompt).node.path()} for prompt in prompts]
    return [
        {
            "start": node.start,
            "blocks": len(node.blocks),
            "parent": nodes.index(node.parent) if node.parent in nodes else None,
            "used_by": [number for number, path in enumerate(paths, 1) if id(node) in path],
        }
        for node in nodes
    ]


def measure(*, quick: bool = False) -> Results:
    """Two requests behind one system prompt, a third that leaves it in the middle, then eviction."""
    cache = RadixCache(BLOCK_TOKENS)
    system = list(range(512 if quick else 4096))
    prompts = [
        [*system, *range(100_000, 100_120)],
        [*system, *range(200_000, 200_200)],
        [*system[: len(system) // 2], *range(300_000, 300_320)],
    ]
    requests = [serve(cache, prompt, cache.total_blocks) for prompt in prompts[:2]]
    both = cache.total_blocks
    third = serve(cache, prompts[2], both)
    tree, held = picture_of(cache, prompts), cache.total_blocks
    if [requests[1]["hit_tokens"], third["hit_tokens"]] != [len(system), len(system) // 2]:
        raise AssertionError(f"the common beginnings were not found: {requests}, {third}")
    evicted = [len(run.blocks) for run in cache.evict(held)]
    if sum(evicted) != held or len(evicted) != len(tree):
        raise AssertionError(f"{held} blocks in {len(tree)} nodes, but {evicted} were evicted")
    return {
        "block_tokens": BLOCK_TOKENS,
        "requests": requests,
        "total_blocks": both,
        "third": third,
        "tree": tree,
        "evicted": evicted,
        "blocks_without_sharing": sum(len(prompt) // BLOCK_TOKENS for prompt in prompts),
    }


def tell(results: Results) -> None:
    """What each request reused, and how the memory comes back."""
    for number, request in enumerate(results["requests"], 1):
        print(f"request {number}: " + ", ".join(f"{k} {v}" for k, v in request.items()))
    print(f"{results['total_blocks']} blocks of {results['block_tokens']} tokens hold both prompts")
    print("request 3: " + ", ".join(f"{k} {v}" for k, v in results["third"].items()))
    held = sum(node["blocks"] for node in results["tree"])
    print(f"{held} blocks hold the three; each for itself, {results['blocks_without_sharing']}")
    print(f"evicted leaf by leaf, blocks: {', '.join(map(str, results['evicted']))}")


def draw(results: Results) -> Figure:
    """The tree from the left, as wide as its blocks; the darker, the more prompts share a node."""
    tree = results["tree"]
    figure, (axes,) = panels(1, width=8, height=2.8)
    rows = {
        1: 1.0,
        2: 0.0,
        3: 2.0,
    }  # a leaf lies at its prompt's height, an inner node between its own
    heights = [fmean(rows[prompt] for prompt in node["used_by"]) for node in tree]
    for node, height in zip(tree, heights, strict=True):
        sharing = len(node["used_by"])
        colour = {1: "#c6dbef", 2: "#6baed6", 3: "#2171b5"}[sharing]
        axes.barh(height, node["blocks"], 0.5, left=node["start"], color=colour)
        if node["parent"] is not None:
            axes.plot([node["start"]] * 2, [heights[node["parent"]], height], color="0.4")
        text = f"{node['blocks']} blocks\nfor {', '.join(map(str, node['used_by']))}"
        if sharing > 1:
            middle = node["start"] + node["blocks"] / 2
            axes.text(middle, height, text, ha="center", va="center", color="white", fontsize=8)
        else:
            end = node["start"] + node["blocks"]
            axes.text(end + 2, height, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.15 * max(node["start"] + node["blocks"] for node in tree))
    axes.set_yticks([])
    title = f"Three prompts, one tree: {sum(node['blocks'] for node in tree)} blocks"
    title += f" instead of {results['blocks_without_sharing']}"
    axes.set(
        xlabel=f"blocks of {results['block_tokens']} tokens from the prompt's start", title=title
    )
    return figure


def main() -> None:
    """Serves, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
