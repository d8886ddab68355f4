"""A small server that speaks OpenAI's protocol, and breaks it where a prompt asks it to.

A prompt's last message may have a line `fault: NAME`; see `Handler.do_POST` for the names.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD = "word "
TOKEN_SECONDS = 0.002


class State(ThreadingHTTPServer):
    """The server, and what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.usage: str = "split"
        self.seen: set[str] = set()
        self.hits = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: State

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Nothing is logged."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._whole(200, json.dumps({"object": "list", "data": [{"id": "tiny"}]}))
        elif self.path == "/garbage/v1/models":
            self._whole(200, "<html>welcome to nginx</html>")
        elif self.path == "/metrics":
            text = f'vllm:prefix_cache_hits_total{{engine="0"}} {self.server.hits}\nother 3\n'
            self._whole(200, text)
        else:
            self._whole(404, '{"error": {"message": "no such path"}}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        text = "".join(message["content"] for message in body["messages"])
        fault = body["messages"][-1]["content"].partition("fault: ")[2]
        if fault == "500":
            self._whole(500, '{"error": {"message": "out of memory"}}')
            return
        if fault == "hang up":
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if fault == "silence":
            self.rfile.read(1)  # until the client has gone
            return
        if fault == "html":
            self.wfile.write(b"<html>a proxy's page</html>\n")
            return
        if fault == "no json":
            self.wfile.write(b"data: {never closed\n\n")
            return
        if fault == "no object":
            self.wfile.write(b"data: [1, 2]\n\n")
            return
        if fault == "no choices":
            self._event({"object": "thing"})
            self.wfile.write(b"data: [DONE]\n\n")
            return
        if fault == "error event":
            self._event({"error": {"message": "worker died", "code": 500}})
            return
        self._answer(text, body["max_tokens"], fault)

    def _answer(self, text: str, tokens: int, fault: str) -> None:
        cached = 16 if text[:64] in self.server.seen else 0
        self.server.seen.add(text[:64])
        self.server.hits += cached
        self.wfile.write(b": ping\r\n\r\n")
        self._choice({"role": "assistant"})
        for at in range(tokens):
            time.sleep(TOKEN_SECONDS)
            if fault == "break off" and at == 2:
                return
            self._choice({"content": WORD})
        self._choice({}, "length")
        if self.server.usage != "none" and fault != "no usage":
            usage: dict[str, Any] = {
                "prompt_tokens": max(1, len(text) // 4),
                "completion_tokens": tokens,
            }
            if self.server.usage == "null":
                usage["prompt_tokens_details"] = None
            elif self.server.usage == "plain":
                usage["prompt_tokens_details"] = {"cached_tokens": cached}
            elif self.server.usage == "split":
                usage["prompt_tokens_details"] = {
                    "cached_tokens": cached,
                    "cached_tokens_by_source": {"l1": 0, "l2": 0, "l3": cached, "remote": 0},
                }
            timings = {"cache_n": cached} if self.server.usage == "timings" else None
            self._event({"choices": [], "usage": usage, "timings": timings})
        self.wfile.write(b"data: [DONE]\n\n")

    def _choice(self, delta: dict[str, str], finish: str | None = None) -> None:
        self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _whole(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving() -> Iterator[State]:
    with State() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def endpoint(server: State) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"
