"""How the toys take times: arms in turns, the warm-up dropped, the median told."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from statistics import linear_regression, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


def interleaved(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each arm. They run in turns, so that a slow moment of the machine hits all.

    Args:
        arms: What to time, by name.
        rounds: How often each runs, after one round that is not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, action in arms.items():
            begun = time.perf_counter()
            action()
            taken[name].append(time.perf_counter() - begun)
    return {name: median(seconds[1:]) for name, seconds in taken.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread here: that is steadier."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def thread_ms(
    arms: Mapping[str, Callable[[], object]], rounds: int, least_ms: float = 0.0
) -> dict[str, float]:
    """Median milliseconds that each arm keeps one thread busy; whatever else runs is not counted.

    The arms take turns, and the first round is dropped. A turn repeats an arm until `least_ms` have
    passed: one call of a fast arm is too short to time.
    """
    took: dict[str, list[float]] = {name: [] for name in arms}
    with one_thread():
        for _ in range(rounds + 1):
            for name, call in arms.items():
                calls, begun = 0, time.thread_time()
                while calls == 0 or (time.thread_time() - begun) * 1e3 < least_ms:
                    call()
                    calls += 1
                took[name].append((time.thread_time() - begun) * 1e3 / calls)
    return {name: median(each[1:]) for name, each in took.items()}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The k of the best fit `cost ~ size ** k`: the slope of the line through the logarithms."""
    logs = [[math.log(value) for value in values] for values in (sizes, costs)]
    return linear_regression(logs[0], logs[1]).slope
