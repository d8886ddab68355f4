"""When the requests of a workload are sent: closed loop, open loop, and what waits for what."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kvlab.bench.conversation import Conversations, Sent
from kvlab.bench.outcome import Answer, Outcome
from kvlab.errors import EndpointError, InvalidArgumentError, KvlabError
from kvlab.workload.schema import Workload, WorkloadRequest

__all__ = ["Plan", "Played", "Send", "play"]

Send = Callable[[WorkloadRequest, Sent], Awaitable[Answer]]
"""Sends one request and waits for its answer; a `KvlabError` is a request that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How requests are sent.

    Attributes:
        concurrency: The most requests in flight; None for no limit. Where it holds requests back, those of a closed
            loop go by their place in the workload, others by the time they came.
        rate: Arrivals a second of requests that wait for none (open loop); None for all at once, which with
            `concurrency` is a closed loop.
        burstiness: The shape of the gamma distribution of the gaps between arrivals: 1 is a Poisson process,
            less comes in bursts, more evenly. As in `vllm bench serve`, arrivals are scaled so that the last one is
            at `requests / rate`.
        recorded_arrivals: Send requests at their `arrival_ms` instead.
        delay_scale: What a `delay_ms` is multiplied by; 0 leaves the gaps out.
        seed: Of the arrivals.
        replies: What stands in a conversation for an earlier answer: the `recorded` reply where there is one,
            so that every run sends the same prompts, or what the `model` said.
        restart_at: The place of the first request that is sent behind the middle; None for half of them.

    Raises:
        InvalidArgumentError: a number that cannot be, or two kinds of arrivals.
    """

    concurrency: int | None = 1
    rate: float | None = None
    burstiness: float = 1.0
    recorded_arrivals: bool = False
    delay_scale: float = 0.0
    seed: int = 0
    replies: Literal["recorded", "model"] = "recorded"
    restart_at: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise InvalidArgumentError(f"concurrency = {self.concurrency}: use at least 1")
        for name in ("rate", "burstiness"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidArgumentError(f"{name} = {value}: use a number above 0")
        if not 0 <= self.delay_scale < float("inf"):
            raise InvalidArgumentError(f"delay_scale = {self.delay_scale}: use 0 or more")
        if self.recorded_arrivals and self.rate is not None:
            raise InvalidArgumentError(
                f"rate = {self.rate} beside recorded arrivals: a request arrives but once; give one of them"
            )

    @property
    def closed(self) -> bool:
        """Whether requests come as fast as others end."""
        return self.rate is None and not self.recorded_arrivals


@dataclass(frozen=True, slots=True)
class Played:
    """A workload, sent.

    Attributes:
        outcomes: One a request, in the order of the workload.
        duration: Seconds from the start to the last end, without what `middle` took.
        middle_seconds: What `middle` took.
        most_in_flight: The most requests that were under way at once.
    """

    outcomes: tuple[Outcome, ...]
    duration: float
    middle_seconds: float
    most_in_flight: int


async def play(
    workload: Workload,
    send: Send,
    plan: Plan,
    *,
    middle: Callable[[], Awaitable[None]] | None = None,
    done: Callable[[Outcome], None] = lambda _outcome: None,
) -> Played:
    """Sends every request of a workload once, by the running loop's clock.

    A request is sent when all that it waits for has ended and its gap is over. One that fails fails alone;
    what would have appended to its conversation is skipped and counted.

    Args:
        workload: What to send.
        send: How.
        plan: When.
        middle: Called between the halves, with nothing in flight.
        done: Called with each outcome.

    Raises:
        Exception: what `send` or `middle` raises beyond `KvlabError`; what is in flight is cancelled.
    """
    return await _Player(workload, send, plan, middle, done).run()


class _Player:
    """The state of one `play`: who is ready, who is under way, who waits for whom."""

    def __init__(
        self,
        workload: Workload,
        send: Send,
        plan: Plan,
        middle: Callable[[], Awaitable[None]] | None,
        done: Callable[[Outcome], None],
    ) -> None:
        self._requests = workload.requests
        self._conversations = Conversations(workload, recorded=plan.replies == "recorded")
        self._send = send
        self._plan = plan
        self._middle = middle
        self._done = done
        total = len(self._requests)
        asked = total // 2 if plan.restart_at is None else plan.restart_at
        self._border = min(max(asked, 0), total)
        self._outcomes: list[Outcome | None] = [None] * total
        self._followers: dict[str, list[int]] = defaultdict(list)
        self._waits = [len(_awaited(request)) for request in workload.requests]
        self._broken: set[int] = set()
        self._ready: list[tuple[float, int]] = []
        self._held: list[int] | None = [] if middle is not None and self._border else None
        self._left = total
        self._left_of_first = self._border
        self._in_flight = 0
        self._most = 0
        self._middle_seconds = 0.0
        self._in_the_middle = False
        self._timers: list[asyncio.TimerHandle] = []
        self._finished = asyncio.Event()

    async def run(self) -> Played:
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        try:
            async with asyncio.TaskGroup() as self._group:
                self._begin()
                await self._finished.wait()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            for timer in self._timers:
                timer.cancel()
        duration = self._loop.time() - self._start - self._middle_seconds
        outcomes = tuple(outcome for outcome in self._outcomes if outcome is not None)
        return Played(outcomes, duration, self._middle_seconds, self._most)

    def _begin(self) -> None:
        times = arrivals(self._requests, self._plan)
        for place, (request, arrival) in enumerate(zip(self._requests, times, strict=True)):
            for awaited in _awaited(request):
                self._followers[awaited].append(place)
            if request.after is None:
                self._later(place, arrival or 0.0)
        self._pump()

    def _later(self, place: int, delay: float) -> None:
        if delay > 0:
            self._timers.append(self._loop.call_later(delay, self._come, place))
        else:
            self._enter(place)

    def _come(self, place: int) -> None:
        self._enter(place)
        self._pump()

    def _enter(self, place: int) -> None:
        """A request may be sent: nothing but others in flight holds it back."""
        if self._held is not None and place >= self._border:
            self._held.append(place)
            return
        moment = 0.0 if self._plan.closed else self._loop.time()
        heapq.heappush(self._ready, (moment, place))

    def _pump(self) -> None:
        limit = self._plan.concurrency
        while self._ready and (limit is None or self._in_flight < limit):
            _, place = heapq.heappop(self._ready)
            self._in_flight += 1
            self._most = max(self._most, self._in_flight)
            self._group.create_task(self._one(place))

    async def _one(self, place: int) -> None:
        request = self._requests[place]
        sent = self._conversations.prompt(request)
        outcome = replace(
            self._blank(place), sent=self._loop.time() - self._start, shared=sent.shared
        )
        try:
            answer = await self._send(request, sent)
        except KvlabError as error:
            kind = error.kind if isinstance(error, EndpointError) else type(error).__name__
            outcome = replace(outcome, status="failed", error_kind=kind, error=str(error))
        else:
            self._conversations.answered(request, answer.text)
            outcome = replace(outcome, status="ok", answer=answer)
        self._in_flight -= 1
        self._settle(place, outcome)
        self._pump()

    def _settle(self, place: int, outcome: Outcome) -> None:
        """Writes an outcome down, lets go on what waited for it, and skips it all if it failed."""
        settled = [(place, outcome)]
        while settled:
            place, outcome = settled.pop()
            self._outcomes[place] = outcome
            self._done(outcome)
            self._left -= 1
            self._left_of_first -= place < self._border
            name = self._requests[place].id
            for follower in self._followers.pop(name, ()):
                next_ = self._requests[follower]
                self._waits[follower] -= 1
                if outcome.status != "ok" and next_.append and next_.after == name:
                    self._broken.add(follower)
                if self._waits[follower]:
                    continue
                if follower in self._broken:
                    text = f"{next_.after}, which it goes on from, gave no answer"
                    skipped = replace(self._blank(follower), error_kind="skipped", error=text)
                    settled.append((follower, skipped))
                else:
                    self._later(follower, next_.delay_ms * self._plan.delay_scale / 1e3)
        if self._left == 0:
            self._finished.set()
        elif self._left_of_first == 0 and self._held is not None and not self._in_the_middle:
            self._in_the_middle = True
            self._group.create_task(self._between())

    async def _between(self) -> None:
        if self._middle is None:
            return
        start = self._loop.time()
        await self._middle()
        self._middle_seconds = self._loop.time() - start
        held, self._held = self._held or [], None
        for place in held:
            self._enter(place)
        self._pump()

    def _blank(self, place: int) -> Outcome:
        request = self._requests[place]
        return Outcome(
            request=request.id,
            klass=request.klass,
            session=request.session,
            turn=request.turn,
            half="first" if place < self._border else "second",
            status="skipped",
        )


def _awaited(request: WorkloadRequest) -> set[str]:
    return set() if request.after is None else {request.after, *request.waits_for}


def arrivals(requests: Sequence[WorkloadRequest], plan: Plan) -> list[float | None]:
    """Seconds from the start at which each request arrives; None for those that wait for another.

    Raises:
        InvalidArgumentError: recorded arrivals are asked for, and a request has none.
    """
    roots = [place for place, request in enumerate(requests) if request.after is None]
    out: list[float | None] = [None] * len(requests)
    if plan.recorded_arrivals:
        for place in roots:
            at = requests[place].arrival_ms
            if at is None:
                raise InvalidArgumentError(
                    f"request {requests[place].id} has no arrival_ms: leave recorded arrivals out, or give a rate"
                )
            out[place] = at / 1e3
        return out
    if plan.rate is None:
        for place in roots:
            out[place] = 0.0
        return out
    draw = random.Random(plan.seed)  # noqa: S311 (arrivals, not secrets)
    scale = 1.0 / (plan.rate * plan.burstiness)
    moment = 0.0
    for place in roots:
        moment += draw.gammavariate(plan.burstiness, scale)
        out[place] = moment
    stretch = len(roots) / plan.rate / moment if moment else 0.0
    return [None if at is None else at * stretch for at in out]
