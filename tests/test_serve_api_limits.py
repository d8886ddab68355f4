"""Full queues, readers that are slow or leave, bodies that are too large, keys, and the end."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")

from hypothesis import given
from hypothesis import strategies as st

from kvlab import ConfigError, GenerationError
from kvlab.serve.api import body, stream
from kvlab.serve.api.keys import KeyRing, combined
from kvlab.serve.engine import EngineOptions
from serve_api_support import Running, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = "m" * 3000
"""So long a name that buffers are full after a few chunks."""
LONG: dict[str, Any] = {"model": MODEL, "prompt": "a long story", "max_tokens": 1000}
SHORT: dict[str, Any] = {"model": MODEL, "prompt": "a short one", "max_tokens": 2}
BODY_LIMIT = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One request runs, one may wait."""
    with running(
        tmp_path_factory.mktemp("serve"),
        engine=EngineOptions(max_active=1, max_queue=1),
        max_body=BODY_LIMIT,
        send_buffer=4096,
        name=MODEL,
    ) as found:
        yield found


@pytest.fixture
def http(server: Running) -> Iterator[Any]:
    before = server.counters()
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made
    until(lambda: idle(server))
    after = server.counters()
    ended = after.finished - before.finished + after.cancelled - before.cancelled
    assert ended == after.submitted - before.submitted
    check_nothing_is_held(server)


def idle(server: Running) -> bool:
    state = server.service.engine.snapshot()
    return not state.running and not state.queued


def check_nothing_is_held(server: Running) -> None:
    store = server.service.store
    assert store is not None

    def free() -> bool:
        (cache,) = store.stats()["caches"]
        held = cache["l1"]["protected"] + cache["l1"]["private"]
        buffers = cache["buffers"]
        in_use = buffers["mapped"] - buffers["idle"] - cache["residents"]["bytes"]
        return held == 0 and in_use == 0

    until(free)


def connect(server: Running) -> socket.socket:
    """A connection that takes little before it is read from."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(120)
    host, port = server.url.removeprefix("http://").split(":")
    made.connect((host, int(port)))
    return made


def send(server: Running, asked: dict[str, Any]) -> socket.socket:
    """Sends a request and reads nothing."""
    content = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n"
    made = connect(server)
    made.sendall(
        head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + content
    )
    return made


def open_stream(server: Running, asked: dict[str, Any]) -> socket.socket:
    """As `send`, for an answer in pieces."""
    return send(server, asked | {"stream": True})


def read_all(made: socket.socket) -> bytes:
    received = bytearray()
    while piece := made.recv(1 << 16):
        received += piece
    return bytes(received)


def running_and_waiting(server: Running) -> tuple[int, int]:
    state = server.service.engine.snapshot()
    return len(state.running), state.waiting


def test_a_full_queue_is_said_and_those_who_leave_make_room(server: Running, http: Any) -> None:
    cancelled = server.counters().cancelled
    with open_stream(server, LONG), open_stream(server, LONG):
        until(lambda: running_and_waiting(server) == (1, 1))
        refused = http.post("/v1/completions", json=SHORT)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    assert http.get("/ready").status_code == 200
    until(lambda: server.counters().cancelled == cancelled + 2)
    assert http.post("/v1/completions", json=SHORT).status_code == 200


def test_who_leaves_without_a_stream_is_noticed_too(server: Running, http: Any) -> None:
    cancelled = server.counters().cancelled
    with send(server, LONG):
        until(lambda: running_and_waiting(server) == (1, 0))
    until(lambda: server.counters().cancelled == cancelled + 1)
    assert http.get("/ready").status_code == 200


def test_a_reader_that_is_slow_holds_up_nobody_and_gets_all(server: Running, http: Any) -> None:
    finished = server.counters().finished
    with open_stream(server, LONG | {"max_tokens": 150}) as slow:
        until(lambda: server.counters().finished == finished + 1)
        assert http.post("/v1/completions", json=SHORT).status_code == 200
        received = read_all(slow)
    assert received.count(b"data: [DONE]") == 1
    # What had to wait was joined, so it took the memory of its text.
    assert 5 < received.count(b"data: {") < 140


def test_a_reader_that_takes_nothing_is_given_up(
    server: Running, http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STALL_SECONDS", 0.05)
    cancelled = server.counters().cancelled
    with open_stream(server, LONG) as stalled:
        until(lambda: server.counters().cancelled == cancelled + 1)
        assert b"[DONE]" not in read_all(stalled)
    assert http.get("/health").status_code == 200


def test_a_stream_shows_that_it_lives_while_it_waits(
    server: Running, http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 0.02)
    with open_stream(server, LONG):
        until(lambda: running_and_waiting(server)[0] == 1)
        with http.stream("POST", "/v1/completions", json=SHORT | {"stream": True}) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": ping"
    # Both have gone; nobody reads on.


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused(http: Any, *, declared: bool) -> None:
    content = json.dumps(SHORT | {"prompt": "x" * BODY_LIMIT}).encode()
    sent = content if declared else iter([content[:500], content[500:]])
    answer = http.post(
        "/v1/completions", content=sent, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_come_is_not_waited_for(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "READ_SECONDS", 0.05)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(server) as made:
        made.sendall(head + b'Content-Length: 100\r\nConnection: close\r\n\r\n{"model": ')
        assert made.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_name_that_is_not_this_machine_s_is_refused(server: Running) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example:8000"):
        answer = httpx.get(f"{server.url}/v1/models", headers={"Host": host})
        assert answer.status_code == 421
        assert answer.json()["error"]["code"] == "unknown_host"
    assert httpx.get(f"{server.url}/health", headers={"Host": "localhost:1"}).status_code == 200


# The end.


def test_at_the_end_answers_under_way_are_finished_or_told(tmp_path: Path) -> None:
    with running(tmp_path, engine=EngineOptions(max_active=1), name=MODEL) as server:
        with (
            open_stream(server, SHORT | {"max_tokens": 30}) as first,
            open_stream(server, LONG) as second,
        ):
            until(lambda: server.counters().submitted == 2)
            server.stop()
            answers = {"first": read_all(first)}
            server.stop()
            answers["second"] = read_all(second)
        # Connections are closed by now; this is what one that is not yet would get.
        asked = asyncio.run(ask_directly(server.service.app))
    assert b'"finish_reason": "length"' in answers["first"]
    last = answers["second"].split(b"data: ")[-2]
    assert json.loads(last)["error"]["code"] == "shutting_down"
    assert answers["second"].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    alive, *others = asked
    assert alive.status_code == 200
    for refused in others:
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert "retry-after" in refused.headers


def test_a_server_ends_with_its_engine(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.service.engine.close(0)
        with pytest.raises(GenerationError, match="by itself"):
            server.wait_ended()


async def ask_directly(app: Any) -> list[Any]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return [
            await http.get("/health"),
            await http.get("/ready"),
            await http.post("/v1/completions", json=SHORT),
        ]


# Keys.

KEYS = """
# who may ask
sk-anna-0001 anna
sk-bert-0001 bert
sk-bert-0002 bert
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("serve")
    keys = path / "keys"
    keys.write_text(KEYS)
    with running(path, api_keys=keys, name=MODEL) as found:
        yield found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [{}, bearer("sk-anna-0002"), {"Authorization": "Basic !"}])
