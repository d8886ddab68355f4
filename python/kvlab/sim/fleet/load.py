"""A trace as stretches of blocks, and as many copies of it as a fleet needs.

A *stretch* is blocks that follow one another in every request that has them: the prefix tree with its chains drawn
together. Requests then have a few stretches instead of hundreds of blocks, and all of each.

More machines than one trace loads get *replicas* of it. Blocks that several sessions of the trace have in common
(system prompts, tools, documents) are the same in all replicas; the others are each replica's own. So what is shared
stays as common as it was recorded, however many users there are, and no two users send the same question: both are
assumptions.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvlab.errors import InvalidArgumentError
from kvlab.sim.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from kvlab.sim.fleet.machines import Machine
    from kvlab.sim.formats import TraceInfo
    from kvlab.sim.request import Request

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

__all__ = ["Load", "Recorded", "record"]

_HUB = 8
"""A block that at least so many different ones follow is what many conversations begin with, not part of one."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace as it was recorded, in columns.

    Attributes:
        name: For tables.
        block_tokens: Tokens of a block.
        at: Seconds, ascending, `[requests]`.
        tokens: Of the prompts, `[requests]`.
        output: Tokens of the answers, `[requests]`.
        session: Number of the conversation, `[requests]`.
        stretch_ends: Where the stretches of each request end in `stretches`, `[requests]`.
        stretches: Stretches of all requests, one request after the other.
        starts: First block of each stretch, by its dense number, `[stretches]`.
        lengths: Blocks of each stretch, `[stretches]`.
        common: Whether several sessions have it, `[stretches]`.
        notes: What a reader should know.
    """

    name: str
    block_tokens: int
    at: Floats
    tokens: Integers
    output: Integers
    session: Integers
    stretch_ends: Integers
    stretches: Integers
    starts: Integers
    lengths: Integers
    common: NDArray[np.bool_]
    notes: tuple[str, ...]

    @property
    def span(self) -> float:
        """Seconds from the first to the last arrival."""
        return float(self.at[-1] - self.at[0])

    @property
    def unique_blocks(self) -> int:
        """Distinct blocks."""
        return int(self.lengths.sum())

    def blocks(self) -> Integers:
        """Blocks of each request, `[requests]`."""
        sums = np.concatenate(([0], np.cumsum(self.lengths[self.stretches])))
        begins = np.concatenate(([0], self.stretch_ends[:-1]))
        counted: Integers = sums[self.stretch_ends] - sums[begins]
        return counted

    def work(self, machine: Machine) -> Floats:
        """Seconds that each request takes a machine that finds nothing, `[requests]`."""
        once, token, attended = machine.costs.prefill
        tokens = self.tokens.astype(np.float64)
        seconds: Floats = once + token * tokens + attended * tokens * tokens / 2
        return seconds + machine.costs.decode * self.output


def record(
    requests: Iterable[Request],
    info: TraceInfo,
    *,
    merge: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Recorded:
    """Collects a trace.

    Args:
        requests: In the order of their arrival.
        info: What their ids mean; read at the end.
        merge: So many blocks become one, and what is left of a prompt belongs to none: fewer events for long
            prompts, and hits rounded down to the larger block.
        progress: Called with the number of requests taken so far.

    Raises:
        InvalidArgumentError: no request, no blocks, blocks of several sizes, or a `merge` below 1.
    """
    if merge < 1:
        raise InvalidArgumentError(f"merge = {merge}: at least 1")
    at, output = array("d"), array("q")
    names: dict[str, int] = {}
    session = array("q")

    def noted() -> Iterator[Request]:
        for request in requests:
            at.append(request.at_ms / 1000)
            output.append(request.output_tokens)
            session.append(names.setdefault(request.session, len(names)) if request.session else -1)
            yield request

    trace = Trace.from_requests(noted(), info, progress=progress)
    if not len(trace):
        raise InvalidArgumentError(f"{info.name} has no request")
    if not info.has_blocks or not info.block_tokens:
        raise InvalidArgumentError(
            f"{info.name} has no blocks of one size: a fleet takes traces whose blocks have the same number of tokens"
        )
    nodes = trace.core.prefix_ids()
    tokens = np.fromiter((nodes.tokens_of(n) for n in range(len(trace))), np.int64, len(trace))
    paths = [
        np.array(nodes.blocks(number)[merge - 1 :: merge], np.int64) for number in range(len(trace))
    ]
    notes = list(info.notes)
    if merge > 1:
        notes.append(
            f"{merge} blocks of {info.block_tokens} tokens count as one: hits are rounded down"
        )
    stretches = _stretches(paths)
    known = np.array(session, np.int64)
    if (known < 0).all():
        known = _families(paths, stretches)
        notes.append(
            f"sessions are not recorded: {len(np.unique(known)):,} were taken from the prefix tree, below every block "
            f"that {_HUB} or more different ones follow"
        )
    elif (known < 0).any():
        known[known < 0] = known.max() + 1 + np.arange(int((known < 0).sum()))
    return Recorded(
        info.name,
        info.block_tokens * merge,
        np.array(at) - at[0],
        tokens,
        np.array(output, np.int64),
        known,
        stretches.ends,
        stretches.numbers,
        stretches.starts,
        stretches.lengths,
        _common(stretches, known),
        tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Stretches:
    ends: Integers
    numbers: Integers
    starts: Integers
    lengths: Integers


def _tree(paths: list[Integers]) -> tuple[Integers, Integers, Integers, Integers, Integers]:
    """All blocks one after the other, numbered densely; where paths end; each block's parent (-1); its children."""
    ends = np.cumsum([len(path) for path in paths])
    flat = np.concatenate(paths) if paths else np.zeros(0, np.int64)
    _, first, dense = np.unique(flat, return_index=True, return_inverse=True)
    # By first appearance: what is new in a request is then consecutive.
    order = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    flat = order[dense]
    before = np.concatenate(([-1], flat[:-1])) if len(flat) else flat
    begins = np.concatenate(([0], ends[:-1]))
    before[begins[begins < len(flat)]] = -1
    parent = np.full(len(first), -1, np.int64)
    parent[flat] = before
    children = np.bincount(parent[parent >= 0], minlength=len(first))
    return flat, ends, parent, children, begins


