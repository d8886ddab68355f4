"""The live backend against a server of its own that breaks where it is asked to."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the 'serve' extra is not installed")

from bench_support import request, workload
from faulty_server import State, endpoint, serving
from kvlab.bench.backend import Mode
from kvlab.bench.live import LiveBackend, LiveOptions
from kvlab.bench.outcome import Outcome
from kvlab.bench.schedule import Plan, Played, play
from kvlab.bench.server import RestartCommand, StartedServer
from kvlab.errors import EndpointError, InvalidArgumentError
from kvlab.workload.schema import Workload

FAULTS = {
    "500": ("status", "status 500: .*out of memory"),
    "hang up": ("broken", "connection broke"),
    "silence": ("timeout", "no whole answer within 0.3 s"),
    "html": ("broken", "ended before"),
    "no json": ("garbage", "no JSON: {never closed"),
    "no object": ("garbage", r"no JSON object: \[1, 2\]"),
    "no choices": ("garbage", "neither text nor an end"),
    "error event": ("status", "worker died"),
    "break off": ("broken", "ended before"),
}


@pytest.fixture
def server() -> Iterator[State]:
    with serving() as running:
        yield running


def played(server: State, made: Workload, *, concurrency: int = 4, **options: Any) -> Played:
    return asyncio.run(_play(server, made, concurrency, options))


async def _play(server: State, made: Workload, concurrency: int, options: dict[str, Any]) -> Played:
    backend = LiveBackend(LiveOptions(endpoint=endpoint(server), **options))
    async with backend.open("baseline") as service:
        return await play(made, service.send, Plan(concurrency=concurrency))


def by_id(run: Played) -> dict[str, Outcome]:
    return {outcome.request: outcome for outcome in run.outcomes}


def test_each_fault_has_its_name_and_the_others_go_on(server: State) -> None:
    faults = {name: request(name, text=f"fault: {name}") for name in FAULTS}
    late = played(server, workload(faults.pop("silence")), timeout=0.3)
    requests = [*faults.values(), *(request(f"fine {at}") for at in range(6))]
    run = by_id(late) | by_id(played(server, workload(*requests)))
    for name, (kind, text) in FAULTS.items():
        assert (run[name].status, run[name].error_kind) == ("failed", kind), run[name]
        assert re.search(text, str(run[name].error)), run[name].error
        assert endpoint(server) in run[name].error
    for at in range(6):
        assert run[f"fine {at}"].status == "ok"


def test_times_and_tokens_of_a_stream(server: State) -> None:
    answer = played(server, workload(request("a", max_tokens=8))).outcomes[0].answer
    assert answer is not None
    assert answer.text == "word " * 8
    assert answer.output_tokens == 8
    assert answer.finish_reason == "length"
    assert 0 < answer.ttft < answer.e2el
    assert len(answer.itls) == 7
    assert sum(answer.itls) == pytest.approx(answer.e2el - answer.ttft, rel=0.5)


@pytest.mark.parametrize(
    ("usage", "cached"),
    [("split", [0, 16]), ("plain", [0, 16]), ("timings", [0, 16]), ("null", [None, None]), ("none", [None, None])],
)  # fmt: skip
def test_absent_cached_tokens_are_not_zero(
    server: State, usage: str, cached: list[int | None]
) -> None:
    server.usage = usage
    made = workload(request("a", text="x" * 80), request("b", text="x" * 80))
    answers = [outcome.answer for outcome in played(server, made, concurrency=1).outcomes]
    assert [answer.cached_tokens for answer in answers if answer] == cached
    split = [answer.cached_by_source for answer in answers if answer]
    if usage == "split":
        assert split == [
            {"l1": 0, "l2": 0, "l3": hit, "remote": 0} for hit in cached
        ]  # fmt: skip
    else:
        assert split == [None, None]
    assert [answer.prompt_tokens for answer in answers if answer] == (
        [None, None] if usage == "none" else [20, 20]
    )


def test_what_is_sent(server: State) -> None:
    made = workload(
        request("a", salt="s", reply="fine"), request("b", after="a", append=True, salt="s")
    )
    options: dict[str, Any] = {"model": "named", "seed": 5, "extra": {"top_k": 1}}
    played(server, made, ignore_eos=True, **options)
    first, second = server.bodies
    assert first == {
        "model": "named",
        "max_tokens": 4,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "the question of a"}],
        "seed": 5,
        "top_k": 1,
        "ignore_eos": True,
        "cache_salt": "s",
    }
    assert [message["content"] for message in second["messages"]] == [
        "the question of a", "fine", "the question of b",
    ]  # fmt: skip


def test_the_first_model_is_taken_and_extensions_are_not_sent_unasked(server: State) -> None:
    played(server, workload(request("a")))
    (body,) = server.bodies
    assert body["model"] == "tiny"
    assert not {"ignore_eos", "cache_salt", "seed"} & body.keys()


def _refused(url: str) -> EndpointError:
    async def enter() -> None:
        async with LiveBackend(LiveOptions(endpoint=url)).open("baseline"):
            pass

    with pytest.raises(EndpointError) as error:
        asyncio.run(enter())
    return error.value


def test_a_dead_endpoint_is_told_before_the_run() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    error = _refused(url)
    assert error.kind == "connect"
    assert f"{url}/models: cannot be reached" in str(error)


def test_an_endpoint_that_is_something_else_is_told_before_the_run(server: State) -> None:
    assert "status 404" in str(_refused(endpoint(server).removesuffix("/v1")))
    wrong = endpoint(server).replace("/v1", "/garbage/v1")
    assert "welcome to nginx" in str(_refused(wrong))


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://a/v1"])
def test_an_endpoint_is_a_url(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--endpoint"):
        LiveOptions(endpoint=url)


def test_counters_of_the_server_are_read(server: State) -> None:
    async def run() -> dict[str, Any]:
        async with LiveBackend(LiveOptions(endpoint=endpoint(server))).open("baseline") as service:
            made = workload(request("a", text="x" * 80), request("b", text="x" * 80))
            await play(made, service.send, Plan())
            return await service.facts()

    server.hits = 100
    assert asyncio.run(run()) == {
        "server_counters": {'vllm:prefix_cache_hits_total{engine="0"}': 16.0}
    }


SCRIPT = """
import sys, faulty_server
from http.server import ThreadingHTTPServer
class Server(faulty_server.State):
    def __init__(self):
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", int(sys.argv[1])), faulty_server.Handler)
        self.bodies, self.usage, self.seen, self.hits = [], "plain", set(), 0
