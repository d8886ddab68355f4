"""Requests over HTTP to any OpenAI-compatible server: kvlab's, vLLM, llama.cpp."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx

from kvlab.bench.backend import Mode, Service
from kvlab.bench.outcome import SOURCES, Answer
from kvlab.bench.sse import chunks, shorten
from kvlab.errors import EndpointError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kvlab.bench.conversation import Sent
    from kvlab.bench.server import Restarter
    from kvlab.workload.schema import WorkloadRequest

__all__ = ["LiveBackend", "LiveOptions"]

_COUNTERS = re.compile(
    r"^(\w+:(?:(?:prefix_cache_(?:queries|hits)|prompt_tokens_by_source|remote_(?:lookups|lookup_blocks|errors|refusals))"
    r'_total(?:\{[^}]*\})?|(?:restore|write)_bytes_total\{tier="remote"\})) (\S+)$',
    re.MULTILINE,
)
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How a server is asked.

    Attributes:
        endpoint: Its base URL, up to and with `/v1`.
        model: The model's name there; None for the first that it lists.
        api: `chat` completions, or plain `completions` of the conversation as text.
        api_key: Sent as a bearer token; empty for none.
        timeout: The most seconds that a request may take.
        temperature: 0 is greedy.
        seed: Sent with every request; None for none.
        ignore_eos: Ask for answers of full length (an extension of vLLM and kvlab).
        extra: Further fields of every request's body.
        ready_seconds: How long a server that was restarted may take until it answers.
    """

    endpoint: str
    model: str | None = None
    api: Literal["chat", "completions"] = "chat"
    api_key: str = field(default="", repr=False)
    timeout: float = 600.0
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    ready_seconds: float = 300.0

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise InvalidArgumentError(
                f"--endpoint {self.endpoint}: give a URL such as http://127.0.0.1:8000/v1"
            )
        if not self.timeout > 0:
            raise InvalidArgumentError(f"--timeout {self.timeout}: give seconds above 0")


class LiveBackend:
    """A server by its URL; see `Backend`. What mode it is in is its own business, unless `restarter` starts it.

    Args:
        options: How it is asked.
        token_bytes: KV bytes of a token of its model, if known.
        restarter: What restarts it; None if nothing can.
    """

    name = "live"
    estimated = False

    def __init__(
        self,
        options: LiveOptions,
        *,
        token_bytes: int | None = None,
        restarter: Restarter | None = None,
    ) -> None:
        self.options = options
        self.token_bytes = token_bytes
        self._restarter = restarter
        self._model = options.model

    @asynccontextmanager
    async def open(self, mode: Mode) -> AsyncIterator[Service]:
        """Asks the server which models it has, so that one that is down is noticed before a run."""
        if self._restarter is not None:
            await self._restarter.start(mode)
        try:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            seconds = self.options.timeout
            timeout = httpx.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds), pool=None)
            key = self.options.api_key
            async with httpx.AsyncClient(
                limits=limits,
                timeout=timeout,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                trust_env=False,
            ) as client:
                service = LiveService(client, self.options, self._restarter)
                await service.ready(self.options.ready_seconds if self._restarter else 0.0)
                self._model = service.model
                yield service
        finally:
            if self._restarter is not None:
                await self._restarter.stop()

    def describe(self) -> dict[str, Any]:
        """The options without the key."""
        asked = self.options
        return {
            "backend": self.name,
            "endpoint": asked.endpoint,
            "model": self._model,
            "api": asked.api,
            "timeout": asked.timeout,
            "temperature": asked.temperature,
            "ignore_eos": asked.ignore_eos,
            "extra": dict(asked.extra),
            "server": self._restarter.describe() if self._restarter else None,
        }

    def close(self) -> None:
        """Nothing is shared by modes."""


