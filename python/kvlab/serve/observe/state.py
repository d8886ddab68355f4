"""What the live page shows: requests as an engine tells of them, and tiers as the store counts them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal

from kvlab import __version__
from kvlab.serve.observe.ring import SecondRing
from kvlab.serve.observe.snapshot import (
    SOURCES,
    VERSION,
    Eviction,
    Failure,
    Recent,
    Refusal,
    RequestView,
    Series,
    Server,
    Snapshot,
    Span,
    TierView,
    TokenCounts,
    Totals,
)
from kvlab.serve.observe.tiers import EVICTION_UNITS, StoreReading, read_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvlab import Store
    from kvlab.serve.engine import (
        Admitted,
        Cancelled,
        Failed,
        Finished,
        GenerationRequest,
        SequenceState,
        Usage,
    )
    from kvlab.serve.observe.collectors import Observable

__all__ = ["LiveState"]

_SERIES_SECONDS = 120
_RECENT_SECONDS = 10
_ENDED = 24
_WAITING = 32
_ERRORS = 20
_MESSAGE = 500

_REJECTIONS = {
    "queue_full": "the queue was full; the client may try again",
    "closing": "the server is shutting down",
    "prompt_too_long": "prompt and answer do not fit into the context",
}


@dataclass(slots=True)
class _Known:
    """What is remembered of an admitted request; the engine's snapshot has the rest."""

    view: RequestView
    submitted: float


