"""The eight page workloads of kv-hierarchy-lab: the same pages from the same seeds, number for number.

The patterns are https://github.com/manishklach/kv-hierarchy-lab's (MIT).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from kvlab.errors import InvalidArgumentError
from kvlab.sim.schemes import SchemePlan
from kvlab.sim.workloads.pages import PageWorkload, build_pages, trace_of

__all__ = [
    "adversarial_burst",
    "adversarial_prefetch",
    "chat_continuation",
    "long_tail_mix",
    "mixed_locality",
    "periodic_reuse",
    "prefetch_friendly",
    "rag_burst",
]


def chat_continuation(
    *,
    num_pages: int = 64,
    length: int = 256,
    seed: int = 7,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """A conversation: a working set of 12 pages, one of which changes every 17 steps."""
    rng = _start(seed, num_pages, length)
    working_set = list(range(min(12, num_pages)))

    def page(step: int) -> int:
        if step % 17 == 0:
            fresh = rng.randrange(num_pages)
            working_set[rng.randrange(len(working_set))] = fresh
        return rng.choice(working_set[-8:])

    trace = map(page, range(length))
    return _made("chat_continuation", trace, num_pages, 2048, scheme=scheme, seed=seed)


def rag_burst(
    *,
    num_pages: int = 96,
    length: int = 320,
    seed: int = 11,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """Retrieval: rounds of 14 uses of 16 hot pages and 6 of the others; whole rounds of 20 only."""
    rng = _start(seed, num_pages, length, least=22)
    hot, others = range(16), range(16, num_pages)
    rounds = (rng.choices(hot, k=14) + rng.sample(others, k=6) for _ in range(length // 20))
    trace = chain.from_iterable(rounds)
    return _made("rag_burst", trace, num_pages, 2304, scheme=scheme, seed=seed)


def periodic_reuse(
    *,
    num_pages: int = 80,
    length: int = 320,
    period: int = 9,
    seed: int = 13,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """Every third page, round and round, as an induction head looks back; `period` pages in all."""
    _start(seed, num_pages, length)
    if period < 1:
        message = f"period = {period}; use at least 1"
        raise InvalidArgumentError(message)
    trace = ((step % period) * 3 % num_pages for step in range(length))
    return _made("periodic_reuse", trace, num_pages, 2048, scheme=scheme, seed=seed)


def long_tail_mix(
    *,
    num_pages: int = 128,
    length: int = 400,
    seed: int = 17,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """Seven uses of ten go to 10 hot pages, the others to a tail that thins out as 1 / rank."""
    rng = _start(seed, num_pages, length, least=11)
    hot, tail = range(10), range(10, num_pages)
    weights = [1.0 / (rank + 1) for rank in range(len(tail))]
    trace = (
        rng.choice(hot) if rng.random() < 0.7 else rng.choices(tail, weights=weights, k=1)[0]
        for _ in range(length)
    )
    return _made("long_tail_mix", trace, num_pages, 2048, scheme=scheme, seed=seed)


def prefetch_friendly(
    *,
    num_pages: int = 48,
    length: int = 240,
    seed: int = 19,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """All pages in order, again and again: what follows is always known."""
    _start(seed, num_pages, length)
    trace = (step % num_pages for step in range(length))
    return _made("prefetch_friendly", trace, num_pages, 2048, scheme=scheme, seed=seed)


def adversarial_burst(
    *,
    num_pages: int = 96,
    length: int = 320,
    burst_size: int = 12,
    seed: int = 29,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """Bursts that come back to what they have just pushed out."""
    rng = _start(seed, num_pages, length, least=3)
    if burst_size < 1:
        message = f"burst_size = {burst_size}; use at least 1"
        raise InvalidArgumentError(message)
    third = num_pages // 3
    early, middle = range(third), range(third, 2 * num_pages // 3)
    late = range(2 * num_pages // 3, num_pages)

    def bursts() -> Iterator[int]:
        while True:
            anchor = rng.sample(early, k=min(burst_size, len(early)))
            yield from anchor
            yield from rng.sample(middle, k=min(burst_size, len(middle)))
            yield from anchor[: max(1, min(burst_size // 2, len(anchor)))]
            yield from rng.sample(late, k=min(burst_size, len(late)))

    trace = islice(bursts(), length)
    return _made("adversarial_burst", trace, num_pages, 2112, scheme=scheme, seed=seed)


def mixed_locality(
    *,
    num_pages: int = 112,
    length: int = 360,
    seed: int = 31,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """Phases of 60 steps: a hot set, then 20 pages of the tail, then every fifth page."""
    rng = _start(seed, num_pages, length, least=13)
    hot, tail = range(12), range(12, num_pages)

    def page(step: int) -> int:
        phase = (step // 60) % 3
        if phase == 2:
            return (step * 5) % num_pages
        return rng.choice(tail[:20] if phase else hot)

    trace = map(page, range(length))
    return _made("mixed_locality", trace, num_pages, 2176, scheme=scheme, seed=seed)


def adversarial_prefetch(
    *,
    num_pages: int = 64,
    length: int = 256,
    seed: int = 23,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """Jumps between the lower and the upper half of the pages: what followed before tells nothing."""
    rng = _start(seed, num_pages, length, least=2)
    half = num_pages // 2
    halves = (0, half), (half, num_pages)
    trace = (rng.randrange(*halves[step % 2]) for step in range(length))
    return _made("adversarial_prefetch", trace, num_pages, 2048, scheme=scheme, seed=seed)


def _start(seed: int, num_pages: int, length: int, *, least: int = 1) -> random.Random:
    if num_pages < least:
        message = f"num_pages = {num_pages}; this workload needs at least {least}"
        raise InvalidArgumentError(message)
    if length < 0:
        message = f"length = {length}; use 0 or more accesses"
        raise InvalidArgumentError(message)
    return random.Random(seed)  # noqa: S311 - a workload, not a secret


def _made(
    name: str,
    trace: Iterable[int],
    num_pages: int,
    base_scalars: int,
    *,
    scheme: str | SchemePlan,
    seed: int,
) -> PageWorkload:
    """The workload of the pages that are drawn; their sizes come from a `random.Random(seed)` of their own."""
    pages = build_pages(num_pages, base_scalars, scheme, seed)
    return PageWorkload(name=name, pages=pages, trace=trace_of(trace), seed=seed)
