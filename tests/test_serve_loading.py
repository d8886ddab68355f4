"""A server that loads its model says so, and then that it is ready."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")
pytest.importorskip("torch", reason="the 'hf' extra is not installed")

from kvlab import hf
from kvlab.serve.loading import answering
from kvlab.serve.options import ServeOptions
from kvlab.serve.run import Started, listen, run
from serve_api_support import MODEL, SMALL, make_model

if TYPE_CHECKING:
    from pathlib import Path


def test_it_answers_while_the_block_lasts_and_leaves_the_socket_open() -> None:
    with closing(listen("127.0.0.1", 0)) as at:
        url = f"http://127.0.0.1:{at.getsockname()[1]}"
        with answering(at):
            assert httpx.get(f"{url}/health").json() == {"status": "ok"}
            ready = httpx.get(f"{url}/ready?x=1")
            assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
            asked = httpx.post(f"{url}/v1/completions", content=b"x" * 3_000_000)
            assert (asked.status_code, asked.json()["error"]["code"]) == (503, "loading")
            assert asked.headers["retry-after"] == "1"
            with closing(HTTPConnection(*at.getsockname())) as odd:
                odd.request("POST", "/v1/completions", headers={"Content-Length": "many"})
                assert odd.getresponse().status == 503
        # Who connects now waits for the next one that listens.
        with socket.create_connection(at.getsockname()) as late:
            taken, who = at.accept()
            taken.close()
            assert who == late.getsockname()


def test_a_server_is_loading_and_then_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ready = f"http://127.0.0.1:{port}/ready"
    seen: list[tuple[int, str]] = []

    def look() -> None:
        answer = httpx.get(ready, timeout=60)
        seen.append((answer.status_code, answer.json()["status"]))

    load = hf.load

    def loading(*arguments: Any, **settings: Any) -> Any:
        look()
        return load(*arguments, **settings)

    def look_and_end() -> None:
        try:
            look()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def announce(_started: Started) -> None:
        threading.Thread(target=look_and_end).start()

    monkeypatch.setattr(hf, "load", loading)
    options = ServeOptions(
        model=str(make_model(tmp_path / "model")),
        name=MODEL,
        store=tmp_path / "store",
        sizes=SMALL,
        port=port,
    )
    run(options, announce)
    assert seen == [(503, "loading"), (200, "ready")]
