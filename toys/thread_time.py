"""How long one thread is busy: for kernels so short that a neighbour's work would drown them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def thread_ms(
    arms: Mapping[str, Callable[[], object]], rounds: int, least_ms: float = 0.0
) -> dict[str, float]:
    """Median milliseconds that each arm keeps one thread busy; whatever else runs is not counted.

    The arms take turns, and the first round is dropped. A turn repeats an arm until `least_ms` have
    passed: one call of a fast arm is too short to time.
    """
    took: dict[str, list[float]] = {name: [] for name in arms}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds + 1):
        for name, call in arms.items():
            calls, begun = 0, time.thread_time()
            while calls == 0 or (time.thread_time() - begun) * 1e3 < least_ms:
                call()
                calls += 1
            took[name].append((time.thread_time() - begun) * 1e3 / calls)
    torch.set_num_threads(threads)
    return {name: statistics.median(each[1:]) for name, each in took.items()}
