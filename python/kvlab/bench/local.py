"""A real model in this process: kvlab's engine with the store of a mode, or transformers' own `generate`."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from kvlab import hf
from kvlab.bench.backend import Mode, Service
from kvlab.bench.outcome import Answer
from kvlab.bench.shared import shared_tier
from kvlab.errors import GenerationError, StateError
from kvlab.hf.layout import read_layout
from kvlab.serve.engine.engine import Engine
from kvlab.serve.engine.modes import Mode as StoreMode
from kvlab.serve.engine.modes import TierSizes, open_mode
from kvlab.serve.engine.request import (
    Admitted,
    Chunk,
    EngineOptions,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Sampling,
)
from kvlab.workload.tokens import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

    from kvlab import Store
    from kvlab._types import RemoteStats
    from kvlab.bench.conversation import Sent
    from kvlab.workload.schema import WorkloadRequest

__all__ = ["LocalBackend", "LocalOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What runs in this process.

    Attributes:
        model: A name that `kvlab.hf.load` takes.
        dtype: Of weights and cache.
        sizes: Of the tiers, as far as a mode has them.
        max_active: The most requests that are computed side by side.
        block_tokens: Tokens of a block.
        restore: How much of what is found is restored (see `kvlab.hf.attach`).
        temperature: 0 is greedy.
        seed: Of the sampling.
        ignore_eos: Answers have their full length.
        folder: Where stores of mode `nvme` are made; None for the system's temporary directory.
        remote: The server of mode `remote`; None to start one for each of its rounds.
    """

    model: str
    dtype: str = "float32"
    sizes: TierSizes = field(default_factory=TierSizes)
    max_active: int = 4
    block_tokens: int = 16
    restore: Any = "auto"
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    folder: Path | None = None
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: Any
    tokenizer: Any
    chat: ModelTokenizer


class LocalBackend:
    """A model, loaded once for all modes; see `Backend`.

    Args:
        options: What runs.
        loaded: Model and tokenizer, where they are at hand already.

    Raises:
        ModelUnavailableError: the model cannot be obtained.
        ConfigError: an unknown dtype.
    """

    name = "local"
    estimated = False

    def __init__(self, options: LocalOptions, loaded: tuple[Any, Any] | None = None) -> None:
        self._options = options
        model, tokenizer = loaded or hf.load(options.model, dtype=options.dtype)
        self._loaded = _Loaded(model, tokenizer, ModelTokenizer(options.model, tokenizer))
        self.token_bytes: int | None = read_layout(model).bytes_per_token

    @property
    def chat(self) -> ModelTokenizer:
        """What makes tokens of prompts."""
        return self._loaded.chat

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self._options.block_tokens

    @asynccontextmanager
    async def open(self, mode: Mode) -> AsyncIterator[Service]:
        """An engine of its own over an empty store."""
        if mode == "generate":
            yield _Plain(self._loaded, self._options)
            return
        with ExitStack() as stack:
            shared: Mapping[str, Any] = {}
            if mode == "remote":
                shared = stack.enter_context(shared_tier(self._options.remote))
            tiers = cast("StoreMode", "cpu_offload" if shared else mode)
            async with self.serve(tiers, shared) as served:
                yield served

    @asynccontextmanager
    async def serve(self, tiers: StoreMode, shared: Mapping[str, Any]) -> AsyncIterator[Service]:
        """An engine of its own over an empty store.

        Args:
            tiers: Of the store.
            shared: What it is told of L4 (see `kvlab.bench.shared`); empty for none.

        Raises:
            KvlabError: the store cannot be opened.
        """
        with tempfile.TemporaryDirectory(prefix="kvlab-bench-", dir=self._options.folder) as folder:
            path = Path(folder) / "store" if tiers == "nvme" else None
            served = _Served(self._loaded, self._options, tiers, path, shared)
            try:
                yield served
            finally:
                await asyncio.to_thread(served.end)

    def describe(self) -> dict[str, Any]:
        """The options, and what torch computes with."""
        asked = self._options
        return {
            "backend": self.name,
            "model": asked.model,
            "dtype": str(self._loaded.model.dtype).removeprefix("torch."),
            "l1": asked.sizes.l1,
            "l2": asked.sizes.l2,
            "l3": asked.sizes.l3,
            "max_active": asked.max_active,
            "block_tokens": asked.block_tokens,
            "restore": asked.restore,
            "temperature": asked.temperature,
            "ignore_eos": asked.ignore_eos,
            "threads": torch.get_num_threads(),
        }

    def close(self) -> None:
        """The model goes with the object."""


