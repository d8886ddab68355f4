"""Each machine's own tiers: L1 and L2 replayed on the live tree, policies and memory tier.

What a machine holds does not hang on L4: a prompt is in L1 after its request, whether its blocks were fetched or
computed. So the machines are replayed before any time is simulated, one after the other, on `kvlab.sim.prefix` and
`kvlab.sim.tiers`.
"""

from __future__ import annotations

from array import array
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from kvlab import _core
from kvlab.sim import prefix, tiers
from kvlab.sim.experiments.parallel import run_all
from kvlab.sim.formats import TraceInfo
from kvlab.sim.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from kvlab.sim.fleet.load import Load

    Integers = NDArray[np.int64]

__all__ = ["local_hits"]

_FREE = tiers.Read(0.0, 1e300)


def local_hits(
    load: Load,
    machine_of: Integers,
    *,
    l1_blocks: int | None,
    l2_blocks: int | None,
    policy: str,
    token_bytes: int,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> tuple[Integers, Integers]:
    """Blocks of each request that its machine finds in L1, and in L2, each `[requests]`.

    Args:
        load: The requests.
        machine_of: The machine of each, `[requests]`.
        l1_blocks: Of L1; None for all.
        l2_blocks: Of L2; None for all, 0 if there is none.
        policy: Of both.
        token_bytes: KV bytes of a token, which say how runs are cut.
        workers: Threads.
        progress: Called with the machines done.

    Raises:
        ConfigError: an unknown policy.
        InvalidArgumentError: a capacity that cannot be.
    """

    def _tiers(places: int) -> tiers.Tiers:
        # Reads that take no time and a second a token: when the first token comes is how many were computed.
        costs = tiers.Costs(
            (0.0, 1.0, 0.0), 0.0, token_bytes, _FREE, _FREE, _FREE, 0.0, concurrency=places
        )
        return tiers.Tiers(l1_blocks, l2_blocks, 0, policy=policy, restore="always", costs=costs)

    blocks = load.recorded.blocks()[load.base]
    order = np.argsort(machine_of, kind="stable")
    bounds = np.flatnonzero(np.diff(machine_of[order])) + 1
    groups = np.split(order, bounds)
    cells = [partial(_replay, load, group, blocks[group], _tiers(len(group))) for group in groups]
    found = run_all(cells, workers=workers, progress=progress)
    l1, l2 = np.zeros(len(load), np.int64), np.zeros(len(load), np.int64)
    for group, (first, second) in zip(groups, found, strict=True):
        l1[group], l2[group] = first, second
    return l1, l2


def _replay(
    load: Load, group: Integers, blocks: Integers, wanted: tiers.Tiers
) -> tuple[Integers, Integers]:
    trace = _trace(load, group, blocks)
    counted = prefix.run(trace, policy=str(wanted.policy), capacity_blocks=wanted.l1_blocks)
    in_l1 = np.frombuffer(counted.hits_by_request, np.uint32).astype(np.int64)
    if wanted.l2_blocks == 0:
        return in_l1, np.zeros_like(in_l1)
    computed = np.rint(tiers.run(trace, wanted).first_token).astype(np.int64)
    size = load.recorded.block_tokens
    return in_l1, (blocks * size + 1 - computed) // size - in_l1


def _trace(load: Load, group: Integers, blocks: Integers) -> Trace:
    """One machine's requests. Each has a token more than its blocks, so that its last block is whole."""
    recorded = load.recorded
    begins = np.concatenate(([0], recorded.stretch_ends[:-1]))
    base = load.base[group]
    counts = recorded.stretch_ends[base] - begins[base]
    ends = np.cumsum(counts)
    at = np.arange(int(counts.sum())) + np.repeat(begins[base] - (ends - counts), counts)
    stretches = recorded.stretches[at]
    own = np.where(recorded.common[stretches], 0, np.repeat(load.replica[group] + 1, counts))
    runs = np.empty((len(stretches), 2), np.uint64)
    runs[:, 0] = recorded.starts[stretches] + own * recorded.unique_blocks
    runs[:, 1] = recorded.lengths[stretches]
    tokens = blocks * recorded.block_tokens + 1
    none = array("I", bytes(4 * len(group)))
    builder = _core.SimTraceBuilder()
    builder.push(
        array("d", (load.at[group] * 1000.0).tolist()),
        array("I", (2 * counts).tolist()),
        array("Q", runs.tobytes()),
        array("I", tokens.tolist()),
        none,
        none,
        none,
        runs=True,
    )
    info = TraceInfo(name=recorded.name, block_tokens=recorded.block_tokens)
    return Trace(info, builder.finish(recorded.block_tokens))