@pytest.mark.parametrize("path", ["/v1/models", "/", "/metrics", "/live/snapshot"])
def test_without_a_key_there_is_nothing_to_see(
    guarded: Running, path: str, headers: dict[str, str]
) -> None:
    answer = httpx.get(guarded.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "Basic" in answer.headers["www-authenticate"]
    assert "sk-anna" not in answer.text


def test_a_key_opens_and_a_browser_can_send_it(guarded: Running) -> None:
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    assert httpx.get(f"{guarded.url}/v1/models", headers=bearer("sk-anna-0001")).status_code == 200
    assert httpx.get(f"{guarded.url}/", auth=("anybody", "sk-anna-0001")).status_code == 200


def test_those_who_hold_different_keys_share_no_cache(guarded: Running) -> None:
    def ask(key: str, salt: str | None = None) -> int:
        asked = SHORT | {"prompt": "the same for all " * 4, "cache_salt": salt}
        answer = httpx.post(f"{guarded.url}/v1/completions", json=asked, headers=bearer(key))
        cached: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached

    assert ask("sk-anna-0001") == 0
    assert ask("sk-anna-0001") > 0
    assert ask("sk-bert-0001") == 0
    assert ask("sk-bert-0002") > 0  # two keys of one tenant
    assert ask("sk-bert-0001", "anna") == 0
    assert ask("sk-anna-0001", "bert") == 0
    assert ask("sk-bert-0001", "anna") > 0


PAIRS = st.tuples(
    st.text(st.sampled_from("ab:-"), max_size=4), st.text(st.sampled_from("ab/:-"), max_size=4)
)


@given(one=PAIRS, other=PAIRS)
def test_no_two_tenants_can_come_to_one_salt(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (combined(*one) == combined(*other)) == (one == other)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "sk-secret-1",
        "sk-secret-1 a b",
        "sk-secret-1 a/b",
        "short a",
        "sk-secret-1 a\nsk-secret-1 b",
    ],
)
def test_keys_that_cannot_be_are_refused_and_not_repeated(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        KeyRing.load(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)
