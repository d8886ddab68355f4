"""What the live page is fed with: the state of an engine and its store, as JSON and as a stream."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hf_support import open_store
from kvlab import KvLayout
from kvlab.errors import InvalidArgumentError
from kvlab.serve.engine import SequenceState, Span, TierTokens
from kvlab.serve.observe.ring import SecondRing
from kvlab.serve.observe.snapshot import Snapshot
from observed import SOURCES, Script, Told, observe, told

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = TypeAdapter(Snapshot)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def documented(snapshot: Any) -> None:
    """It has the fields that are documented, of their types, and no others."""
    text = json.dumps(snapshot, allow_nan=False)
    SHAPE.validate_json(text, strict=True)
    schema = SHAPE.json_schema()

    def walk(value: Any, part: Any) -> None:
        part = schema["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part
        if isinstance(value, dict) and "properties" in part:
            assert value.keys() == part["properties"].keys()
            for name, item in value.items():
                walk(item, part["properties"][name])
        elif isinstance(value, list):
            for item in value:
                walk(item, part["items"])

    walk(json.loads(text), schema)


@given(
    seconds=st.integers(1, 8),
    steps=st.lists(
        st.tuples(st.floats(0, 3), st.sampled_from("ab"), st.integers(0, 9)), max_size=30
    ),
    rest=st.floats(0, 12),
)
def test_a_ring_is_the_amounts_of_the_last_seconds(
    seconds: int, steps: list[tuple[float, str, int]], rest: float
) -> None:
    ring, now, added = SecondRing(seconds), 50.0, []
    for pause, name, amount in steps:
        now += pause
        ring.add(name, amount, now)
        added.append((int(now), name, amount))
    now += rest
    for name in "ab":
        expected = [0] * seconds
        for second, of, amount in added:
            place = seconds - 1 - (int(now) - second)
            if of == name and place >= 0:
                expected[place] += amount
        assert ring.series("ab", now)[name] == expected
        lately = min(2, seconds - 1)
        assert ring.last(name, lately, now) == sum(expected[seconds - 1 - lately : seconds - 1])


def test_a_ring_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="0 seconds"):
        SecondRing(0)


@settings(deadline=None, max_examples=25)
@given(requests=told())
def test_the_state_is_what_was_told(requests: list[Told]) -> None:
    script = Script()
    _, state, _ = observe(script, None, clock=Clock())
    for request in requests:
        request.tell(script)
    snapshot = state.snapshot()
    documented(snapshot)
    admitted = [request for request in requests if request.admitted]
    ends = Counter(request.end for request in requests)
    totals = snapshot["totals"]
    assert totals["admitted"] == len(admitted)
    assert totals["finished"] == ends["stop"] + ends["length"]
    assert totals["cancelled"] == ends["cancelled"] + ends["unadmitted"]
    assert (totals["failed"], totals["rejected"]) == (ends["failed"], ends["rejected"])
    generated = sum(len(request.times) for request in admitted)
    assert totals["generated_tokens"] == sum(snapshot["series"]["generated_tokens"]) == generated
    for at, source in enumerate(SOURCES):
        tokens = sum(request.tokens[at] for request in admitted)
        assert totals["prompt_tokens"][source] == tokens  # type: ignore[literal-required]
        assert sum(snapshot["series"]["prompt_tokens"][source]) == tokens
    over = [request for request in requests if request.end != "rejected"]
    for view, request in zip(snapshot["ended"], reversed(over), strict=True):
        assert (view["id"], view["prompt_tokens"]) == (request.id, request.prompt)
        if request.admitted:
            assert view["phase"] == request.end
            assert view["generated_tokens"] == len(request.times)
            assert view["first_token_s"] == (request.times[0] if request.times else None)
            covered = [
                token for span in view["spans"] for token in range(span["start"], span["end"])
            ]
            assert covered == list(range(request.prompt))
        else:
            assert (view["phase"], view["spans"]) == ("cancelled", [])
    assert [error["kind"] for error in snapshot["errors"]] == [
        "CapacityError" if request.end == "failed" else "rejected"
        for request in reversed(requests)
        if request.end in {"failed", "rejected"}
    ]


def test_what_is_kept_is_bounded() -> None:
    script, clock = Script(), Clock()
    _, state, _ = observe(script, None, clock=clock)
    for at in range(500):
        clock.now += 1
        Told(f"cmpl-{at}", (0, 0, 0, 0, 9), None, (0.1,), ("failed", "stop")[at % 2]).tell(script)
    waits = SequenceState("w", "waiting", 9, 0, 0, TierTokens(), (), 0.1)
    script.queued += [waits] * 500
    snapshot = state.snapshot()
    assert (len(snapshot["ended"]), len(snapshot["errors"])) == (24, 20)
    assert (len(snapshot["waiting"]), snapshot["waiting_count"]) == (32, 500)
    assert sum(snapshot["series"]["prompt_tokens"]["compute"]) == 9 * 120
    assert snapshot["recent"]["prompt_tokens"]["compute"] == 9 * snapshot["recent"]["seconds"]
    assert snapshot["totals"]["prompt_tokens"]["compute"] == 9 * 500
    assert len(json.dumps(snapshot)) < 64_000


def test_requests_under_way_show_phase_tokens_and_prompt() -> None:
    script = Script()
    _, state, _ = observe(script, None, clock=Clock())
    spans = (Span(0, 32, "l2"), Span(32, 40, "compute"))
    Told("cmpl-1", (0, 32, 0, 0, 8), None, (0.5, 0.1), "stop").begin(script)
    script.running.append(
        SequenceState("cmpl-1", "decode", 40, 40, 2, TierTokens(l2=32), spans, 3.0)
    )
    script.queued.append(SequenceState("cmpl-2", "shared", 70, 0, 0, TierTokens(), (), 1.0))
    snapshot = state.snapshot()
    documented(snapshot)
    (running,), (waiting,) = snapshot["running"], snapshot["waiting"]
    assert running == {
        "id": "cmpl-1", "phase": "decode", "prompt_tokens": 40, "computed_tokens": 40, "generated_tokens": 2,
        "max_tokens": 99, "queued_s": 0.25, "first_token_s": 0.5, "age_s": 3.0, "ended": None,
        "spans": [{"start": 0, "end": 32, "source": "l2"}, {"start": 32, "end": 40, "source": "compute"}],
    }  # fmt: skip
    assert (waiting["phase"], waiting["spans"], waiting["max_tokens"]) == ("shared", [], None)


def test_tiers_show_fill_and_what_went_through_them_lately(tmp_path: Path) -> None:
    clock = Clock()
    with open_store(tmp_path / "store", l1="1MiB", l2="1MiB", l3="8MiB") as store:
        cache = store.prefix_cache(KvLayout([(1, 64, 1, 64)] * 4, element_bytes=4), l1="1MiB")
        _, state, _ = observe(Script(), store, clock=clock)

        def use(first: int) -> None:
            prompt = np.arange(first, first + 128)
            request = cache.begin(prompt, bytes(32))
            buffer = cache.lease(128)
            request.restore(buffer)
            request.commit(prompt, buffer)
            assert request.wait_committed()
            request.close()

        for first in range(0, 4000, 200):
            use(first)
        store.flush()
        clock.now += 1
        snapshot = state.snapshot()
        documented(snapshot)
        stats = store.stats()
        tiers = {tier["tier"]: tier for tier in snapshot["tiers"]}
        assert list(tiers) == ["l1", "l2", "l3"]
        for name in ("l2", "l3"):
            tier, counted = tiers[name], stats[name]
            assert tier["capacity_bytes"] == counted["capacity"]
            assert tier["used_bytes"] == counted["used"] <= counted["capacity"]
            assert (tier["blocks"], tier["write_bytes"]) == (
                counted["blocks"],
                counted["write_bytes"],
            )
        assert 0 < tiers["l1"]["used_bytes"] <= tiers["l1"]["capacity_bytes"]
        evicted = {(each["tier"], each["reason"]): each for each in snapshot["evictions"]}
        gone = evicted["l1", "given_up"]
        assert gone["total"] == stats["caches"][0]["l1"]["evicted_blocks"] > 0
        assert gone["recent"] == sum(gone["series"])
        # Lately is the last whole seconds: what was read is there a second later, and gone after a while.
        store.evict("l2")
        before = state.snapshot()["tiers"][2]["read_bytes"]
        use(0)
        read = state.snapshot()["tiers"][2]["read_bytes"] - before
        assert read > 0
        clock.now += 1
        assert state.snapshot()["tiers"][2]["read_bytes_recent"] == read
        clock.now += 60
        assert state.snapshot()["tiers"][2]["read_bytes_recent"] == 0
        clock.now += 120
        assert {each["recent"] for each in state.snapshot()["evictions"]} == {0}
        assert state.snapshot()["evictions"][0]["total"] > 0


def events(response: httpx.Response) -> Any:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_routes_serve_page_snapshot_feed_and_metrics() -> None:
    script = Script()
    _, _, serve = observe(script, None)
    with serve() as url, httpx.Client(base_url=url, timeout=60) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        snapshot = client.get("/live/snapshot")
        assert snapshot.headers["cache-control"] == "no-store"
        documented(snapshot.json())
        metrics = client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "kvlab:num_requests_running 0.0" in metrics.text
        with client.stream("GET", "/live") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            feed = events(response)
            first = next(feed)
            documented(first)
            Told("cmpl-1", (4, 0, 0, 0, 4), None, (0.1,), "stop").tell(script)
            later = next(feed)
            assert later["server"]["now"] > first["server"]["now"]
            assert later["totals"]["finished"] == 1


def test_feeds_end_when_the_engine_closes_so_that_the_server_can_stop() -> None:
    script = Script()
    with (
        observe(script, None).serve() as url,
        httpx.Client(timeout=60) as client,
    ):
        with client.stream("GET", f"{url}/live") as response:
            feed = events(response)
            next(feed)
            script.close()
            for _ in feed:
                pass  # it ends
        assert list(events(client.get(f"{url}/live"))) == []