Server().serve_forever()
"""


def test_a_started_server_is_restarted_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def run() -> Played:
        started = StartedServer([sys.executable, "-c", SCRIPT, str(port)], {"command": "script"})
        options = LiveOptions(endpoint=f"http://127.0.0.1:{port}/v1", ready_seconds=120.0)
        async with LiveBackend(options, restarter=started).open("nvme") as service:
            made = workload(*(request(f"r{at}", text="x" * 80) for at in range(4)))
            return await play(made, service.send, Plan(), middle=service.restart)

    answers = [outcome.answer for outcome in asyncio.run(run()).outcomes]
    # It remembers in memory only: the restart is seen in what it caches.
    assert [answer.cached_tokens for answer in answers if answer] == [0, 16, 0, 16]
    with pytest.raises(ConnectionRefusedError):  # it is gone
        socket.create_connection(("127.0.0.1", port), timeout=5.0)


def test_another_server_goes_on_over_the_same_shared_tier(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = "import json, sys; print(json.dumps(sys.argv[2:]), file=open(sys.argv[1], 'a'))"
    command = [sys.executable, "-c", script, str(seen), "--mode={mode}", "{store}", "{remote}"]

    async def started(mode: Mode) -> list[list[str]]:
        seen.write_text("")
        server = StartedServer(command, {}, "redis://named:1")
        begins: tuple[Callable[[], Awaitable[None]], ...] = (
            partial(server.start, mode),
            server.restart,
        )
        for starts, begin in enumerate(begins, 1):
            await begin()
            while seen.read_text().count("\n") < starts:
                await asyncio.sleep(0.01)
        await server.stop()
        return [json.loads(line) for line in seen.read_text().splitlines()]

    first, second = asyncio.run(started("remote"))
    assert first[0] == second[0] == "--mode=cpu_offload"
    assert first[1] != second[1]  # it has nothing on disk
    assert first[2:] == second[2:]
    assert first[2:4] == ["--remote", "redis://named:1"]
    again = asyncio.run(started("remote"))[0]
    assert again[2:4] == first[2:4]
    assert again[4:6] != first[4:6]  # names of its own
    first, second = asyncio.run(started("nvme"))
    assert first == second
    assert first[0] == "--mode=nvme"
    assert len(first) == 2


def test_a_server_that_does_not_start_says_why() -> None:
    async def run() -> None:
        command = [sys.executable, "-c", "raise SystemExit('no such model')"]
        options = LiveOptions(endpoint="http://127.0.0.1:9/v1", ready_seconds=120.0)
        async with LiveBackend(options, restarter=StartedServer(command, {})).open("baseline"):
            pass

    with pytest.raises(EndpointError, match="exit code 1: no such model"):
        asyncio.run(run())


def test_a_restart_command_that_fails_says_why() -> None:
    with pytest.raises(EndpointError, match="exit code 1"):
        asyncio.run(RestartCommand("false").restart())
    with pytest.raises(EndpointError, match="No such file"):
        asyncio.run(RestartCommand("/nowhere/restart now").restart())
    with pytest.raises(InvalidArgumentError, match="No closing quotation"):
        RestartCommand("restart 'it")
    asyncio.run(RestartCommand("true").restart())
