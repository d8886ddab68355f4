"""What the tests of metrics and the live page share: an engine that tells what a test says, and both over an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from served import served

pytest.importorskip("fastapi", reason="the 'serve' extra is not installed")
pytest.importorskip("prometheus_client", reason="the 'serve' extra is not installed")
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from kvlab.errors import CapacityError
from kvlab.serve.engine import (
    Admitted,
    Cancelled,
    EngineCounters,
    EngineObserver,
    EngineState,
    Failed,
    Finished,
    GenerationRequest,
    SequenceState,
    Span,
    TierTokens,
    Timings,
    Usage,
)
from kvlab.serve.observe import LiveState, ServeMetrics, router

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from kvlab import Store
    from kvlab.serve.engine.engine import Engine

MODEL = "tiny"
SOURCES = ("l1", "l2", "l3", "remote", "compute")


@dataclass
class Script:
    """An engine's seam without an engine: tells its observers what a test wants told."""

    observers: list[EngineObserver] = field(default_factory=list)
    running: list[SequenceState] = field(default_factory=list)
    queued: list[SequenceState] = field(default_factory=list)
    closing: bool = False

    def add_observer(self, observer: EngineObserver) -> None:
        self.observers.append(observer)

    def snapshot(self) -> EngineState:
        return EngineState(
            tuple(self.running), tuple(self.queued), 4, 64, self.closing, EngineCounters()
        )

    def close(self) -> None:
        self.closing = True

    def tell(self, what: str, *arguments: object) -> None:
        for observer in self.observers:
            getattr(observer, what)(*arguments)


@dataclass(frozen=True)
class Told:
    """What happens to one request, from its admission to its end.

    Attributes:
        id: The request's.
        tokens: Prompt tokens by source, in the order of `SOURCES`.
        restored: Of those found, how many were truly restored; None for all.
        times: Seconds of each generated token: of the first since the submission, of others since the one before.
        end: A finish reason, `cancelled`, `failed`, `unadmitted` (cancelled while it waited) or `rejected`.
    """

    id: str
    tokens: tuple[int, ...]
    restored: int | None
    times: tuple[float, ...]
    end: str

    @property
    def prompt(self) -> int:
        return sum(self.tokens)

    @property
    def found(self) -> int:
        return self.prompt - self.tokens[-1]

    @property
    def admitted(self) -> bool:
        return self.end not in {"unadmitted", "rejected"}

    @property
    def spans(self) -> tuple[Span, ...]:
        spans, at = [], 0
        for source, tokens in zip(SOURCES, self.tokens, strict=True):
            if tokens:
                spans.append(Span(at, at + tokens, source))  # type: ignore[arg-type]
                at += tokens
        return tuple(spans)

    def begin(self, script: Script) -> None:
        """Tells what happens before the end."""
        cached = TierTokens(*self.tokens[:-1])
        request = GenerationRequest(self.id, np.zeros(self.prompt, np.int64), max_tokens=99)
        script.tell("admitted", Admitted(self.id, cached, self.prompt, 0.25, self.spans), request)
        for at, seconds in enumerate(self.times):
            script.tell("token" if at else "first_token", self.id, seconds)

    def tell(self, script: Script) -> None:
        """Tells all of it."""
        if self.admitted:
            self.begin(script)
        restored = self.found if self.restored is None else self.restored
        usage = Usage(self.prompt, len(self.times), TierTokens(l1=restored))
        if self.end == "rejected":
            script.tell("rejected", "queue_full")
        elif self.end in {"cancelled", "unadmitted"}:
            script.tell("cancelled", Cancelled(self.id, usage))
        elif self.end == "failed":
            script.tell("failed", Failed(self.id, CapacityError("no room for 3 blocks")))
        else:
            first, *others = self.times
            timings = Timings(0.25, first, first, sum(others), len(self.times), tuple(others))
            script.tell("finished", Finished(self.id, self.end, usage, timings))  # type: ignore[arg-type]


@st.composite
def told(draw: st.DrawFn) -> list[Told]:
    """Requests one after the other, each with an id of its own."""
    requests = []
    for at in range(draw(st.integers(0, 12))):
        tokens = draw(st.tuples(*[st.integers(0, 600)] * 4, st.integers(1, 600)))
        end = draw(
            st.sampled_from(["stop", "length", "cancelled", "failed", "unadmitted", "rejected"])
        )
        least = 1 if end in {"stop", "length"} else 0
        times = () if end == "unadmitted" else tuple(
            draw(st.lists(st.floats(0.0, 3.0), min_size=least, max_size=4))
        )  # fmt: skip
        restored = draw(st.none() | st.integers(0, sum(tokens[:-1])))
        requests.append(Told(f"cmpl-{at}", tokens, restored, times, end))
    return requests


class Observed(NamedTuple):
    """An engine, watched.

    Attributes:
        metrics: Its metrics.
        state: Its live state.
        serve: The routes under a real server, as a context manager that gives its address; its end closes the engine.
    """

    metrics: ServeMetrics
    state: LiveState
    serve: Callable[..., AbstractContextManager[str]]


def observe(
    engine: Script | Engine, store: Store | None, *, vllm_names: bool = False, **options: Any
) -> Observed:
    metrics = ServeMetrics(engine, store, model=MODEL, vllm_names=vllm_names)
    mode = "baseline" if store is None else "nvme"
    state = LiveState(engine, store, model=MODEL, mode=mode, **options)
    app = FastAPI()
    app.include_router(router(metrics, state))

    def serve(port: int = 0) -> AbstractContextManager[str]:
        return served(app, port=port, before_stop=engine.close)

    return Observed(metrics, state, serve)


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(metrics: ServeMetrics) -> Samples:
    """What Prometheus reads: a number for each series, none of which stands twice."""
    text, _ = metrics.exposition()
    samples: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def series(samples: Samples, name: str, label: str) -> dict[str, float]:
    """The numbers of one metric by one label, the others summed over."""
    found: dict[str, float] = {}
    for (sample, labels), value in samples.items():
        if sample == name:
            key = dict(labels)[label]
            found[key] = found.get(key, 0.0) + value
    return found
