"""Many replays at once: they run in Rust without the GIL, so threads are enough."""

from __future__ import annotations

import os
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["run_all"]

Result = TypeVar("Result")


def run_all(
    cells: Sequence[Callable[[], Result]],
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Result]:
    """Calls all of them and gives their results in the order in which they were given.

    Args:
        cells: What to call; none may depend on another.
        workers: Threads, at least 1; by default one a processor.
        progress: Called with how many are done.

    Raises:
        InvalidArgumentError: fewer than 1 worker.
        Exception: What the first failing cell raised; those that did not start are not called.
    """
    if workers is not None and workers < 1:
        raise InvalidArgumentError(f"workers = {workers}: use at least 1")
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = [pool.submit(cell) for cell in cells]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                progress(len(futures) - len(waiting))
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
