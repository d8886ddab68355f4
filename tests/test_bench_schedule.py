"""When the bench sends what: in simulated time, so that orders and gaps are exact."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_support import request, simulated, workload
from kvlab.bench.conversation import Sent
from kvlab.bench.outcome import Answer, Outcome
from kvlab.bench.schedule import Plan, Played, arrivals, play
from kvlab.errors import EndpointError, InvalidArgumentError
from kvlab.workload.schema import Workload, WorkloadRequest


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Forests of requests: turns, forks, gaps, arrivals."""
    requests: list[WorkloadRequest] = []
    for place in range(draw(st.integers(1, 14))):
        after = draw(st.none() | st.sampled_from(requests)) if requests else None
        if after is None:
            fields: dict[str, Any] = {"arrival_ms": draw(st.integers(0, 5000))}
        else:
            fields = {
                "after": after.id,
                "append": draw(st.booleans()),
                "delay_ms": draw(st.sampled_from([0, 0, 250, 3000])),
                "session": after.session,
                "waits_for": tuple(
                    name
                    for name in draw(
                        st.lists(st.sampled_from([r.id for r in requests]), unique=True, max_size=3)
                    )
                    if name != after.id
                ),
            }
        reply = draw(st.none() | st.just(f"reply {place}"))
        requests.append(request(f"r{place}", reply=reply, **fields))
    return workload(*requests)


plans = st.builds(
    Plan,
    concurrency=st.none() | st.integers(1, 4),
    rate=st.none() | st.sampled_from([0.5, 4.0, 100.0]),
    burstiness=st.sampled_from([0.3, 1.0, 5.0]),
    delay_scale=st.sampled_from([0.0, 1.0, 2.0]),
    seed=st.integers(0, 5),
    replies=st.sampled_from(["recorded", "model"]),
) | st.builds(
    Plan,
    concurrency=st.none() | st.integers(1, 4),
    recorded_arrivals=st.just(True),
    delay_scale=st.sampled_from([0.0, 1.0]),
)


class Server:
    """Answers after a second or so, fails for some, and writes down what it saw."""

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self.failing = failing
        self.now = 0
        self.most = 0
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.prompts: dict[str, Sent] = {}

    async def send(self, asked: WorkloadRequest, sent: Sent) -> Answer:
        loop = asyncio.get_running_loop()
        self.now += 1
        self.most = max(self.most, self.now)
        assert asked.id not in self.began
        self.began[asked.id] = loop.time()
        self.prompts[asked.id] = sent
        seconds = 0.5 + len(asked.id) / 4
        await asyncio.sleep(seconds)
        self.now -= 1
        self.ended[asked.id] = loop.time()
        if asked.id in self.failing:
            raise EndpointError(f"{asked.id}: 500", kind="status")
        return Answer(text=f"said to {asked.id}", ttft=seconds / 2, e2el=seconds)

    def play(self, made: Workload, plan: Plan, **how: Any) -> Played:
        return simulated(play(made, self.send, plan, **how))


def all_ended(server: Server, asked: WorkloadRequest) -> float:
    assert asked.after is not None
    return max(server.ended[name] for name in (asked.after, *asked.waits_for))


@settings(deadline=None, max_examples=40)
@given(made=workloads(), plan=plans)
def test_order_gaps_arrivals_and_concurrency_are_kept(made: Workload, plan: Plan) -> None:
    server = Server()
    played = server.play(made, plan)
    assert [outcome.request for outcome in played.outcomes] == [each.id for each in made.requests]
    assert all(outcome.status == "ok" for outcome in played.outcomes)
    # One that ends and one that begins at the same moment may count both.
    assert server.most <= played.most_in_flight <= (plan.concurrency or len(made.requests))
    assert played.duration == pytest.approx(max(server.ended.values()))
    for asked, due in zip(made.requests, arrivals(made.requests, plan), strict=True):
        if asked.after is None:
            assert due is not None
            earliest = due
        else:
            earliest = all_ended(server, asked) + asked.delay_ms * plan.delay_scale / 1e3
        assert server.began[asked.id] >= earliest - 1e-9
        if plan.concurrency is None:
            assert server.began[asked.id] == pytest.approx(earliest)


@settings(deadline=None, max_examples=40)
@given(made=workloads(), plan=plans)
def test_a_slot_is_never_idle_while_a_request_is_ready(made: Workload, plan: Plan) -> None:
    server = Server()
    server.play(made, plan)
    limit = plan.concurrency or len(made.requests)
    for asked, due in zip(made.requests, arrivals(made.requests, plan), strict=True):
        ready = due
        if asked.after is not None:
            ready = all_ended(server, asked) + asked.delay_ms * plan.delay_scale / 1e3
        assert ready is not None
        moments = [moment for moment in server.ended.values() if ready <= moment]
        for moment in [ready, *moments]:
            if moment < server.began[asked.id] - 1e-9:
                inside = moment + 1e-9
                busy = sum(
                    began <= inside < server.ended[name] for name, began in server.began.items()
                )
                assert busy == limit


@settings(deadline=None, max_examples=40)
@given(made=workloads(), plan=plans)
def test_prompts_are_the_conversation_so_far(made: Workload, plan: Plan) -> None:
    server = Server()
    server.play(made, plan)
    for asked in made.requests:
        said = {
            other.id: f"said to {other.id}"
            for other in made.requests
            if plan.replies == "model" or other.reply is None
        }
        assert server.prompts[asked.id].messages == made.conversation(asked, said)