def _stretches(paths: list[Integers]) -> _Stretches:
    flat, ends, parent, children, begins = _tree(paths)
    last = np.zeros(len(parent), np.bool_)
    last[flat[ends[ends > begins] - 1]] = True
    last |= children != 1
    begin = (parent < 0) | last[parent]
    number = np.cumsum(begin) - 1
    starts = np.flatnonzero(begin)
    heads = begin[flat]
    counts = np.concatenate(([0], np.cumsum(heads)))
    lengths = np.diff(np.concatenate((starts, [len(parent)])))
    return _Stretches(counts[ends], number[flat[heads]], starts, lengths)


def _families(paths: list[Integers], stretches: _Stretches) -> Integers:
    """A session for each request: the first stretch behind the last block that many different ones follow."""
    _, _, parent, children, _ = _tree(paths)
    hubs = children >= _HUB
    # A stretch ends at each block with several children, so a hub is the last of its stretch.
    after_hub = np.where(stretches.starts > 0, hubs[parent[stretches.starts]], False)
    after_hub[parent[stretches.starts] < 0] = True
    found = np.empty(len(paths), np.int64)
    begin = 0
    for request, end in enumerate(stretches.ends):
        own = stretches.numbers[begin:end]
        places = np.flatnonzero(after_hub[own])
        found[request] = own[places[-1]] if len(places) else -1 - request
        begin = end
    _, numbers = np.unique(found, return_inverse=True)
    return numbers.astype(np.int64)


def _common(stretches: _Stretches, session: Integers) -> NDArray[np.bool_]:
    """Which stretches several sessions have."""
    counts = np.diff(np.concatenate(([0], stretches.ends)))
    of_use = np.repeat(session, counts)
    least = np.full(len(stretches.starts), np.iinfo(np.int64).max)
    most = np.full(len(stretches.starts), -1)
    np.minimum.at(least, stretches.numbers, of_use)
    np.maximum.at(most, stretches.numbers, of_use)
    common: NDArray[np.bool_] = least != most
    return common


