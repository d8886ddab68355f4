"""Workloads that hypothesis makes up: any that are valid."""

from __future__ import annotations

from hypothesis import strategies as st

from kvlab.workload import Header, Message, Workload, WorkloadRequest

# Any text that can be written; some letters often, so that texts of the header occur in messages.
texts = st.text(max_size=12) | st.text("ab ", max_size=12)
names = st.text(min_size=1, max_size=6)
times = st.floats(min_value=0, max_value=1e9, allow_nan=False)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    requests: list[WorkloadRequest] = []
    count = draw(st.integers(1, 6))
    ids = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    for id in ids:  # noqa: A001
        earlier = [request.id for request in requests]
        after = draw(st.none() | st.sampled_from(earlier)) if earlier else None
        messages = [
            Message(draw(st.sampled_from(["system", "user", "assistant"])), draw(texts))
            for _ in range(draw(st.integers(0, 2)))
        ]
        messages.append(Message(draw(st.sampled_from(["system", "user"])), draw(texts)))
        requests.append(
            WorkloadRequest(
                id=id,
                klass=draw(names),
                session=draw(names),
                messages=tuple(messages),
                max_tokens=draw(st.integers(1, 2**31)),
                turn=draw(st.integers(0, 99)),
                after=after,
                append=after is not None and draw(st.booleans()),
                waits_for=tuple(draw(st.lists(st.sampled_from(earlier), max_size=2)))
                if after is not None
                else (),
                delay_ms=draw(times) if after is not None else 0.0,
                arrival_ms=draw(st.none() | times) if after is None else None,
                reply=draw(st.none() | texts),
                salt=draw(st.just("") | texts),
            )
        )
    header = Header(
        name=draw(names),
        seed=draw(st.none() | st.integers(0, 2**63)),
        generator=draw(texts),
        options=draw(st.dictionaries(names, st.none() | st.integers() | st.booleans() | texts)),
        texts=draw(st.dictionaries(names, st.text("ab ", min_size=1, max_size=3), max_size=3)),
        notes=tuple(draw(st.lists(texts, max_size=2))),
    )
    return Workload(header, tuple(requests))
