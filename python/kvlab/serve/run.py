"""Starting a server, serving, and ending it without losing what was cached."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import os
import signal
import socket
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvlab import models
from kvlab.errors import ConfigError, GenerationError
from kvlab.serve.engine.modes import open_mode
from kvlab.serve.options import DTYPES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.types import ASGIApp

    from kvlab import Store
    from kvlab._types import RecoveryReport
    from kvlab.serve.engine.engine import Engine
    from kvlab.serve.options import ServeOptions

_log = logging.getLogger("kvlab.serve")

_BACKLOG = 128
_SENDING_SECONDS = 5.0
"""How long clients may take for the last bytes of their answers when the server ends."""
_WATCH_SECONDS = 1.0
_FIRST = asyncio.FIRST_COMPLETED


@dataclass(frozen=True, kw_only=True)
class Started:
    """What a server says of itself when it is ready.

    Attributes:
        url: Where it listens.
        pid: Of the process.
        recovery: What opening the store found; None without L3.
        remote: Addresses of the servers of L4, without passwords.
        api_keys: How many there are.
        context_tokens: The longest prompt and answer together.
        load_s: Seconds from the start until now.
    """

    url: str
    pid: int
    recovery: RecoveryReport | None
    remote: tuple[str, ...]
    api_keys: int
    context_tokens: int
    load_s: float


@dataclass(frozen=True, kw_only=True)
class Service:
    """An application, and what is behind it."""

    app: ASGIApp
    engine: Engine
    store: Store | None
    context_tokens: int
    api_keys: int


def listen(host: str, port: int) -> socket.socket:
    """Takes an address; who connects from now on waits until the server is ready.

    Raises:
        ConfigError: it cannot be had; the message says why.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = (
                f"port {port} of {host} is in use by another process: stop it, or give another port "
                "(--port 0 takes a free one)"
            )
        elif error.errno == errno.EACCES:
            message = f"port {port} of {host} is not for this user: give one above 1023 with --port"
        else:
            message = f"cannot listen at {host}, port {port}: {error.strerror}; see --host, --port"
        raise ConfigError(message) from error


@contextmanager
def open_service(options: ServeOptions) -> Iterator[Service]:
    """Opens the store, loads the model, and closes both at the end.

    Raises:
        KvlabError: no such model, a store that is locked or none, keys that cannot be read.
    """
    import torch

    from kvlab import hf
    from kvlab.serve.api import Api, create_app
    from kvlab.serve.api.edge import LOOPBACK_HOSTS
    from kvlab.serve.api.keys import KeyRing
    from kvlab.serve.api.prompts import Prompts
    from kvlab.serve.engine.engine import Engine
    from kvlab.serve.observe import LiveState, ServeMetrics, router

    keys = None if options.api_keys is None else KeyRing.load(options.api_keys)
    path = models.resolve(options.model)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        store = open_mode(
            options.mode,
            options.directory,
            options.sizes,
            policy=options.policy,
            write_policy=options.write_policy,
            l3_quota_per_salt=options.quota,
            **options.remote_settings,
        )
        if store is not None:
            stack.enter_context(store)
        model, tokenizer = hf.load(str(path), dtype=DTYPES[options.dtype])
        engine = stack.enter_context(Engine(model, tokenizer, store, options.engine))
        context_tokens = engine.context_tokens
        if context_tokens is None:
            raise ConfigError(f"{options.model} names no context: say it with --context-tokens")
        embeddings: Any = model.get_input_embeddings()
        vocabulary = int(embeddings.weight.shape[0])
        prompts = stack.enter_context(closing(Prompts(tokenizer, vocabulary)))
        name = options.served_name
        metrics = ServeMetrics(engine, store, model=name, vllm_names=options.vllm_metric_names)
        live = LiveState(engine, store, model=name, mode=options.mode)
        api = Api(
            engine=engine,
            prompts=prompts,
            model=name,
            context_tokens=context_tokens,
            keys=keys,
            max_body=options.max_body,
        )
        hosts = LOOPBACK_HOSTS | {options.host} if options.on_loopback else None
        app = create_app(api, router(metrics, live), hosts=hosts)
        yield Service(
            app=app,
            engine=engine,
            store=store,
            context_tokens=context_tokens,
            api_keys=0 if keys is None else len(keys),
        )