@dataclass(frozen=True, slots=True)
class Load:
    """Requests for a fleet, in the order of their arrival.

    Attributes:
        recorded: Where they are from.
        at: Seconds, ascending, `[requests]`.
        base: Which request of the trace each is, `[requests]`.
        replica: Of which replica, `[requests]`.
        conversation: A number for each session of each replica, `[requests]`.
        replicas: How many there are; the last may be a part of one.
        window: Seconds of the trace that are taken.
        notes: What a reader should know.
    """

    recorded: Recorded
    at: Floats
    base: Integers
    replica: Integers
    conversation: Integers
    replicas: float
    window: float
    notes: tuple[str, ...]

    @classmethod
    def as_recorded(cls, recorded: Recorded) -> Load:
        """The trace once, as it is."""
        count = len(recorded.at)
        none = np.zeros(count, np.int64)
        session = recorded.session
        return cls(
            recorded,
            recorded.at,
            np.arange(count),
            none,
            session,
            1.0,
            recorded.span,
            recorded.notes,
        )

    @classmethod
    def of(
        cls,
        recorded: Recorded,
        machine: Machine,
        machines: int,
        *,
        load: float,
        window: float | None = None,
        spread: float | None = None,
        most: int = 1_000_000,
        seed: int = 0,
    ) -> Load:
        """As many replicas as give every machine its load.

        Each session of each replica is drawn to begin up to `spread` later than recorded, so that replicas do not come
        in step. Of the last replica a part of the sessions is taken.

        Args:
            recorded: The trace.
            machine: What computes.
            machines: How many of them.
            load: Work that comes within the window, as a share of what the machines can do if nothing is ever
                found; above 1 a fleet without any cache falls behind.
            window: Seconds of the trace to take, from its beginning; None for all.
            spread: Seconds; None for a tenth of the window.
            most: Requests; a window with more is cut, and the notes say so.
            seed: What the draws come from.

        Raises:
            InvalidArgumentError: a load or window that is not above 0, or no request within the window.
        """
        length = recorded.span if window is None else min(window, recorded.span)
        if not load > 0 or not length > 0 or machines < 1:
            raise InvalidArgumentError(
                f"load = {load}, window = {length} s, machines = {machines}: more than 0 of each"
            )
        wanted = load * machines * machine.costs.concurrency
        work = recorded.work(machine)
        notes = list(recorded.notes)
        replicas = _replicas(recorded, work, length, wanted)
        expected = replicas * float((recorded.at < length).sum())
        if expected > most:
            length *= most / expected
            replicas = _replicas(recorded, work, length, wanted)
            notes.append(
                f"the window was cut to {length:,.0f} s: more than {most:,} requests would have come"
            )
        draw = np.random.default_rng(seed)
        late = length / 10 if spread is None else spread
        sessions = int(recorded.session.max()) + 1
        whole = math.floor(replicas)
        candidates = np.flatnonzero(recorded.at < length)
        parts: list[tuple[Any, Any, Any]] = []
        for replica in range(whole + 1):
            shift = draw.random(sessions) * late
            taken = draw.random(sessions) < (1.0 if replica < whole else replicas - whole)
            at = recorded.at[candidates] + shift[recorded.session[candidates]]
            kept = (at < length) & taken[recorded.session[candidates]]
            parts.append((at[kept], candidates[kept], np.full(int(kept.sum()), replica, np.int64)))
        at, base, replica_of = (np.concatenate(column) for column in zip(*parts, strict=True))
        if not len(at):
            raise InvalidArgumentError(
                f"no request comes within {length:g} s at load {load:g}: give a longer window or more machines"
            )
        order = np.argsort(at, kind="stable")
        at, base, replica_of = at[order], base[order], replica_of[order]
        conversation = recorded.session[base] + sessions * replica_of
        return cls(recorded, at, base, replica_of, conversation, replicas, length, tuple(notes))

    def __len__(self) -> int:
        return len(self.at)


def _replicas(recorded: Recorded, work: Floats, length: float, wanted: float) -> float:
    """How often a trace's first seconds have to come for so much work a second."""
    return wanted * length / float(work[recorded.at < length].sum())