class LiveService:
    """A server that answers; see `Service`."""

    def __init__(
        self, client: httpx.AsyncClient, options: LiveOptions, restarter: Restarter | None
    ) -> None:
        self._client = client
        self._options = options
        self._restarter = restarter
        self._base = options.endpoint.rstrip("/")
        self._before: dict[str, float] = {}
        self._ended: dict[str, Any] = {}
        self.model = options.model or ""

    async def ready(self, seconds: float) -> None:
        """Waits until the server lists its models, takes the first if none was named, and reads its counters.

        Raises:
            EndpointError: it does not answer within so many seconds, or not as a server of this kind.
        """
        ends = time.monotonic() + seconds
        while True:
            try:
                names = await self._models()
                break
            except EndpointError as error:
                if error.kind == "garbage" or time.monotonic() >= ends:
                    raise
                if self._restarter is not None:
                    self._restarter.check()
                await asyncio.sleep(0.1)
        if not self.model:
            if not names:
                raise EndpointError(
                    f"{self._base}/models: lists no model; name one with --model", kind="garbage"
                )
            self.model = names[0]
        self._before = await self._counters()

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        """Sends a request as a stream, with its usage asked for."""
        asked = self._options
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": asked.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **asked.extra,
        }
        if asked.api == "chat":
            body["messages"] = [
                {"role": message.role, "content": message.content} for message in sent.messages
            ]
        else:
            body["prompt"] = "\n\n".join(message.content for message in sent.messages)
        if asked.seed is not None:
            body["seed"] = asked.seed
        if asked.ignore_eos:
            body["ignore_eos"] = True
        if request.salt:
            body["cache_salt"] = request.salt
        url = f"{self._base}/{'chat/completions' if asked.api == 'chat' else 'completions'}"
        received = _Received(time.perf_counter())
        try:
            async with (
                asyncio.timeout(asked.timeout),
                self._client.stream("POST", url, json=body) as response,
            ):
                await _check(response, url)
                async for chunk in chunks(response.aiter_bytes()):
                    received.take(chunk)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise _named(error, url, asked.timeout) from None
        except EndpointError as error:
            raise EndpointError(f"{url}: {error}", kind=error.kind) from None
        return received.answer(url)

    async def begin(self) -> None:
        """Reads the server's counters."""
        self._before = await self._counters()

    async def restart(self) -> None:
        """Restarts the server, or has another one go on, and waits for it."""
        if self._restarter is None:
            raise InvalidArgumentError(
                "mode nvme restarts the server in the middle: give --restart-command, or --serve to have it started"
            )
        self._ended = await self._moved()
        await self._restarter.restart()
        await self.ready(self._options.ready_seconds)

    async def facts(self) -> dict[str, Any]:
        """How far the server's own counters of cached tokens went since then, if it has /metrics."""
        moved = await self._moved()
        ended = self._ended
        return {
            **({"server_counters": moved} if moved else {}),
            **({"server_counters_before_restart": ended} if ended else {}),
        }

    async def _moved(self) -> dict[str, float]:
        after = await self._counters()
        return {name: value - self._before.get(name, 0.0) for name, value in after.items()}

    async def _models(self) -> list[str]:
        url = f"{self._base}/models"
        try:
            response = await self._client.get(url, timeout=_CONNECT_SECONDS)
            await _check(response, url)
            rows = response.json()["data"]
            return [str(row["id"]) for row in rows]
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _named(error, url, _CONNECT_SECONDS) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            text = shorten(response.content)
            raise EndpointError(
                f"{url}: is no list of models, so this is no OpenAI-compatible server: {text}",
                kind="garbage",
            ) from None

    async def _counters(self) -> dict[str, float]:
        url = f"{self._base.removesuffix('/v1')}/metrics"
        try:
            response = await self._client.get(url, timeout=_CONNECT_SECONDS)
        except httpx.HTTPError:
            return {}  # many servers have no metrics, and a run does not need them
        if response.status_code != 200:
            return {}
        return {name: _number(value) for name, value in _COUNTERS.findall(response.text)}


class _Received:
    """What came of a stream so far."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._moments: list[float] = []
        self._parts: list[str] = []
        self._end = start
        self._finish = ""
        self._choices = False
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    def take(self, chunk: dict[str, Any]) -> None:
        """Takes a chunk."""
        now = time.perf_counter()
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                raise EndpointError(f"a choice is no object: {shorten(str(chunk))}", kind="garbage")
            self._choices = True
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
            if isinstance(text, str) and text:
                self._parts.append(text)
                self._moments.append(now)
            if choice.get("finish_reason"):
                self._finish = str(choice["finish_reason"])
                self._end = now
        self._end = now if self._moments and self._moments[-1] == now else self._end
        for name, store in (("usage", self._usage), ("timings", self._timings)):
            value = chunk.get(name)
            if isinstance(value, dict):
                store.update(value)

    def answer(self, url: str) -> Answer:
        """The whole.

        Raises:
            EndpointError: there was no answer in it.
        """
        if not self._choices or not (self._moments or self._finish):
            raise EndpointError(f"{url}: the stream had neither text nor an end", kind="garbage")
        first = self._moments[0] if self._moments else self._end
        details = self._usage.get("prompt_tokens_details")
        details = details if isinstance(details, dict) else {}
        cached = _count(details.get("cached_tokens"))
        if cached is None:  # DeepSeek, and llama.cpp before it had the field
            cached = _count(self._usage.get("prompt_cache_hit_tokens"))
        if cached is None:
            cached = _count(self._timings.get("cache_n"))
        split = details.get("cached_tokens_by_source")
        by_source = {
            source: _count(split.get(source)) or 0 for source in SOURCES
        } if isinstance(split, dict) else None  # fmt: skip
        return Answer(
            text="".join(self._parts),
            ttft=first - self._start,
            e2el=max(self._end, first) - self._start,
            itls=tuple(
                after - before
                for before, after in zip(self._moments, self._moments[1:], strict=False)
            ),
            prompt_tokens=_count(self._usage.get("prompt_tokens")),
            output_tokens=_count(self._usage.get("completion_tokens")),
            cached_tokens=cached,
            cached_by_source=by_source,
            finish_reason=self._finish,
        )


async def _check(response: httpx.Response, url: str) -> None:
    """Refuses what is no success.

    Raises:
        EndpointError: names status and body.
    """
    if response.status_code == 200:
        return
    start = b""
    async for piece in response.aiter_bytes():
        start += piece
        if len(start) > 4096:
            break
    raise EndpointError(
        f"{url}: status {response.status_code}: {shorten(start) or 'no body'}", kind="status"
    )


def _named(error: Exception, url: str, seconds: float) -> EndpointError:
    said = shorten(str(error)) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol):
        return EndpointError(
            f"{url}: cannot be reached ({said}); is the server up?", kind="connect"
        )
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return EndpointError(
            f"{url}: no whole answer within {seconds:g} s; see --timeout", kind="timeout"
        )
    return EndpointError(f"{url}: the connection broke: {said}", kind="broken")


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
