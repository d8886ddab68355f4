"""A machine of a run: a process of its own with the model, and one engine over one store at a time."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import signal
import threading
import traceback
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

import torch

from kvlab import errors
from kvlab.bench.local import LocalBackend, LocalOptions
from kvlab.errors import GenerationError, KvlabError, StateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection

    from kvlab.bench.backend import Service
    from kvlab.bench.conversation import Sent
    from kvlab.bench.outcome import Answer
    from kvlab.serve.engine.modes import Mode as StoreMode
    from kvlab.workload.schema import WorkloadRequest

__all__ = ["Machine"]

_END_SECONDS = 30.0


class Machine:
    """A process that answers requests. It shares nothing with others but what its store shares.

    Args:
        options: What runs there.
        threads: Of torch.
    """

    def __init__(self, options: LocalOptions, threads: int) -> None:
        # Not a fork: torch's and the store's threads do not survive one.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, options, threads), name="kvlab-machine", daemon=True
        )
        self._process.start()
        theirs.close()
        self._numbers = itertools.count()
        self._changed = threading.Lock()
        self._calls: dict[int, Future[Any]] = {}
        self._gone = False
        self._reader = threading.Thread(target=self._read, name="kvlab-machine", daemon=True)
        self._reader.start()

    def load(self) -> Future[Mapping[str, Any]]:
        """Loads the model; what it says of itself (see `Backend.describe`) and its `token_bytes`.

        The result raises a `KvlabError` if the model cannot be had.
        """
        return self._call("load")

    async def open(self, tiers: StoreMode, shared: Mapping[str, Any]) -> None:
        """Brings up an engine over an empty store; see `LocalBackend.serve`."""
        await self._wait("open", tiers, dict(shared))

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        """Sends a request and waits for its answer; times are those of the machine."""
        return cast("Answer", await self._wait("send", request, sent))

    async def begin(self) -> None:
        """See `Service.begin`."""
        await self._wait("begin")

    async def facts(self) -> dict[str, Any]:
        """See `Service.facts`."""
        return cast("dict[str, Any]", await self._wait("facts"))

    async def shut(self) -> None:
        """Closes engine and store."""
        await self._wait("shut")

    def close(self) -> None:
        """Ends the process."""
        with self._changed:
            gone, self._gone = self._gone, True
            if not gone:
                self._connection.send(None)
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._reader.join()
        self._connection.close()

    async def _wait(self, name: str, *arguments: Any) -> Any:
        return await asyncio.wrap_future(self._call(name, *arguments))

    def _call(self, name: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            if self._gone:
                raise StateError("the process of a machine has ended")
            number = next(self._numbers)
            self._calls[number] = future
            self._connection.send((number, name, arguments))
        return future

    def _read(self) -> None:
        """Hands answers to who waits for them, until the process ends."""
        while True:
            try:
                number, kind, value = self._connection.recv()
            except (EOFError, OSError):
                break
            with self._changed:
                future = self._calls.pop(number)
            if future.cancelled():
                continue
            if kind == "done":
                future.set_result(value)
            else:
                future.set_exception(_error(kind, value))
        with self._changed:
            self._gone = True
            left, self._calls = self._calls, {}
        for future in left.values():
            if not future.cancelled():
                future.set_exception(
                    GenerationError("the process of a machine ended in the middle of a run")
                )


def _error(kind: str, text: str) -> Exception:
    """What was raised there: kvlab's own under its name, anything else with its traceback."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, KvlabError):
        return known(text)
    return RuntimeError(f"in the process of a machine: {text}")


def _work(connection: Connection, options: LocalOptions, threads: int) -> None:
    """The process: one call after the other is begun, and answered when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    torch.set_num_threads(threads)
    asyncio.run(_Calls(connection, options).run())


class _Calls:
    """What the process does when it is called."""

    def __init__(self, connection: Connection, options: LocalOptions) -> None:
        self._connection = connection
        self._options = options
        self._backend: LocalBackend | None = None
        self._service: Service | None = None
        self._opened = AsyncExitStack()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while (call := await asyncio.to_thread(self._next)) is not None:
                group.create_task(self._answer(*call))
        await self._opened.aclose()

    def _next(self) -> tuple[int, str, tuple[Any, ...]] | None:
        try:
            return cast("tuple[int, str, tuple[Any, ...]] | None", self._connection.recv())
        except EOFError:
            return None  # who started it is gone

    async def _answer(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            value = await getattr(self, name)(*arguments)
        except KvlabError as error:
            self._connection.send((number, type(error).__name__, str(error)))
        except Exception:  # noqa: BLE001 (it is raised again where the call came from)
            self._connection.send((number, "", traceback.format_exc()))
        else:
            self._connection.send((number, "done", value))

    async def load(self) -> Mapping[str, Any]:
        self._backend = LocalBackend(self._options)
        return {**self._backend.describe(), "token_bytes": self._backend.token_bytes}

    async def open(self, tiers: StoreMode, shared: Mapping[str, Any]) -> None:
        if self._backend is None:
            raise StateError("the model is not loaded")
        self._service = await self._opened.enter_async_context(self._backend.serve(tiers, shared))

    def _served(self) -> Service:
        if self._service is None:
            raise StateError("the machine has no engine")
        return self._service

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        return await self._served().send(request, sent)

    async def begin(self) -> None:
        await self._served().begin()

    async def facts(self) -> dict[str, Any]:
        return await self._served().facts()

    async def shut(self) -> None:
        self._service = None
        await self._opened.aclose()