class LiveState:
    """Follows an engine, as its observer, and its store, and says what happens.

    Safe from many threads. Its observer's part takes microseconds; a snapshot well below a millisecond.

    Args:
        engine: Whose requests are followed, from now on.
        store: Its store; None for a mode without one.
        model: The name that requests give the model.
        mode: The mode's name.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        engine: Observable,
        store: Store | None,
        *,
        model: str,
        mode: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._store = store
        self._model = model
        self._mode = mode
        self._clock = clock
        self._began = clock()
        self._started = time.time()
        self._lock = Lock()
        self._ring = SecondRing(_SERIES_SECONDS)
        self._tokens = dict.fromkeys(SOURCES, 0)
        self._counts = dict.fromkeys(
            ("admitted", "finished", "cancelled", "failed", "rejected", "generated"), 0
        )
        self._known: dict[str, _Known] = {}
        self._ended: deque[RequestView] = deque(maxlen=_ENDED)
        self._errors: deque[Failure] = deque(maxlen=_ERRORS)
        self._read: dict[str, int] = {}
        engine.add_observer(self)
        self.sample()

    @property
    def closing(self) -> bool:
        """Whether the engine takes no more requests."""
        return self._engine.snapshot().closing

    def sample(self) -> StoreReading | None:
        """Reads the store's counters, so that their curves know when what happened; about once a second is enough."""
        reading = read_store(self._store)
        if reading is not None:
            now = self._clock()
            with self._lock:
                for name, count in _counters(reading).items():
                    # The first reading is of what was before; one that another thread took meanwhile may be ahead.
                    known = self._read.get(name, count)
                    self._ring.add(name, max(0, count - known), now)
                    self._read[name] = max(count, known)
        return reading

    def snapshot(self) -> Snapshot:
        """All of it, as of now."""
        reading = self.sample()
        state = self._engine.snapshot()
        now, wall = self._clock(), time.time()
        with self._lock:
            series = self._ring.series([*SOURCES, "generated"], now)
            return Snapshot(
                version=VERSION,
                server=Server(
                    model=self._model,
                    mode=self._mode,
                    kvlab=__version__,
                    started=self._started,
                    uptime_s=now - self._began,
                    now=wall,
                    store=self._store_state(reading),
                ),
                totals=Totals(
                    admitted=self._counts["admitted"],
                    finished=self._counts["finished"],
                    cancelled=self._counts["cancelled"],
                    failed=self._counts["failed"],
                    rejected=self._counts["rejected"],
                    prompt_tokens=_by_source(self._tokens),
                    generated_tokens=self._counts["generated"],
                ),
                recent=Recent(
                    seconds=_RECENT_SECONDS,
                    prompt_tokens=_by_source({name: self._lately(name, now) for name in SOURCES}),
                    generated_tokens=self._lately("generated", now),
                ),
                tiers=self._tiers(reading, now),
                series=Series(
                    seconds=_SERIES_SECONDS,
                    prompt_tokens={name: series[name] for name in SOURCES},
                    generated_tokens=series["generated"],
                ),
                running=[self._under_way(each) for each in state.running],
                waiting=[self._under_way(each) for each in state.queued[:_WAITING]],
                waiting_count=state.waiting,
                ended=list(self._ended),
                evictions=self._evictions(reading, now),
                refusals=self._refusals(reading, now),
                errors=list(self._errors),
            )

    # The observer's part: what an engine calls, in its thread.

    def admitted(self, event: Admitted, request: GenerationRequest) -> None:
        """Remembers the request, and counts its prompt by source."""
        now = self._clock()
        spans = [Span(start=start, end=end, source=source) for start, end, source in event.spans]
        view = RequestView(
            id=event.request_id,
            phase="prefill",
            prompt_tokens=event.prompt_tokens,
            computed_tokens=0,
            generated_tokens=0,
            max_tokens=request.max_tokens,
            spans=spans,
            queued_s=event.queued_s,
            first_token_s=None,
            age_s=None,
            ended=None,
        )
        cached = {name: getattr(event.cached, name) for name in SOURCES if name != "compute"}
        tokens = {**cached, "compute": event.prompt_tokens - event.cached.total}
        with self._lock:
            self._known[event.request_id] = _Known(view, submitted=now - event.queued_s)
            self._counts["admitted"] += 1
            for source, count in tokens.items():
                self._tokens[source] += count
                self._ring.add(source, count, now)

    def first_token(self, request_id: str, seconds: float) -> None:
        """Notes the time, and counts the token."""
        with self._lock:
            if known := self._known.get(request_id):
                known.view["first_token_s"] = seconds
        self._generated(request_id)

    def token(self, request_id: str, seconds: float) -> None:
        """Counts it."""
        self._generated(request_id)

    def _generated(self, request_id: str) -> None:
        now = self._clock()
        with self._lock:
            self._counts["generated"] += 1
            self._ring.add("generated", 1, now)
            if known := self._known.get(request_id):
                known.view["generated_tokens"] += 1

    def finished(self, event: Finished) -> None:
        """Moves it to those that ended."""
        self._end(event.request_id, event.reason, "finished", event.usage)

    def cancelled(self, event: Cancelled) -> None:
        """Moves it to those that ended."""
        self._end(event.request_id, "cancelled", "cancelled", event.usage)

    def failed(self, event: Failed) -> None:
        """Moves it to those that ended, and notes the error."""
        self._end(event.request_id, "failed", "failed", None)
        self._error(type(event.error).__name__, event.request_id, str(event.error))

    def rejected(self, reason: str) -> None:
        """Counts it, and notes why."""
        with self._lock:
            self._counts["rejected"] += 1
        self._error("rejected", None, _REJECTIONS.get(reason, reason))

    def _end(self, request_id: str, phase: str, count: str, usage: Usage | None) -> None:
        now, wall = self._clock(), time.time()
        with self._lock:
            self._counts[count] += 1
            known = self._known.pop(request_id, None)
            if known is not None:
                view = known.view
                view["age_s"] = now - known.submitted
            else:
                view = _never_admitted(request_id, usage)
            view["phase"] = phase
            view["ended"] = wall
            if usage is not None and phase in {"stop", "length"}:
                view["computed_tokens"] = usage.prompt_tokens
            self._ended.appendleft(view)

    def _error(self, kind: str, request_id: str | None, message: str) -> None:
        failure = Failure(at=time.time(), kind=kind, request=request_id, message=message[:_MESSAGE])
        with self._lock:
            self._errors.appendleft(failure)

    # Parts of a snapshot. Those that look at what observers change are called under the lock.

    def _store_state(self, reading: StoreReading | None) -> Literal["open", "closed", "none"]:
        if self._store is None:
            return "none"
        return "closed" if reading is None else "open"

    def _lately(self, name: str, now: float) -> int:
        return self._ring.last(name, _RECENT_SECONDS, now)

    def _under_way(self, state: SequenceState) -> RequestView:
        known = self._known.get(state.id)
        return RequestView(
            id=state.id,
            phase=state.phase,
            prompt_tokens=state.prompt_tokens,
            computed_tokens=state.computed_tokens,
            generated_tokens=state.generated_tokens,
            max_tokens=known.view["max_tokens"] if known else None,
            spans=[Span(start=start, end=end, source=source) for start, end, source in state.spans],
            queued_s=known.view["queued_s"] if known else None,
            first_token_s=known.view["first_token_s"] if known else None,
            age_s=state.age_s,
            ended=None,
        )

    def _tiers(self, reading: StoreReading | None, now: float) -> list[TierView]:
        if reading is None:
            return []
        return [
            TierView(
                tier=each.tier,
                capacity_bytes=each.capacity,
                used_bytes=each.used,
                held_bytes=each.held,
                blocks=each.blocks,
                read_bytes=each.read_bytes,
                write_bytes=each.write_bytes,
                read_bytes_recent=self._lately(f"read {each.tier}", now),
                write_bytes_recent=(
                    None if each.write_bytes is None else self._lately(f"write {each.tier}", now)
                ),
                corrupt=each.corrupt,
                hit_tokens=self._tokens[each.tier],
            )
            for each in reading.tiers
        ]

    def _evictions(self, reading: StoreReading | None, now: float) -> list[Eviction]:
        evictions = [
            (f"evicted {tier} {reason}", tier, reason, total)
            for (tier, reason), total in (reading.evictions.items() if reading else ())
            if total
        ]
        series = self._ring.series([name for name, *_ in evictions], now)
        return [
            Eviction(
                tier=tier,
                reason=reason,
                unit=EVICTION_UNITS[tier],
                total=total,
                recent=sum(series[name]),
                series=series[name],
            )
            for name, tier, reason, total in evictions
        ]

    def _refusals(self, reading: StoreReading | None, now: float) -> list[Refusal]:
        refusals = [item for item in (reading.refusals.items() if reading else ()) if item[1]]
        series = self._ring.series([f"refused {reason}" for reason, _ in refusals], now)
        return [
            Refusal(reason=reason, total=total, recent=sum(series[f"refused {reason}"]))
            for reason, total in refusals
        ]


def _counters(reading: StoreReading) -> dict[str, int]:
    """The counters of a store whose curves are kept, by their names in the ring."""
    counts = {f"evicted {tier} {reason}": n for (tier, reason), n in reading.evictions.items()}
    counts |= {f"refused {reason}": n for reason, n in reading.refusals.items()}
    for each in reading.tiers:
        counts[f"read {each.tier}"] = each.read_bytes
        if each.write_bytes is not None:
            counts[f"write {each.tier}"] = each.write_bytes
    return counts


def _by_source(tokens: Mapping[str, int]) -> TokenCounts:
    return TokenCounts(
        l1=tokens["l1"],
        l2=tokens["l2"],
        l3=tokens["l3"],
        remote=tokens["remote"],
        compute=tokens["compute"],
    )


def _never_admitted(request_id: str, usage: Usage | None) -> RequestView:
    return RequestView(
        id=request_id,
        phase="waiting",
        prompt_tokens=usage.prompt_tokens if usage else None,
        computed_tokens=0,
        generated_tokens=0,
        max_tokens=None,
        spans=[],
        queued_s=None,
        first_token_s=None,
        age_s=None,
        ended=None,
    )
