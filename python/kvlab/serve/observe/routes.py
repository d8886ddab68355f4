"""What a browser and Prometheus get: the page, its feed, one snapshot, the metrics."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kvlab.serve.observe.metrics import ServeMetrics
    from kvlab.serve.observe.state import LiveState

__all__ = ["router"]

_PERIOD = 1.0
_NO_STORE = {"Cache-Control": "no-store"}


def router(metrics: ServeMetrics, state: LiveState) -> APIRouter:
    """The routes `/`, `/live`, `/live/snapshot` and `/metrics`, to be included in an application.

    While the application runs, the store is read once a second, so that what is drawn over time is right from
    the start also where nobody looked. A feed ends within a second when the engine begins to close, so that a
    server can wait for its connections.

    Args:
        metrics: What `/metrics` shows.
        state: What the page shows.
    """
    page, policy = _page()

    @asynccontextmanager
    async def sampling(_app: object) -> AsyncIterator[None]:
        task = asyncio.create_task(_sample(state))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    routes = APIRouter(lifespan=sampling)

    @routes.get("/", include_in_schema=False)
    def show_page() -> Response:
        headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    @routes.get("/live/snapshot", summary="What the server does now and did lately")
    def show_snapshot() -> Response:
        return Response(_json(state), media_type="application/json", headers=_NO_STORE)

    @routes.get("/live", summary="A snapshot a second, as server-sent events")
    async def show_feed() -> Response:
        return StreamingResponse(_feed(state), media_type="text/event-stream", headers=_NO_STORE)

    @routes.get("/metrics", summary="Prometheus metrics")
    def show_metrics() -> Response:
        content, content_type = metrics.exposition()
        return Response(content, headers={**_NO_STORE, "Content-Type": content_type})

    return routes


async def _sample(state: LiveState) -> None:
    while True:
        await run_in_threadpool(state.sample)
        await asyncio.sleep(_PERIOD)


async def _feed(state: LiveState) -> AsyncIterator[bytes]:
    # A reader that is slow gets fewer snapshots, never old ones: each is taken when the one before was sent.
    yield b"retry: 1000\n\n"
    while not state.closing:
        snapshot = await run_in_threadpool(_json, state)
        yield b"data: " + snapshot + b"\n\n"
        await asyncio.sleep(_PERIOD)


def _json(state: LiveState) -> bytes:
    return json.dumps(state.snapshot(), separators=(",", ":"), allow_nan=False).encode()


def _page() -> tuple[bytes, str]:
    """The page, and the policy under which a browser runs its own script and style and loads nothing else."""
    page = (files("kvlab.serve.observe") / "page" / "index.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        inline = page[page.index(f"<{tag}>") + len(tag) + 2 : page.index(f"</{tag}>")]
        hashes[tag] = b64encode(sha256(inline.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy
