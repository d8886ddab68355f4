"""When the requests of a workload would start, if every answer took a known time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvlab.workload.schema import WorkloadRequest

__all__ = ["ANSWER_TOKEN_MS", "answer_ms", "starts"]

ANSWER_TOKEN_MS = 30.0
"""What a token of an answer takes by default, in milliseconds."""

_CHARS_PER_TOKEN = 4


def answer_ms(request: WorkloadRequest, token_ms: float = ANSWER_TOKEN_MS) -> float:
    """What an answer takes, in milliseconds: by the recorded reply's length, else the longest."""
    tokens = request.max_tokens
    if request.reply is not None:
        tokens = min(tokens, -(-len(request.reply) // _CHARS_PER_TOKEN))
    return tokens * token_ms


def starts(
    requests: Sequence[WorkloadRequest],
    duration_ms: Callable[[WorkloadRequest], float] = answer_ms,
) -> list[float]:
    """When each request starts, in milliseconds from the start of the workload.

    A request with `after` starts its delay after the end of that one and of all that it waits for;
    one with an arrival then; any other when the last one without `after` has ended, as with a
    single client.

    Args:
        requests: Of one workload, in its order.
        duration_ms: What a request takes from its start to the end of its answer.
    """
    ends: dict[str, float] = {}
    begun = []
    free = 0.0
    for request in requests:
        if request.after is not None:
            links = (request.after, *request.waits_for)
            start = max(ends[name] for name in links) + request.delay_ms
        elif request.arrival_ms is not None:
            start = request.arrival_ms
        else:
            start = free
        ends[request.id] = start + duration_ms(request)
        if request.after is None:
            free = ends[request.id]
        begun.append(start)
    return begun
