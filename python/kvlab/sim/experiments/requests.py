"""Sweeps and miss-ratio curves over traces of requests, in prefix and flat mode."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim import prefix, tiers
from kvlab.sim.experiments.hierarchy import Below, need_blocks, tier_columns
from kvlab.sim.experiments.parallel import run_all
from kvlab.sim.formats import TraceInfo
from kvlab.sim.trace import Trace
from kvlab.sim.workloads import REQUEST_WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvlab.sim.experiments.table import Row
    from kvlab.sim.request import Request

__all__ = [
    "BAD_EXAMPLES",
    "FORESEEING",
    "ORACLES",
    "auto_rate",
    "curves",
    "generate",
    "generated",
    "oracle_hits",
    "row_of",
    "run_tiers",
    "sizes_of",
    "spaced",
    "sweep",
    "wanted",
]

ORACLES = ("belady", "belady_bypass")
"""They know the future; the better of them at a size is what others are compared with."""

FORESEEING = (*ORACLES, "oracle_cost")
"""All that know the future; `oracle_cost` weighs what a block costs, so it need not find most blocks."""

BAD_EXAMPLES = ("lru_root_first", "fifo_root_first")
"""They age a prompt from its root. Like the oracles they run in one tier only."""

_SAMPLE_BLOCKS = 20_000
"""Distinct blocks that a sampled curve keeps at least, if there are so many."""


def generate(name: str, *, seed: int | None = None, **params: Any) -> Trace:
    """What `generated` makes, as a trace."""
    return Trace.from_requests(*generated(name, seed=seed, **params))


def generated(
    name: str, *, seed: int | None = None, **params: Any
) -> tuple[list[Request], TraceInfo]:
    """What a generator makes: requests, and what their blocks are.

    Args:
        name: One of `kvlab.sim.workloads.REQUEST_WORKLOADS`.
        seed: What its choices come from; None for its usual seed.
        params: Of the generator.

    Raises:
        ConfigError: an unknown name or parameter; the message lists the known ones.
        InvalidArgumentError: a parameter that cannot be.
    """
    if name not in REQUEST_WORKLOADS:
        raise ConfigError(f"workload = {name}: use one of: {', '.join(REQUEST_WORKLOADS)}")
    generator = REQUEST_WORKLOADS[name]
    for param, value in params.items():
        if param not in generator.params:
            known = ", ".join(generator.params)
            raise ConfigError(f"{param} = {value}: workload {name} has {known}")
    used = generator.seed if seed is None else seed
    requests = generator.make(seed=used, **params)
    size = int(params.get("block_tokens", generator.params["block_tokens"]))
    return requests, TraceInfo(name=name, block_tokens=size, notes=[f"generated from seed {used}"])


def sizes_of(trace: Trace, texts: Iterable[str]) -> list[int | None]:
    """Capacities in blocks: `1000`, `5%` of the distinct blocks, `inf` for all.

    Raises:
        InvalidArgumentError: a size is none of these, or below one block.
    """
    return list(dict.fromkeys(_size(trace, text.strip()) for text in texts))


def _size(trace: Trace, text: str) -> int | None:
    if text == "inf":
        return None
    if text.endswith("%"):
        try:
            share = float(text[:-1])
        except ValueError:
            share = 0.0
        if 0 < share <= 100:
            return max(1, int(trace.unique_blocks * share / 100))
    elif text.isascii() and text.isdecimal() and int(text) >= 1:
        return int(text)
    raise InvalidArgumentError(
        f"a capacity of {text}: give blocks from 1 on, a share of the distinct blocks such as 5%, or inf"
    )


def oracle_hits(trace: Trace, capacity: int | None, mode: prefix.Mode) -> int:
    """Hits of the best policy that knows the future, at a size."""
    if capacity is None:
        return prefix.run(trace, capacity_blocks=None, mode=mode).hits
    return max(
        prefix.run(trace, policy=name, capacity_blocks=capacity, mode=mode).hits for name in ORACLES
    )


def row_of(trace: Trace, replay: prefix.Replay) -> Row:
    """A replay as a row, without what depends on the clock."""
    row: Row = {"trace": trace.info.name, **replay.as_dict()}
    del row["seconds"], row["events_per_second"]
    row["misses"] = replay.block_refs - replay.hits
    return row


def _of_oracle(hits: int, best: int) -> Row:
    return {"oracle_hits": best, "percent_of_oracle": 100.0 * (hits / best) if best else 100.0}


def run_tiers(trace: Trace, policy: str, capacity: int | None, below: Below) -> dict[str, Any]:
    """A replay over three tiers with predicted times, ready for JSON.

    Args:
        trace: What to replay.
        policy: Of all tiers.
        capacity: Blocks of L1; None for all.
        below: The other tiers, and what things cost.

    Raises:
        ConfigError: an unknown policy.
        InvalidArgumentError: a capacity or cost that cannot be, or a trace without blocks.
    """
    blocks = (capacity, below.l2, below.l3)
    replay = tiers.run(trace, tiers.Tiers(*blocks, policy=policy, costs=below.model.costs))
    return {"costs": below.model.describe(), "blocks": list(blocks), **replay.as_dict()}


def sweep(
    trace: Trace,
    *,
    policies: Sequence[str],
    capacities: Sequence[int | None],
    mode: prefix.Mode = "prefix",
    below: Below | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Row]:
    """Replays a trace under each policy at each size, beside the oracle.

    With `oracle_cost` among the policies rows have `percent_of_oracle_cost` too. With `below` they have
    what `tier_columns` tells as well; with an L2 or L3 they count what the three tiers do together, and the
    oracles are given the blocks of all tiers in one.

    Args:
        trace: What to replay.
        policies: Of `kvlab.sim.prefix.policies(mode)`; oracles are added where they are missing.
        capacities: In blocks, of L1; None for a cache that holds all.
        mode: What a hit is.
        below: What is below L1 and what times are predicted by, in prefix mode; None for counts only.
        workers: Threads.
        progress: Called with the replays done, of `len(capacities) * len(wanted(policies))`.

    Returns:
        A row a size and policy, sizes first.

    Raises:
        ConfigError: an unknown policy or mode, or one that cannot run below L1.
        InvalidArgumentError: a capacity below 1, or a trace without blocks.
    """
    if below is not None and mode != "prefix":
        raise InvalidArgumentError(
            f"mode = {mode}: times and lower tiers are predicted in prefix mode"
        )
    names = wanted(policies)
    if below is not None and not below.empty:
        for name in policies:
            if name in BAD_EXAMPLES:
                raise ConfigError(f"policy = {name}: has no form for L2 and L3; leave it out")
    cells = [
        partial(_cell, trace, name, capacity, mode, below)
        for capacity in capacities
        for name in names
    ]
    rows = run_all(cells, workers=workers, progress=progress)
    for start in range(0, len(rows), len(names)):
        group = rows[start : start + len(names)]
        best = max(int(str(row["hits"])) for row in group if row["policy"] in ORACLES)
        for row in group:
            row.update(_of_oracle(int(str(row["hits"])), best))
        if "oracle_cost" in names:
            _add_cost(group)
    return rows


def _add_cost(group: Sequence[Row]) -> None:
    """What the cheapest replay that knows the future recomputes, in per cent of what each recomputes."""
    costs = {str(row["policy"]): row.get("recomputed_cost") for row in group}
    least = min(float(str(costs[name])) for name in FORESEEING)
    for row in group:
        cost = row.get("recomputed_cost")
        if isinstance(cost, float):
            row["percent_of_oracle_cost"] = 100.0 * least / cost if cost else 100.0


def _cell(
    trace: Trace,
    policy: str,
    capacity: int | None,
    mode: prefix.Mode,
    below: Below | None,
) -> Row:
    """One replay as a row."""
    timed: Row = {}
    if below is not None and policy not in (*FORESEEING, *BAD_EXAMPLES):
        timed = _in_tiers(trace, policy, capacity, below)
        if not below.empty:
            return timed
    size = capacity if below is None else below.together(capacity)
    counted = row_of(trace, prefix.run(trace, policy=policy, capacity_blocks=size, mode=mode))
    # Counts are the replay's: a server computes the last token of a prompt even if all was found.
    return timed | counted | _sizes(capacity, below)


def _sizes(capacity: int | None, below: Below | None) -> Row:
    lower: Row = {}
    if below is not None and not below.empty:
        lower = {"l2_blocks": below.l2, "l3_blocks": below.l3}
    return {"capacity_blocks": capacity, **lower}


def _in_tiers(trace: Trace, policy: str, capacity: int | None, below: Below) -> Row:
    blocks = (capacity, below.l2, below.l3)
    costs = below.model.costs
    replay = tiers.run(trace, tiers.Tiers(*blocks, policy=policy, costs=costs))
    row: Row = {
        "trace": trace.info.name,
        "mode": "prefix",
        "policy": policy,
        **_sizes(capacity, below),
        "requests": replay.requests,
        "block_refs": replay.block_refs,
        "unique_blocks": trace.unique_blocks,
        "tokens": replay.tokens,
    }
    return row | tier_columns(trace, replay, blocks, costs)


def wanted(policies: Sequence[str]) -> list[str]:
    """The policies with the oracles behind them, each once."""
    return list(dict.fromkeys((*policies, *ORACLES)))


def spaced(blocks: int, points: int) -> list[int]:
    """Sizes from a thousandth of the blocks to all of them, each the same factor above the last."""
    least, most = max(1, blocks // 1000), max(1, blocks)
    steps = [least * (most / least) ** (at / (points - 1)) for at in range(points)]
    return sorted({round(step) for step in steps})


def auto_rate(trace: Trace) -> float:
    """The part of the blocks that a sampled curve replays, if nobody says."""
    return min(1.0, max(0.001, _SAMPLE_BLOCKS / max(1, trace.unique_blocks)))


def curves(
    trace: Trace,
    *,
    policies: Sequence[str],
    capacities: Sequence[int],
    mode: prefix.Mode = "prefix",
    rate: float | None = None,
    seeds: Sequence[int] = (0,),
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Row]:
    """Hit ratios at many sizes: `lru` exactly by stack distances, the rest from samples.

    Where the whole trace is the sample (`rate` = 1) the others are exact, too. A policy's percent of
    the oracle compares the two in the same sample.

    Args:
        trace: What to replay.
        policies: Of `kvlab.sim.prefix.policies(mode)`; oracles are added.
        capacities: In blocks, at least 1.
        mode: What a hit is.
        rate: The part of the blocks in a sample; by default enough for 20,000 of them.
        seeds: Which samples; one row each.
        workers: Threads.
        progress: Called with the curves done.

    Raises:
        ConfigError: an unknown policy or mode.
        InvalidArgumentError: a capacity, rate or number of workers out of range, or a trace without blocks.
    """
    need_blocks(trace)
    part = auto_rate(trace) if rate is None else rate
    draws = [0] if part == 1.0 else list(dict.fromkeys(seeds))
    sampled = wanted(policies)
    cells = [
        partial(
            prefix.sampled_curve, trace, capacities, policy=name, mode=mode, rate=part, seed=seed
        )
        for seed in draws
        for name in sampled
    ]
    found = run_all(cells, workers=workers, progress=progress)
    rows: list[Row] = []
    exact = prefix.lru_curve(trace, capacities, mode=mode) if "lru" in policies else None
    for draw, seed in enumerate(draws):
        ratios = dict(zip(sampled, found[draw * len(sampled) :], strict=False))
        for name in sampled:
            for at, capacity in enumerate(capacities):
                best = max(ratios[oracle][at] for oracle in ORACLES)
                ratio, known = ratios[name][at], part == 1.0
                if name == "lru" and exact is not None:
                    ratio, known = exact[at] / max(1, trace.block_refs), True
                rows.append(
                    {
                        "trace": trace.info.name,
                        "mode": mode,
                        "policy": name,
                        "method": "exact" if known else f"sample of {part:.3g}",
                        "capacity_blocks": capacity,
                        "seed": seed,
                        "hit_ratio": ratio,
                        "percent_of_oracle": 100.0 * (ratios[name][at] / best) if best else 100.0,
                    }
                )
    return rows