@settings(deadline=None, max_examples=40)
@given(made=workloads(), plan=plans, data=st.data())
def test_a_failure_takes_only_what_appends_to_it(
    made: Workload, plan: Plan, data: st.DataObject
) -> None:
    names = [asked.id for asked in made.requests]
    failing = frozenset(data.draw(st.sets(st.sampled_from(names))))
    seen: list[Outcome] = []
    middle: list[int] = []

    async def between() -> None:
        middle.append(1)

    border = data.draw(st.integers(0, len(names)))
    plan = Plan(concurrency=plan.concurrency, delay_scale=plan.delay_scale, restart_at=border)
    played = Server(failing).play(made, plan, done=seen.append, middle=between)
    expected: dict[str, str] = {}
    for asked in made.requests:
        gone = asked.append and asked.after is not None and expected[asked.after] != "ok"
        expected[asked.id] = "skipped" if gone else "failed" if asked.id in failing else "ok"
    assert {outcome.request: outcome.status for outcome in played.outcomes} == expected
    assert sorted(outcome.request for outcome in seen) == sorted(names)
    assert len(middle) <= 1
    for outcome in played.outcomes:
        assert (outcome.answer is not None) == (outcome.status == "ok") == (not outcome.error)


@settings(deadline=None, max_examples=40)
@given(made=workloads(), plan=plans, data=st.data())
def test_the_middle_is_between_the_halves(made: Workload, plan: Plan, data: st.DataObject) -> None:
    border = data.draw(st.integers(1, len(made.requests)))
    plan = Plan(concurrency=plan.concurrency, delay_scale=plan.delay_scale, restart_at=border)
    moments: list[float] = []
    server = Server()

    async def middle() -> None:
        assert server.now == 0
        moments.append(asyncio.get_running_loop().time())
        await asyncio.sleep(7.0)

    played = server.play(made, plan, middle=middle)
    first, second = made.requests[:border], made.requests[border:]
    assert len(moments) == (1 if second else 0)
    for asked in first:
        assert not moments or server.ended[asked.id] <= moments[0]
    for asked in second:
        assert server.began[asked.id] >= moments[0] + 7.0 - 1e-9
    assert played.middle_seconds == (pytest.approx(7.0) if second else 0.0)
    halves = [outcome.half for outcome in played.outcomes]
    assert halves == ["first"] * border + ["second"] * len(second)


def test_one_in_flight_follows_the_lines_of_the_workload() -> None:
    made = workload(
        request("a0"),
        request("a1", after="a0", append=True),
        request("b0"),
        request("a2", after="a1", append=True),
    )
    server = Server()
    server.play(made, Plan())
    assert sorted(server.began, key=server.began.__getitem__) == ["a0", "a1", "b0", "a2"]


@given(
    rate=st.floats(0.1, 50), burstiness=st.floats(0.2, 20), seed=st.integers(0, 99), count=st.integers(1, 60)
)  # fmt: skip
def test_arrivals_go_forward_and_keep_the_rate(
    rate: float, burstiness: float, seed: int, count: int
) -> None:
    requests = [request(f"r{place}") for place in range(count)]
    plan = Plan(rate=rate, burstiness=burstiness, seed=seed)
    times = [moment for moment in arrivals(requests, plan) if moment is not None]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] == pytest.approx(count / rate)
    assert arrivals(requests, plan) == times


def test_a_larger_burstiness_is_more_even() -> None:
    requests = [request(f"r{place}") for place in range(2000)]

    def variation(burstiness: float) -> float:
        plan = Plan(rate=10.0, burstiness=burstiness, seed=3)
        times = [moment for moment in arrivals(requests, plan) if moment is not None]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        return statistics.stdev(gaps) / statistics.fmean(gaps)

    # Of a gamma distribution of that shape it is its inverse root; 1 of a Poisson process.
    for burstiness in (0.25, 1.0, 16.0):
        assert variation(burstiness) == pytest.approx(burstiness**-0.5, rel=0.15)


@pytest.mark.parametrize(
    "fields",
    [
        {"concurrency": 0},
        {"rate": 0.0},
        {"rate": float("inf")},
        {"burstiness": -1.0},
        {"delay_scale": -0.5},
        {"rate": 1.0, "recorded_arrivals": True},
    ],
)
def test_plans_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(fields))):
        Plan(**fields)


def test_recorded_arrivals_that_are_not_there_name_the_request() -> None:
    made = workload(request("a", arrival_ms=5), request("b"))
    with pytest.raises(InvalidArgumentError, match="request b has no arrival_ms"):
        Server().play(made, Plan(recorded_arrivals=True))


def test_what_is_no_error_of_a_request_ends_the_run() -> None:
    async def broken(_asked: WorkloadRequest, _sent: Sent) -> Answer:
        raise ZeroDivisionError

    made = workload(request("a"), request("b", after="a", delay_ms=100), request("c"))
    with pytest.raises(ZeroDivisionError):
        simulated(play(made, broken, Plan(rate=2.0, delay_scale=1.0)))


def test_shared_is_what_earlier_prompts_of_the_salt_began_with() -> None:
    text = "s" * 640
    made = workload(
        request("a", text=text),
        request("b", text=text),
        request("c", text=text + "x" * 640),
        request("d", text=text, salt="other"),
    )
    server = Server()
    server.play(made, Plan())
    shared = {name: sent.shared for name, sent in server.prompts.items()}
    assert shared["a"] == shared["d"] == 0
    assert shared["b"] == 1
    assert 0.4 < shared["c"] < 0.51
