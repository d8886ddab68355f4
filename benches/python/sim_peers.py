"""Hit counts of `kvlab.sim` beside those of libcachesim (flat) and kvcache-simulator (prefix).

`pip install 'kvlab[sim-test]'`, then `python benches/python/sim_peers.py`. Random traces, and those of
`KVLAB_TRACES` if that is set. Ends with 1 if a count differs where the definitions agree; where they do
not, both counts are shown.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import libcachesim
from kvcache_sim.plan import build_execution_plan
from kvcache_sim.policies import simulate_policy
from kvcache_sim.trace import TraceData

from kvlab.sim import Request, prefix
from kvlab.sim.formats import TraceInfo
from kvlab.sim.trace import Trace, load

FLAT: dict[str, tuple[Callable[..., libcachesim.Cache], str]] = {
    "lru": (libcachesim.LRU, ""),
    "fifo": (libcachesim.FIFO, ""),
    "sieve": (libcachesim.Sieve, ""),
    "lfu-plain": (libcachesim.LFU, ""),
    "belady": (libcachesim.Belady, ""),
    "slru": (libcachesim.SLRU, "two segments here, four there"),
    "s3-fifo": (libcachesim.S3FIFO, "a variant of its own there"),
    "w-tinylfu": (libcachesim.WTinyLFU, "a variant of its own there"),
}
"""By policy: libcachesim's, and why counts may differ; nothing where they must be equal."""
PREFIX = {"fifo_root_first": "fifo", "lru": "lru", "belady_bypass": "optimal"}
NEVER = 2**63 - 1


@dataclass(frozen=True)
class Count:
    """Hits of one policy at one size, here and there.

    Attributes:
        what: Trace, size, mode and policy.
        own: Hits here.
        theirs: Hits there.
        differs: Why they may differ; nothing where they must be equal.
    """

    what: str
    own: int
    theirs: int
    differs: str = ""

    @property
    def fine(self) -> bool:
        """Whether they are equal where they must be."""
        return self.own == self.theirs or bool(self.differs)

    def __str__(self) -> str:
        if self.own == self.theirs:
            return f"ok    {self.what}: {self.own}"
        note = f"differs ({self.differs})" if self.differs else "NOT EQUAL"
        mark = "     " if self.differs else "NOT  "
        return f"{mark} {self.what}: {self.own}, {self.theirs} there: {note}"


def flat_hits(make: Callable[..., libcachesim.Cache], blocks: Sequence[int], capacity: int) -> int:
    """Hits of libcachesim, one request a block, every block of size 1."""
    soonest: dict[int, int] = {}
    following = [NEVER] * len(blocks)
    for at in range(len(blocks) - 1, -1, -1):
        following[at] = soonest.get(blocks[at], NEVER)
        soonest[blocks[at]] = at
    cache = make(cache_size=capacity, hashpower=16)
    hits = 0
    for at, (block, after) in enumerate(zip(blocks, following, strict=True)):
        request = libcachesim.Request(
            obj_id=block + 1,
            obj_size=1,
            op=libcachesim.ReqOp.OP_GET,
            clock_time=at,
            next_access_vtime=after,
        )
        hits += cache.get(request)
    return hits


def prefix_hits(policy: str, prompts: Sequence[Sequence[int]], capacity: int) -> int | None:
    """Block hits of kvcache-simulator over all requests; None if it says that the cache never filled."""
    starts = [0]
    for blocks in prompts:
        starts.append(starts[-1] + len(blocks))
    ids = [block for blocks in prompts for block in blocks]
    data = TraceData(
        ids, [1] * len(ids), starts, 1, len(prompts), len(set(ids)), len(ids), 0.0, 0, 0
    )
    # Its measurement begins behind the warm-up, before which the cache must have filled: an own request fills it.
    filler = list(range(10**9, 10**9 + capacity))
    data.ids[:0] = filler
    data.tokens[:0] = [1] * capacity
    data.request_starts = [0, *(start + capacity for start in starts)]
    data.request_count += 1
    plan = build_execution_plan(data, warmup_fraction=1.5 / data.request_count)
    result = simulate_policy(plan, policy, capacity)
    return result.hitTokens if result.measurementMode == "fixed_window" else None


def made_up(seed: int) -> Trace:
    """Conversations that go on from prefixes of earlier ones."""
    draw = random.Random(seed)
    prompts: list[list[int]] = [[]]
    following = 0
    for _ in range(400):
        before = draw.choice(prompts[-40:])
        more = draw.randint(0, 8)
        kept = before[: draw.randint(0, len(before))]
        prompts.append(kept + list(range(following, following + more)))
        following += more
    requests = (Request(float(at), blocks, len(blocks)) for at, blocks in enumerate(prompts))
    return Trace.from_requests(requests, TraceInfo(f"made up {seed}", block_tokens=1))


def filled(trace: Trace, prompts: Sequence[Sequence[int]], capacity: int) -> Trace:
    """The trace behind the same request that fills kvcache-simulator's cache."""
    filler = list(range(10**9, 10**9 + capacity))
    requests = (Request(0.0, blocks, len(blocks)) for blocks in [filler, *prompts])
    return Trace.from_requests(requests, trace.info)


def counts(trace: Trace, sizes: Iterable[int]) -> Iterator[Count]:
    """Hits of a trace, of all policies that both have, at each size."""
    prompts = [trace.core.blocks(index) for index in range(len(trace))]
    blocks = [block for prompt in prompts for block in prompt]
    longest = max(map(len, prompts))
    for size in sizes:
        where = f"{trace.info.name}, {size} blocks"
        for policy, (make, differs) in FLAT.items():
            own = prefix.run(trace, policy=policy, capacity_blocks=size, mode="flat").hits
            theirs = flat_hits(make, blocks, size)
            yield Count(f"{where}, flat {policy}", own, theirs, differs)
        behind = filled(trace, prompts, size)
        for policy, name in PREFIX.items():
            own = prefix.run(behind, policy=policy, capacity_blocks=size).hits
            found = prefix_hits(name, prompts, size)
            if found is not None:
                differs = (
                    "a request larger than the cache evicts its own last block there"
                    if longest > size and name != "fifo"
                    else ""
                )
                yield Count(f"{where}, prefix {policy}", own, found, differs)


def main() -> int:
    """Compares all; 1 if a count is not what it should be."""
    fine = True
    for seed in range(4):
        fine &= shown(counts(made_up(seed), (20, 40, 150)))
    if os.environ.get("KVLAB_TRACES"):
        fine &= shown(counts(load("mooncake_conversation", "mooncake"), (1827, 9139, 45697)))
    return 0 if fine else 1


def shown(found: Iterable[Count]) -> bool:
    """Prints counts; false if one is not what it should be."""
    fine = True
    for count in found:
        print(count)
        fine &= count.fine
    return fine


if __name__ == "__main__":
    sys.exit(main())
