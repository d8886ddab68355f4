"""The eight page workloads of kv-hierarchy-lab: the same pages from the same seeds, number for number.

The patterns are https://github.com/manishklach/kv-hierarchy-lab's (MIT).
"""

from __future__ import annotations

import random

from kvlab.errors import InvalidArgumentError
from kvlab.sim.schemes import SchemePlan
from kvlab.sim.workloads.pages import Page, PageWorkload, build_pages, trace_of

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
    trace = []
    for step in range(length):
        if step % 17 == 0:
            page = rng.randrange(num_pages)
            working_set[rng.randrange(len(working_set))] = page
        trace.append(rng.choice(working_set[-8:]))
    pages = build_pages(num_pages, 2048, scheme, seed)
    return _workload("chat_continuation", pages, trace, seed)


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
    trace: list[int] = []
    for _ in range(length // 20):
        trace.extend(rng.choices(hot, k=14))
        trace.extend(rng.sample(others, k=6))
    pages = build_pages(num_pages, 2304, scheme, seed)
    return _workload("rag_burst", pages, trace, seed)


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
    trace = [(step % period) * 3 % num_pages for step in range(length)]
    pages = build_pages(num_pages, 2048, scheme, seed)
    return _workload("periodic_reuse", pages, trace, seed)


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
    trace = []
    for _ in range(length):
        if rng.random() < 0.7:
            trace.append(rng.choice(hot))
        else:
            trace.append(rng.choices(tail, weights=weights, k=1)[0])
    pages = build_pages(num_pages, 2048, scheme, seed)
    return _workload("long_tail_mix", pages, trace, seed)


def prefetch_friendly(
    *,
    num_pages: int = 48,
    length: int = 240,
    seed: int = 19,
    scheme: str | SchemePlan = "fp16",
) -> PageWorkload:
    """All pages in order, again and again: what follows is always known."""
    _start(seed, num_pages, length)
    trace = [step % num_pages for step in range(length)]
    pages = build_pages(num_pages, 2048, scheme, seed)
    return _workload("prefetch_friendly", pages, trace, seed)


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
    trace: list[int] = []
    while len(trace) < length:
        anchor = rng.sample(early, k=min(burst_size, len(early)))
        trace.extend(anchor)
        trace.extend(rng.sample(middle, k=min(burst_size, len(middle))))
        trace.extend(anchor[: max(1, min(burst_size // 2, len(anchor)))])
        trace.extend(rng.sample(late, k=min(burst_size, len(late))))
    pages = build_pages(num_pages, 2112, scheme, seed)
    return _workload("adversarial_burst", pages, trace[:length], seed)


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
    trace = []
    for step in range(length):
        phase = (step // 60) % 3
        if phase == 0:
            trace.append(rng.choice(hot))
        elif phase == 1:
            trace.append(rng.choice(tail[:20]))
        else:
            trace.append((step * 5) % num_pages)
    pages = build_pages(num_pages, 2176, scheme, seed)
    return _workload("mixed_locality", pages, trace, seed)


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
    trace = []
    for step in range(length):
        low, high = (0, half) if step % 2 == 0 else (half, num_pages)
        trace.append(rng.randrange(low, high))
    pages = build_pages(num_pages, 2048, scheme, seed)
    return _workload("adversarial_prefetch", pages, trace, seed)


def _start(seed: int, num_pages: int, length: int, *, least: int = 1) -> random.Random:
    if num_pages < least:
        message = f"num_pages = {num_pages}; this workload needs at least {least}"
        raise InvalidArgumentError(message)
    if length < 0:
        message = f"length = {length}; use 0 or more accesses"
        raise InvalidArgumentError(message)
    return random.Random(seed)  # noqa: S311 - a workload, not a secret


def _workload(name: str, pages: list[Page], trace: list[int], seed: int) -> PageWorkload:
    return PageWorkload(name=name, pages=pages, trace=trace_of(trace), seed=seed)