def _servers(store: Store | None) -> tuple[str, ...]:
    remote = None if store is None else store.stats()["remote"]
    return () if remote is None else tuple(server["address"] for server in remote["servers"])


def run(options: ServeOptions, announce: Callable[[Started], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second one cancels what is still under way.

    Args:
        options: How.
        announce: Called once, when requests are taken.

    Raises:
        ConfigError: the extra `serve` is not installed, or the address cannot be had.
        KvlabError: the model or the store cannot be had; the engine failed.
    """
    began = time.monotonic()
    _check_packages()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for chatty in ("httpx", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with (
        closing(listen(options.host, options.port)) as at,
        open_service(options) as service,
    ):
        host, port = at.getsockname()[:2]
        started = Started(
            url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
            pid=os.getpid(),
            recovery=None if service.store is None else service.store.recovery(),
            remote=_servers(service.store),
            api_keys=service.api_keys,
            context_tokens=service.context_tokens,
            load_s=time.monotonic() - began,
        )

        async def main() -> None:
            signals: asyncio.Queue[int] = asyncio.Queue()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, signals.put_nowait, number)
            await serve(
                service,
                at,
                until=signals.get,
                drain_s=options.drain_s,
                ready=lambda: announce(started),
            )

        asyncio.run(main())


async def serve(
    service: Service,
    at: socket.socket,
    *,
    until: Callable[[], Awaitable[object]],
    drain_s: float,
    ready: Callable[[], None],
) -> None:
    """Answers requests until it is told to stop, then ends them and writes down what was kept.

    Args:
        service: What answers.
        at: A listening socket; it is closed at the end.
        until: Returns when it is time to stop. Called again, it returns when waiting is over, too.
        drain_s: Seconds that requests under way have to finish; then they are cancelled.
        ready: Called when requests are taken.

    Raises:
        GenerationError: the engine ended by itself.
        StoreTimeoutError: the disk took too long.
    """
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn would raise them again at its end, before the store is closed.
            yield

    config = uvicorn.Config(
        service.app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[at]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    ready()
    told = asyncio.ensure_future(until())
    while not told.done() and not serving.done() and not service.engine.snapshot().closing:
        await asyncio.wait([told, serving], timeout=_WATCH_SECONDS, return_when=_FIRST)
    asked = told.done()
    server.should_exit = True
    try:
        _log.info("ending: requests under way have %g s to finish", drain_s)
        await _close(service.engine, drain_s, until if asked else None)
    finally:
        told.cancel()
        # The engine has said its last word to each request; what is left is to send it.
        await asyncio.wait([serving], timeout=_SENDING_SECONDS)
        server.force_exit = True
        await serving
    if not asked:
        raise GenerationError("the engine ended by itself; the log says why")


async def _close(
    engine: Engine, drain_s: float, hurry: Callable[[], Awaitable[object]] | None
) -> None:
    closed = asyncio.ensure_future(asyncio.to_thread(engine.close, drain_s))
    if hurry is not None:
        hurried = asyncio.ensure_future(hurry())
        await asyncio.wait([closed, hurried], return_when=_FIRST)
        if not closed.done():
            await asyncio.to_thread(engine.close, 0.0)
        hurried.cancel()
    await closed


def _check_packages() -> None:
    names = ("fastapi", "uvicorn", "prometheus_client", "torch", "transformers")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        message = f"the server needs {', '.join(missing)}: pip install 'kvlab[serve]'"
        raise ConfigError(message)
