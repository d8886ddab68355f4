"""The clock of a fleet: arrivals, places, look-ups, reads, forwards and writes, in the order in which they happen.

A discrete-event simulation. Requests wait in line at their machine, the first come first. One that is begun reads what
the machine has; asks L4 for the rest; the rule decides how much of it to fetch; what is fetched waits for the server's
link and for the machine's; the rest is computed; and what was computed is written to L4 behind it, over the links'
other direction. A block can be found by others once its last byte is on a server.

Servers are one link and one memory as large as all of them: runs of 16 MiB are spread over them by hashing, so that
each sends its part of every longer transfer. A short one gets as many servers as it has runs.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvlab.errors import InvalidArgumentError
from kvlab.sim.fleet.local import local_hits
from kvlab.sim.fleet.network import Link, Network, transfer
from kvlab.sim.fleet.routing import route
from kvlab.sim.fleet.rule import Cut, Learnt
from kvlab.sim.fleet.shared import SharedMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from kvlab.sim.fleet.load import Load
    from kvlab.sim.fleet.machines import Machine

__all__ = ["Fleet", "Outcome", "SharedTier", "prepare", "simulate"]

RUN_BYTES = 16 << 20
"""The largest run that is written as one value (core/src/layout.rs)."""
_STRIDE = 4096
_DECIDE, _FINISH, _LEAVE, _STORED = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTier:
    """L4.

    Attributes:
        servers: How many there are.
        server_bytes: Memory of each; None for one that holds all.
        write_queue: Bytes that a machine keeps for writing; what does not fit is not shared.
    """

    servers: int = 1
    server_bytes: int | None = None
    write_queue: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Requests on their machines, and what these find by themselves.

    Attributes:
        load: The requests.
        machine: What computes.
        machines: How many.
        routing: How requests were sent to them.
        machine_of: The machine of each request, `[requests]`.
        l1: Blocks that each request finds in its machine's L1, `[requests]`.
        l2: In its L2, `[requests]`.
    """

    load: Load
    machine: Machine
    machines: int
    routing: str
    machine_of: NDArray[np.int64]
    l1: NDArray[np.int64]
    l2: NDArray[np.int64]