class _Served:
    """An engine and its store; see `Service`."""

    def __init__(
        self,
        loaded: _Loaded,
        options: LocalOptions,
        mode: StoreMode,
        path: Path | None,
        shared: Mapping[str, Any],
    ) -> None:
        self._loaded = loaded
        self._options = options
        self._mode: StoreMode = mode
        self._path = path
        self._shared = shared
        self._store: Store | None = None
        self._engine: Engine | None = None
        self._sent = 0
        self._begun: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        asked = self._options
        self._store = open_mode(self._mode, self._path, asked.sizes, **self._shared)
        self._engine = Engine(
            self._loaded.model,
            self._loaded.tokenizer,
            self._store,
            EngineOptions(
                max_active=asked.max_active,
                max_queue=1 << 20,
                block_tokens=asked.block_tokens,
                restore=asked.restore,
            ),
        )

    def end(self) -> None:
        """Closes engine and store."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        store, self._store = self._store, None
        if store is not None:
            store.close()

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        """Submits a request; tokens are made here, as a server would."""
        if self._engine is None:
            raise StateError("the engine was closed")
        asked = self._options
        start = time.perf_counter()
        prompt = _ids(self._loaded.chat, sent)
        self._sent += 1
        generation = GenerationRequest(
            id=f"{self._sent}:{request.id}",
            prompt=prompt,
            max_tokens=request.max_tokens,
            sampling=Sampling(temperature=asked.temperature, seed=asked.seed),
            salt=request.salt,
            ignore_eos=asked.ignore_eos,
        )
        collector = _Collector(asyncio.get_running_loop())
        submitted = time.perf_counter()
        handle = self._engine.submit(generation, collector)
        try:
            finished, ended = await collector.done
        except asyncio.CancelledError:
            handle.cancel()
            raise
        usage, timings = finished.usage, finished.timings
        by_source = {
            source: getattr(usage.cached, source) for source in ("l1", "l2", "l3", "remote")
        }
        return Answer(
            text="".join(collector.texts),
            ttft=submitted - start + timings.first_token_s,
            e2el=ended - start,
            itls=tuple(timings.inter_token_s),
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cached_tokens=usage.cached.total,
            cached_by_source=by_source,
            finish_reason=finished.reason,
            queued=submitted - start + timings.queued_s,
            tier_bytes=self._held(),
        )

    async def begin(self) -> None:
        """Counts begin."""
        self._begun = await asyncio.to_thread(self._counts)

    async def restart(self) -> None:
        """Closes engine and store and opens them again.

        What the system caches of their files is dropped. A store in memory is another one then, and empty: with L4,
        that of another machine. What was queued for L4 is there before it goes on.
        """
        await asyncio.to_thread(self._restart)

    def _restart(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._before = self._counted()
        if self._store is not None:
            self._store.flush()
            if self._path is not None:
                self._before["page_cache_bytes_left"] = self._store.drop_page_cache()
            self._store.close()
        self._begun = {}
        self._start()

    async def facts(self) -> dict[str, Any]:
        """Counts of the store, before and after a restart."""
        after = await asyncio.to_thread(self._counted)
        if not after:
            return {}
        return {"store": after, **({"store_before_restart": self._before} if self._before else {})}

    def _counted(self) -> dict[str, Any]:
        return _since(self._counts(), self._begun)

    def _counts(self) -> dict[str, Any]:
        if self._store is None:
            return {}
        if self._shared:
            self._store.flush()  # what is on its way to L4 is counted when it is there
        stats = self._store.stats()
        return {
            "l1_evicted_blocks": sum(cache["l1"]["evicted_blocks"] for cache in stats["caches"]),
            "demotions": stats["demotions"],
            "dropped_victims": stats["dropped_victims"],
            "refusals": {name: count for name, count in stats["refusals"].items() if count},
            **{
                tier: {
                    name: stats[tier][name]
                    for name in ("used", "read_bytes", "write_bytes", "evictions", "corrupt")
                }
                for tier in ("l2", "l3")
                if stats[tier]["capacity"]
            },
            **({"remote": _remote(stats["remote"])} if stats["remote"] else {}),
        }

    def _held(self) -> dict[str, int]:
        if self._store is None:
            return {}
        stats = self._store.stats()
        caches = [cache["l1"] for cache in stats["caches"]]
        held = {"l1": sum((l1["evictable"] + l1["protected"]) * l1["block_bytes"] for l1 in caches)}
        for tier in ("l2", "l3"):
            if stats[tier]["capacity"]:
                held[tier] = stats[tier]["used"]
        return held


def _remote(stats: RemoteStats) -> dict[str, Any]:
    """What L4 counted; errors and refusals as far as there were any."""
    counts: dict[str, Any] = {
        "lookups": stats["lookups"],
        "lookup_micros": stats["lookup_micros"],
        "found_blocks": stats["found_blocks"],
        "missed_blocks": stats["missed_blocks"],
        "read_bytes": stats["read_bytes"],
        "read_micros": stats["read_micros"],
        "write_bytes": stats["write_bytes"],
        "write_micros": stats["write_micros"],
        "corrupt": stats["corrupt"],
        "gone": stats["gone"],
    }
    kinds: dict[str, Mapping[str, Any]] = {
        "errors": stats["errors"],
        "refusals": stats["refusals"],
    }
    for name, kind in kinds.items():
        counts[name] = {cause: count for cause, count in kind.items() if count}
    return counts


def _since(counts: Mapping[str, Any], begun: Mapping[str, Any]) -> dict[str, Any]:
    """How far counts went; what a tier holds is no count."""
    out: dict[str, Any] = {}
    for name, value in counts.items():
        if isinstance(value, Mapping):
            out[name] = _since(value, begun.get(name, {}))
        else:
            out[name] = value if name == "used" else value - begun.get(name, 0)
    return out


class _Collector:
    """Takes the events of a request in the engine's thread; `done` is for the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.done: asyncio.Future[tuple[Finished, float]] = loop.create_future()
        self.texts: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Chunk):
            self.texts.append(event.text)
        elif not isinstance(event, Admitted):
            self._loop.call_soon_threadsafe(self._end, event, time.perf_counter())

    def _end(self, event: Event, moment: float) -> None:
        if self.done.done():
            return
        if isinstance(event, Finished):
            self.done.set_result((event, moment))
        elif isinstance(event, Failed):
            self.done.set_exception(event.error)
        else:
            self.done.set_exception(GenerationError("the engine cancelled the request"))


