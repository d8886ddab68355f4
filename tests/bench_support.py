"""Workloads for the tests of the bench, and what runs them in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from kvlab.bench.clock import VirtualTimeLoop
from kvlab.workload.schema import Header, Message, Workload, WorkloadRequest

T = TypeVar("T")


def simulated(work: Coroutine[Any, Any, T]) -> T:
    """Runs it on a clock that jumps."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


def request(name: str, *, text: str = "", **asked: Any) -> WorkloadRequest:
    fields: dict[str, Any] = {"klass": "chat", "session": name, "max_tokens": 4, **asked}
    messages = (Message("user", text or f"the question of {name}"),)
    return WorkloadRequest(id=name, messages=messages, **fields)


def workload(*requests: WorkloadRequest) -> Workload:
    made = Workload(Header(name="test"), requests)
    made.validate()
    return made


def sessions() -> Workload:
    """Three sessions of two turns behind one system prompt."""
    requests = []
    for name in ("a", "b", "c"):
        first = request(f"{name}0", text="rule " * 60 + name, session=name, reply="fine")
        again = request(f"{name}1", after=f"{name}0", append=True, session=name, turn=1)
        requests += [first, again]
    return workload(*requests)


def chatting(tokenizer: Any) -> Any:
    """A tokenizer with a template of conversations, which it had none of."""
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
    )
    return tokenizer
