"""Estimates: what a run would take by a cost model, in simulated time and without a model.

Which tokens hit is exact for caches with radix trees and LRU. Every time is predicted.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab import PagedAllocator, RadixCache
from kvlab.bench.backend import Mode, Service
from kvlab.bench.outcome import Answer
from kvlab.errors import ConfigError
from kvlab.serve.engine.modes import TIERS
from kvlab.workload.schema import Message
from kvlab.workload.tokens import tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from numpy.typing import NDArray

    from kvlab.bench.conversation import Sent
    from kvlab.sim.cost_file import CostModel
    from kvlab.sim.tiers import Costs, Read
    from kvlab.workload.schema import WorkloadRequest
    from kvlab.workload.tokens import ChatTokenizer

__all__ = ["Sizes", "SyntheticBackend"]

_PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the tiers; a mode takes those that it has."""

    l1: int
    l2: int
    l3: int


class SyntheticBackend:
    """A simulated server; see `Backend`.

    It is taken to say what was recorded, so what it said is there for the next turn, but for the last token.
    One worker computes chunks of prompts and single steps of answers in turn, for all requests that it was given;
    reads from tiers run beside it.

    Args:
        model: What things cost.
        sizes: Of the tiers.
        block_tokens: Tokens of a block.
        tokens: What prompts are cut into tokens by; see `kvlab.workload.tokens.tokenizer`.

    Raises:
        ModelUnavailableError: the tokenizer is not here.
    """

    name = "synthetic"
    estimated = True

    def __init__(
        self, model: CostModel, sizes: Sizes, *, block_tokens: int = 16, tokens: str = "chars"
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._block_tokens = block_tokens
        self._tokenizer = _Remembered(tokenizer(tokens))
        self.token_bytes: int | None = model.costs.token_bytes

    @asynccontextmanager
    async def open(self, mode: Mode) -> AsyncIterator[Service]:
        """A server with empty tiers.

        Raises:
            ConfigError: a mode that cannot be estimated.
        """
        if mode == "remote":
            raise ConfigError(
                "mode remote: the cost model knows no network between machines; use --backend local or --serve, or nvme"
            )
        if mode not in TIERS:
            raise ConfigError(
                f"mode {mode} runs a real model: use --backend local, or one of {', '.join(TIERS)}"
            )
        costs = self._model.costs
        block_bytes = costs.token_bytes * self._block_tokens
        capacities = {
            tier: max(1, getattr(self._sizes, tier) // block_bytes) for tier in TIERS[mode]
        }
        yield _Server(costs, capacities, self._block_tokens, self._tokenizer)

    def describe(self) -> dict[str, Any]:
        """Costs and sizes."""
        return {
            "backend": self.name,
            "costs": self._model.describe(),
            "l1_bytes": self._sizes.l1,
            "l2_bytes": self._sizes.l2,
            "l3_bytes": self._sizes.l3,
            "block_tokens": self._block_tokens,
            "tokenizer": self._tokenizer.name,
        }

    def close(self) -> None:
        """Nothing is shared by modes."""


class _Remembered:
    """Token ids of prompts, each made once for all modes and rounds."""

    def __init__(self, tokens: ChatTokenizer) -> None:
        self.name = tokens.name
        self.text = tokens.text
        self.prompt = lru_cache(maxsize=8192)(
            lambda messages: np.asarray(tokens.prompt(messages), dtype=np.int64)
        )


class _Server:
    """One mode; see `Service`."""

    def __init__(
        self,
        costs: Costs,
        capacities: Mapping[str, int],
        block_tokens: int,
        tokens: _Remembered,
    ) -> None:
        self._costs = costs
        self._capacities = capacities
        self._block_tokens = block_tokens
        self._tokenizer = tokens
        self._worker = asyncio.Lock()
        # A block is in L1 if it is among the so many used last, in L2 if among as many as both hold, and L3 holds
        # copies of all that is written through.
        total = 0
        self._caches: dict[str, _Lru] = {}
        for tier, blocks in capacities.items():
            total = max(total, blocks) if tier == "l3" else total + blocks
            self._caches[tier] = _Lru(total, block_tokens)

    async def send(self, request: WorkloadRequest, sent: Sent) -> Answer:
        """Predicts one request, and lets the simulated time of it pass."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        prompt = self._tokenizer.prompt(sent.messages)
        namespace = hashlib.sha256(request.salt.encode()).digest()
        cached = self._found(prompt, namespace)
        queued = await self._prefill(len(prompt), cached)
        said = request.reply if request.reply is not None else _filler(request)
        self._keep(prompt, namespace)
        times = [loop.time()]
        for _ in range(request.max_tokens - 1):
            async with self._worker:
                await asyncio.sleep(self._costs.decode)
            times.append(loop.time())
        # Of what was said the last token was never computed on.
        told = self._tokenizer.prompt((*sent.messages, Message("assistant", said)))
        answer = len(self._tokenizer.text(said))
        self._keep(told[: len(prompt) + answer - 1], namespace)
        return Answer(
            text=said,
            ttft=times[0] - start,
            e2el=times[-1] - start,
            itls=tuple(after - before for before, after in itertools.pairwise(times)),
            prompt_tokens=len(prompt),
            output_tokens=request.max_tokens,
            cached_tokens=sum(cached.values()),
            cached_by_source={"l1": 0, "l2": 0, "l3": 0, "remote": 0} | cached,
            finish_reason="length",
            queued=queued,
            tier_bytes=self._held(),
        )

    async def begin(self) -> None:
        """Nothing is counted."""

    async def restart(self) -> None:
        """What is on disk stays, the rest is gone; no time passes for it."""
        for tier, cache in self._caches.items():
            if tier != "l3":
                cache.clear()

    async def facts(self) -> dict[str, Any]:
        """Nothing beyond what the answers said."""
        return {}

    def _found(self, prompt: NDArray[np.int64], namespace: bytes) -> dict[str, int]:
        """Tokens by the highest tier that has them; the last one is always computed."""
        out: dict[str, int] = {}
        before = 0
        for tier, cache in self._caches.items():
            there = max(before, cache.found(prompt, namespace))
            out[tier] = there - before
            before = there
        return out

    def _keep(self, prompt: NDArray[np.int64], namespace: bytes) -> None:
        for cache in self._caches.values():
            cache.keep(prompt, namespace)

    def _held(self) -> dict[str, int]:
        """Bytes in each tier; L3 has copies of what is above it."""
        block_bytes = self._costs.token_bytes * self._block_tokens
        held, above = {}, 0
        for tier, cache in self._caches.items():
            blocks = cache.blocks
            held[tier] = (blocks if tier == "l3" else blocks - above) * block_bytes
            above = blocks
        return held

    async def _prefill(self, tokens: int, cached: Mapping[str, int]) -> float:
        """Reads what is cached and computes the rest, in chunks between which others have their turn.

        Returns:
            Seconds in line before the first chunk.
        """
        costs = self._costs
        loop = asyncio.get_running_loop()
        reads: dict[str, Read] = {"l1": costs.l1, "l2": costs.l2, "l3": costs.l3}
        reading = sum(
            reads[tier].latency + count * costs.token_bytes / reads[tier].bandwidth
            for tier, count in cached.items()
            if count
        )
        context = sum(cached.values())
        fixed, per_token, per_context = costs.prefill
        came = loop.time()
        queued = None
        while context < tokens:
            chunk = min(_PREFILL_CHUNK, tokens - context)
            seconds = fixed + chunk * (per_token + per_context * (context + chunk / 2))
            if queued is None:
                # The longer of the two, and what of the shorter one does not run beside it.
                seconds = max(reading, seconds) + (1 - costs.overlap) * min(reading, seconds)
            async with self._worker:
                queued = loop.time() - came if queued is None else queued
                await asyncio.sleep(seconds)
            context += chunk
        return queued or 0.0


class _Lru:
    """Which prefixes so many blocks hold: a radix tree without payload."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self._capacity = blocks
        self._block_tokens = block_tokens
        # Blocks beyond the capacity take the prompt that comes in; then as many go.
        self._blocks = PagedAllocator(
            blocks + _LONGEST_PROMPT // block_tokens, block_tokens=block_tokens
        )
        self._tree = RadixCache(self._blocks)

    @property
    def blocks(self) -> int:
        """Blocks held."""
        return self._tree.stats()["total_blocks"]

    def found(self, prompt: NDArray[np.int64], namespace: bytes) -> int:
        """Tokens of the longest prefix, in whole blocks and without the last token."""
        return len(prompt) - self._tree.request(prompt, namespace)[1]

    def keep(self, tokens: NDArray[np.int64], namespace: bytes) -> None:
        """Takes up whole blocks, and gives up the least recently used ones beyond the capacity."""
        whole = tokens[: len(tokens) // self._block_tokens * self._block_tokens]
        if not len(whole):
            return
        sequence = self._blocks.allocate_sequence(len(whole))
        self._tree.insert(whole, self._blocks.block_table(sequence), namespace)
        self._blocks.free_sequence(sequence)
        self._tree.evict(max(0, self.blocks - self._capacity))

    def clear(self) -> None:
        """Forgets everything."""
        self._tree.evict(self.blocks)


_LONGEST_PROMPT = 1 << 22


def _filler(request: WorkloadRequest) -> str:
    """What stands for an answer that was not recorded: text of its longest length."""
    phrase = f"(the answer to {request.id}) "
    return (phrase * request.max_tokens)[: 4 * request.max_tokens]