def prepare(
    load: Load,
    machine: Machine,
    machines: int,
    *,
    routing: str = "round-robin",
    l1_bytes: int | None = None,
    l2_bytes: int | None = 0,
    policy: str = "lru",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> Fleet:
    """Sends requests to machines and replays each one's tiers; any number of networks can be tried on what comes of it.

    Args:
        load: The requests.
        machine: What computes.
        machines: How many.
        routing: One of `kvlab.sim.fleet.routing.ROUTINGS`.
        l1_bytes: KV bytes of each machine's L1; None for all.
        l2_bytes: Of its L2; None for all, 0 if there is none.
        policy: What evicts in both.
        seed: Of the routing's draws.
        workers: Threads.
        progress: Called with the machines done.

    Raises:
        ConfigError: an unknown routing or policy.
        InvalidArgumentError: an L1 that does not hold a block.
    """
    token_bytes = machine.costs.token_bytes
    block = token_bytes * load.recorded.block_tokens
    if l1_bytes is not None and l1_bytes < block:
        raise InvalidArgumentError(f"L1 of {l1_bytes:,} bytes: a block has {block:,}")
    chosen = route(load, machines, routing, machine, seed=seed)
    l1, l2 = local_hits(
        load,
        chosen,
        l1_blocks=None if l1_bytes is None else l1_bytes // block,
        l2_blocks=None if l2_bytes is None else l2_bytes // block,
        policy=policy,
        token_bytes=token_bytes,
        workers=workers,
        progress=progress,
    )
    return Fleet(
        load=load,
        machine=machine,
        machines=machines,
        routing=routing,
        machine_of=chosen,
        l1=l1,
        l2=l2,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulation counted. Requests that came in the warm-up are in no figure but those of the whole run.

    Attributes:
        requests: Requests that were counted.
        blocks: Their blocks.
        tokens: Their prompts' tokens.
        hits: Blocks from L1, L2 and L4.
        left_alone: Blocks found in L4 that were computed, because that was predicted to be faster.
        computed_tokens: Tokens that were computed, the last of each prompt always.
        first_token: Seconds from arrival to the first token, `[requests]`.
        queued: Of these, seconds in line, `[requests]`.
        seconds: From the end of the warm-up to the last arrival.
        read_bytes: From servers to machines, counted requests only.
        written_bytes: From machines to servers, likewise.
        unshared_bytes: What a full write queue did not take, likewise.
        server_out: Share of the time that the servers' links send; what was asked for beyond that time counts, so more
            than 1 is a queue that grows.
        server_in: The same of receiving.
        machine_in: The same of the busiest machine's link.
        busy: Share of the machines' places that are taken.
        evicted_blocks: Blocks that the servers gave up, in the whole run.
        refused_blocks: Blocks that did not fit a server at all, in the whole run.
    """

    requests: int
    blocks: int
    tokens: int
    hits: tuple[int, int, int]
    left_alone: int
    computed_tokens: int
    first_token: NDArray[np.float64]
    queued: NDArray[np.float64]
    seconds: float
    read_bytes: int
    written_bytes: int
    unshared_bytes: int
    server_out: float
    server_in: float
    machine_in: float
    busy: float
    evicted_blocks: int
    refused_blocks: int

    def first_token_at(self, share: float) -> float:
        """The time to the first token that this share of the requests does not exceed, in seconds."""
        if not self.requests:
            return 0.0
        return float(np.quantile(self.first_token, share, method="inverted_cdf"))


def simulate(
    fleet: Fleet,
    network: Network | None = None,
    shared: SharedTier | None = None,
    *,
    warm_up: float = 0.0,
    progress: Callable[[int], None] = lambda _done: None,
) -> Outcome:
    """Runs a fleet.

    Args:
        fleet: The requests on their machines.
        network: Between machines and servers.
        shared: L4; None for none.
        warm_up: Seconds from the start whose requests are not counted.
        progress: Called with the requests begun.

    Raises:
        InvalidArgumentError: fewer than one server, or a warm-up that leaves no request.
    """
    if shared is not None and shared.servers < 1:
        raise InvalidArgumentError(f"servers = {shared.servers}: at least 1")
    if not len(fleet.load) or warm_up > float(fleet.load.at[-1]):
        raise InvalidArgumentError(f"warm_up = {warm_up:g} s: no request is left to count")
    return _Run(fleet, network or Network(), shared, warm_up).run(progress)


class _Machine:
    """What one machine has to do."""

    __slots__ = ("down", "learnt", "line", "places", "unwritten", "up")

    def __init__(self, places: int, rate: float) -> None:
        self.places = places
        self.line: deque[int] = deque()
        self.down = Link(rate)
        self.up = Link(rate)
        self.learnt = Learnt()
        # Bytes in the write queue: a server has not taken them yet.
        self.unwritten = 0


class _Run:
    def __init__(
        self, fleet: Fleet, network: Network, shared: SharedTier | None, warm_up: float
    ) -> None:
        load, recorded = fleet.load, fleet.load.recorded
        self.costs = fleet.machine.costs
        self.prefill = fleet.machine.prefill
        self.network = network
        self.shared = shared
        self.block_tokens = recorded.block_tokens
        self.block_bytes = recorded.block_tokens * self.costs.token_bytes
        # Lists: reading a number of an array makes an object of it each time.
        self.at: list[float] = load.at.tolist()
        self.base: list[int] = load.base.tolist()
        self.replica: list[int] = load.replica.tolist()
        self.machine_of: list[int] = fleet.machine_of.tolist()
        self.l1: list[int] = fleet.l1.tolist()
        self.l2: list[int] = fleet.l2.tolist()
        self.tokens: list[int] = recorded.tokens.tolist()
        self.output: list[int] = recorded.output.tolist()
        self.ends: list[int] = recorded.stretch_ends.tolist()
        self.stretches: list[int] = recorded.stretches.tolist()
        self.lengths: list[int] = recorded.lengths.tolist()
        self.common: list[bool] = recorded.common.tolist()
        self.blocks: list[int] = recorded.blocks().tolist()
        self.machines = [
            _Machine(self.costs.concurrency, network.machine_bytes) for _ in range(fleet.machines)
        ]
        servers = shared.servers if shared is not None else 1
        self.rate = network.server_bytes
        self.asking = network.round_trip + network.read_seconds
        self.out, self.into = Link(servers * self.rate), Link(servers * self.rate)
        self.ideal_rate = min(network.machine_bytes, servers * self.rate)
        capacity = None
        if shared is not None and shared.server_bytes is not None:
            capacity = servers * shared.server_bytes // self.block_bytes
        self.memory = SharedMemory(capacity)
        self.begin = warm_up
        self.end = self.at[-1]
        count = len(self.at)
        self.started = [0.0] * count
        self.first = [0.0] * count
        self.fetched = [0] * count
        self.left_alone = [0] * count
        self.sent = [0] * fleet.machines
        self.out_bytes = self.in_bytes = self.read_bytes = self.written = self.unshared = 0
        self.held = 0.0
        self.events: list[tuple[float, int, int, int, tuple[int, ...]]] = []
        self.number = 0

    def run(self, progress: Callable[[int], None]) -> Outcome:
        events, at = self.events, self.at
        act = (self._decide, self._finish, self._leave, self._stored)
        following, count = 0, len(at)
        while events or following < count:
            if following < count and (not events or at[following] <= events[0][0]):
                machine = self.machines[self.machine_of[following]]
                if machine.places:
                    machine.places -= 1
                    self._start(following, at[following])
                else:
                    machine.line.append(following)
                following += 1
                if following % _STRIDE == 0:
                    progress(following)
                continue
            now, _, kind, request, more = heapq.heappop(events)
            act[kind](request, now, more)
        progress(count)
        return self._outcome()

    def _later(self, at: float, kind: int, request: int, more: tuple[int, ...] = ()) -> None:
        self.number += 1
        heapq.heappush(self.events, (at, self.number, kind, request, more))

    def _start(self, request: int, now: float) -> None:
        """A place is free: what the machine has is known; if that is not all, L4 is asked, if it is worth asking."""
        self.started[request] = now
        base = self.base[request]
        here = self.l1[request] + self.l2[request]
        if (
            self.shared is not None
            and here < self.blocks[base]
            and self.machines[self.machine_of[request]].learnt.asks()
        ):
            tokens = (self.blocks[base] - here) * self.block_tokens
            self._later(now + self.network.look_up(tokens), _DECIDE, request)
        else:
            self._compute(request, now, here, 0.0)

    def _local_seconds(self, request: int) -> float:
        seconds = 0.0
        for blocks, read in (
            (self.l1[request], self.costs.l1),
            (self.l2[request], self.costs.l2),
        ):
            if blocks:
                seconds += read.latency + blocks * self.block_bytes / read.bandwidth
        return seconds

    def _path(self, request: int) -> tuple[list[int], int]:
        """A request's stretches, and what is added to the number of those that are its replica's own."""
        base = self.base[request]
        begin = self.ends[base - 1] if base else 0
        return self.stretches[begin : self.ends[base]], (self.replica[request] + 1) * len(
            self.lengths
        )

    def _decide(self, request: int, now: float, _more: tuple[int, ...]) -> None:
        """L4 has answered: which blocks it has, from the first on that the machine lacks."""
        here = self.l1[request] + self.l2[request]
        path, own = self._path(request)
        found: list[int] = []
        reached = 0
        for stretch in path:
            length = self.lengths[stretch]
            if reached + length > here:
                key = stretch if self.common[stretch] else stretch + own
                until = reached + self.memory.find(key)
                if until <= max(here, reached):
                    break
                found.append(until)
                if until < reached + length:
                    break
            reached += length
        if not found:
            self._compute(request, now, here, 0.0)
            return
        machine = self.machines[self.machine_of[request]]
        local = self._local_seconds(request)
        cuts = [Cut(0, 0.0, self._total(request, here, local))]
        for until in found:
            read = self._ideal(until - here) * machine.learnt.slower
            cuts.append(Cut(until - here, read, self._total(request, until, local + read)))
        chosen = machine.learnt.choose(cuts)
        self.left_alone[request] = found[-1] - here - chosen.blocks
        seconds = 0.0
        if chosen.blocks:
            size = chosen.blocks * self.block_bytes
            runs = -(-size // RUN_BYTES)
            arrived = transfer(self.out, machine.down, now + self.asking, size, self.rate * runs)
            seconds = arrived - now
            machine.learnt.read(self._ideal(chosen.blocks), chosen.restore, seconds)
            self.fetched[request] = chosen.blocks
            if self.begin <= now <= self.end:
                self.sent[self.machine_of[request]] += size
                self.out_bytes += size
            if self.at[request] >= self.begin:
                self.read_bytes += size
        self._compute(request, now, here + chosen.blocks, seconds)

    def _ideal(self, blocks: int) -> float:
        """Seconds to read so many blocks if nobody else reads."""
        size = blocks * self.block_bytes
        runs = -(-size // RUN_BYTES)
        return self.asking + size / min(self.ideal_rate, self.rate * runs)

    def _restored(self, request: int, blocks: int) -> int:
        """Tokens of so many blocks; the last of a prompt is always computed."""
        return min(blocks * self.block_tokens, max(0, self.tokens[self.base[request]] - 1))

    def _total(self, request: int, blocks: int, restore: float) -> float:
        """Seconds of a restore and of the forward behind it, as far as they do not overlap."""
        restored = self._restored(request, blocks)
        forward = self.prefill(self.tokens[self.base[request]] - restored, restored)
        return restore + forward - self.costs.overlap * min(restore, forward)

    def _compute(self, request: int, now: float, blocks: int, fetching: float) -> None:
        """All that there is to restore is known: the rest is computed."""
        first = now + self._total(request, blocks, self._local_seconds(request) + fetching)
        self.first[request] = first
        done = first + self.costs.decode * self.output[self.base[request]]
        self.held += max(0.0, min(done, self.end) - max(self.started[request], self.begin))
        if self.shared is not None and blocks < self.blocks[self.base[request]]:
            self._later(first, _FINISH, request, (blocks,))
        self._later(done, _LEAVE, request)

    def _leave(self, request: int, now: float, _more: tuple[int, ...]) -> None:
        """The place is the next one's."""
        machine = self.machines[self.machine_of[request]]
        if machine.line:
            self._start(machine.line.popleft(), now)
        else:
            machine.places += 1

    def _finish(self, request: int, now: float, more: tuple[int, ...]) -> None:
        """What was computed is written, as far as the servers do not have it and the queue takes it."""
        if self.shared is None:
            return
        machine = self.machines[self.machine_of[request]]
        path, own = self._path(request)
        room = self.shared.write_queue - machine.unwritten
        reached, size, unshared = 0, 0, 0
        stored: list[int] = []
        for stretch in path:
            length = self.lengths[stretch]
            reached += length
            if reached <= more[0]:
                continue
            key = stretch if self.common[stretch] else stretch + own
            there = self.memory.peek(key)
            lacking = length - there
            taken = lacking
            if lacking * self.block_bytes > room - size:
                taken = max(0, int((room - size) // self.block_bytes))
            if taken:
                size += taken * self.block_bytes
                stored += (key, there + taken)
            unshared += (lacking - taken) * self.block_bytes
            if taken < lacking:
                # What comes behind a gap is of no use.
                unshared += (self.blocks[self.base[request]] - reached) * self.block_bytes
                break
        counts = self.at[request] >= self.begin
        if counts:
            self.unshared += unshared
            self.written += size
        if stored:
            if self.begin <= now <= self.end:
                self.in_bytes += size
            runs = -(-size // RUN_BYTES)
            there_at = transfer(machine.up, self.into, now, size, self.rate * runs)
            machine.unwritten += size
            self._later(there_at, _STORED, request, (size, *stored))

    def _stored(self, request: int, _now: float, more: tuple[int, ...]) -> None:
        self.machines[self.machine_of[request]].unwritten -= more[0]
        for at in range(1, len(more), 2):
            self.memory.store(more[at], more[at + 1])

    def _outcome(self) -> Outcome:
        arrived = np.array(self.at)
        counted = arrived >= self.begin
        base = np.array(self.base)[counted]
        fetched = np.array(self.fetched)[counted]
        l1, l2 = np.array(self.l1)[counted], np.array(self.l2)[counted]
        tokens = np.array(self.tokens)[base]
        size = self.block_tokens
        restored = np.minimum((l1 + l2 + fetched) * size, np.maximum(tokens - 1, 0))
        seconds = self.end - self.begin
        places = len(self.machines) * self.costs.concurrency
        over = max(seconds, 1e-9)
        return Outcome(
            requests=len(base),
            blocks=int(np.array(self.blocks)[base].sum()),
            tokens=int(tokens.sum()),
            hits=(int(l1.sum()), int(l2.sum()), int(fetched.sum())),
            left_alone=int(np.array(self.left_alone)[counted].sum()),
            computed_tokens=int((tokens - restored).sum()),
            first_token=(np.array(self.first) - arrived)[counted],
            queued=(np.array(self.started) - arrived)[counted],
            seconds=seconds,
            read_bytes=self.read_bytes,
            written_bytes=self.written,
            unshared_bytes=self.unshared,
            server_out=self.out_bytes / self.out.rate / over,
            server_in=self.in_bytes / self.into.rate / over,
            machine_in=max(self.sent) / self.network.machine_bytes / over,
            busy=self.held / places / over,
            evicted_blocks=self.memory.evicted,
            refused_blocks=self.memory.refused,
        )