class _Plain:
    """`model.generate`, one request at a time; see `Service`."""

    def __init__(self, loaded: _Loaded, options: LocalOptions) -> None:
        self._loaded = loaded
        self._options = options
        self._free = asyncio.Lock()

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        """Generates in a thread, so that others may be sent meanwhile."""
        start = time.perf_counter()
        async with self._free:
            queued = time.perf_counter() - start
            return await asyncio.to_thread(self._generate, request, sent, start, queued)

    def _generate(
        self, request: WorkloadRequest, sent: Sent, start: float, queued: float
    ) -> Answer:
        ids = torch.from_numpy(_ids(self._loaded.chat, sent)[None])
        clock = _Clock()
        asked = self._options
        most: dict[str, Any] = {"max_new_tokens": request.max_tokens}
        if asked.ignore_eos:
            most["min_new_tokens"] = request.max_tokens
        if asked.temperature:
            most |= {"do_sample": True, "temperature": asked.temperature}
        else:
            most["do_sample"] = False
        out = self._loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), streamer=clock, **most
        )
        end = time.perf_counter()
        said = out[0, ids.shape[1] :]
        times = clock.moments
        return Answer(
            text=str(self._loaded.tokenizer.decode(said, skip_special_tokens=True)),
            ttft=times[0] - start,
            e2el=end - start,
            itls=tuple(np.diff(times).tolist()),
            prompt_tokens=ids.shape[1],
            output_tokens=len(said),
            cached_tokens=0,
            cached_by_source={"l1": 0, "l2": 0, "l3": 0, "remote": 0},
            finish_reason="length" if len(said) == request.max_tokens else "stop",
            queued=queued,
        )

    async def begin(self) -> None:
        """There is nothing to count."""

    async def restart(self) -> None:
        """There is nothing to restart."""

    async def facts(self) -> dict[str, Any]:
        """There is no cache."""
        return {}


class _Clock(BaseStreamer):
    """Writes down when each token came."""

    def __init__(self) -> None:
        self._prompt = True
        self.moments: list[float] = []

    def put(self, value: Any) -> None:
        """A token; the first call has the prompt."""
        del value
        if not self._prompt:
            self.moments.append(time.perf_counter())
        self._prompt = False

    def end(self) -> None:
        """Nothing is left to write."""


def _ids(chat: ModelTokenizer, sent: Sent) -> NDArray[np.int64]:
    return cast("NDArray[np.int64]", np.asarray(chat.prompt(sent.messages), dtype=np.int64))
