"""Advice: which policy and which tier sizes a trace wants within a budget, and how sure that is.

Policies are chosen on the first half of the trace and judged on the second, so that the one that was
lucky is found out. The judge is a bootstrap over sessions (over runs of 50 requests where a trace has no
sessions): requests of a session stand or fall together. A policy that is not surely ahead of `lru` is not
advised. All of it is simulated; seconds are predicted by a cost model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab import _core
from kvlab.errors import InvalidArgumentError
from kvlab.sim import tiers
from kvlab.sim.experiments.hierarchy import (
    block_bytes,
    cold_seconds,
    service_seconds,
    tier_columns,
)
from kvlab.sim.experiments.parallel import run_all
from kvlab.sim.experiments.requests import oracle_hits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvlab.sim.cost_file import CostModel
    from kvlab.sim.experiments.table import Row
    from kvlab.sim.trace import Trace

__all__ = ["Advice", "Budget", "Confidence", "advise"]

L1_SHARES = (0.25, 0.5, 0.75, 1.0)
L3_SHARES = (0.125, 0.25, 0.5, 1.0)
NEAR = 0.01
"""A smaller tier is taken if it gives up at most this part of what is saved."""
WINDOWS = 8
RUN = 50
FEWEST_UNITS = 10
"""A bootstrap over fewer of them says nothing."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What there is to share out, in bytes.

    Attributes:
        memory: Of L1 and L2.
        disk: Of L3; 0 for none.
    """

    memory: int
    disk: int


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure it is that the policy beats the one that it is held against.

    Attributes:
        level: "high" (the interval lies above 0, and it is not behind in all windows but one), "medium"
            (the interval lies above 0) or "low". Never above "low" with fewer than 10 units.
        against: The other policy, at the same sizes.
        gain: Predicted seconds saved over the other's total, in the second half.
        interval: The middle 95 % of that gain in the bootstrap.
        windows_ahead: In how many windows of time it is not behind.
        windows: Windows in all.
        units: What the bootstrap draws, and how many of them there are.
    """

    level: str
    against: str
    gain: float
    interval: tuple[float, float]
    windows_ahead: int
    windows: int
    units: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "level": self.level,
            "against": self.against,
            "gain_percent": 100 * self.gain,
            "interval_percent": [100 * end for end in self.interval],
            "windows_ahead": self.windows_ahead,
            "windows": self.windows,
            "units": self.units,
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """What is advised, and what it was compared with.

    Attributes:
        policy: The eviction policy of all tiers.
        sizes: Bytes of l1, l2 and l3.
        block_bytes: Bytes of a block.
        expected: What it is predicted to bring.
        confidence: How sure that is.
        reason: Why, in a sentence or two.
        rows: Every hierarchy that was tried.
    """

    policy: str
    sizes: dict[str, int]
    block_bytes: int
    expected: dict[str, float]
    confidence: Confidence
    reason: list[str]
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """All but the rows, ready for JSON."""
        return {
            "policy": self.policy,
            **{f"{tier}_bytes": size for tier, size in self.sizes.items()},
            "block_bytes": self.block_bytes,
            "expected": self.expected,
            "confidence": self.confidence.as_dict(),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class _Tried:
    policy: str
    blocks: tuple[int, int, int]
    replay: tiers.TiersReplay
    service: NDArray[np.float64]
    """Predicted seconds of each request, without its wait in line."""


class _Lab:
    """Replays hierarchies of one trace, each once."""

    def __init__(
        self, trace: Trace, model: CostModel, workers: int | None, progress: Callable[[int], None]
    ) -> None:
        self.trace = trace
        self.model = model
        self.cold = float(cold_seconds(trace, model.costs).sum())
        self.tried: dict[tuple[str, tuple[int, int, int]], _Tried] = {}
        self._best: dict[int, int] = {}
        self._workers = workers
        self._progress = progress

    def best(self, blocks: int) -> int:
        """Hits of the oracle with so many blocks in one tier."""
        if blocks not in self._best:
            self._best[blocks] = oracle_hits(self.trace, blocks, "prefix")
        return self._best[blocks]

    def replay(self, wanted: Sequence[tuple[str, tuple[int, int, int]]]) -> list[_Tried]:
        new = [key for key in dict.fromkeys(wanted) if key not in self.tried]
        before = len(self.tried)
        found = run_all(
            [partial(self._one, *key) for key in new],
            workers=self._workers,
            progress=lambda done: self._progress(before + done),
        )
        self.tried |= dict(zip(new, found, strict=True))
        return [self.tried[key] for key in wanted]

    def _one(self, policy: str, blocks: tuple[int, int, int]) -> _Tried:
        l1, l2, l3 = blocks
        hierarchy = tiers.Tiers(l1, l2, l3, policy=policy, costs=self.model.costs)
        replay = tiers.run(self.trace, hierarchy)
        return _Tried(policy, blocks, replay, service_seconds(replay))


def replays_needed(policies: Sequence[str], *, disk: bool) -> int:
    """How many replays `advise` makes at most, for a bar."""
    return len({*policies, "lru"}) + 2 * len(L1_SHARES) + (2 * len(L3_SHARES) if disk else 0)


def advise(
    trace: Trace,
    budget: Budget,
    model: CostModel,
    *,
    policies: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> Advice:
    """Tries policies, then sizes, and says which to take.

    Args:
        trace: Captured or imported.
        budget: What there is.
        model: What things cost; its `token_bytes` says how many tokens fit.
        policies: Of `kvlab.sim.prefix.policies()`; `lru` is always among them.
        resamples: Of the bootstrap, at least 100.
        seed: Of the bootstrap.
        workers: Threads.
        progress: Called with replays done, of at most `replays_needed`.

    Raises:
        InvalidArgumentError: a budget of less than one block, too few resamples, or a trace without blocks.
        ConfigError: an unknown policy.
    """
    if resamples < 100:
        raise InvalidArgumentError(f"resamples = {resamples}: use at least 100")
    size = block_bytes(trace, model.costs)
    memory, disk = budget.memory // size, budget.disk // size
    if memory < 1:
        raise InvalidArgumentError(
            f"a memory budget of {budget.memory} bytes holds no block of {size} bytes: give more"
        )
    lab = _Lab(trace, model, workers, progress)
    names = list(dict.fromkeys((*policies, "lru")))
    half = _split(memory, 0.5, disk)
    first = lab.replay([(name, half) for name in names])
    middle = len(trace) // 2
    by_first_half = sorted(first, key=lambda each: float(each.service[:middle].sum()))
    best = by_first_half[0]
    lru = first[names.index("lru")]
    rival = lru if best.policy != "lru" else next((each for each in by_first_half[1:]), lru)
    confidence = _judge(trace, best, rival, resamples, seed)
    reason = []
    chosen = best.policy
    if chosen != "lru" and confidence.level == "low":
        low, high = (100 * end for end in confidence.interval)
        reason.append(
            f"{chosen} led in the first half, but is not surely ahead of lru in the second "
            f"({low:+.2f} to {high:+.2f} %): lru is advised."
        )
        chosen = "lru"
    elif chosen == "lru":
        reason.append(
            f"lru was ahead of every other policy in the first half; next was {rival.policy}."
        )
    else:
        reason.append(f"{chosen} was ahead in the first half, and so it was in the second.")
    pick = _sizes(lab, chosen, memory, disk, reason)
    same = lab.replay([("lru", pick.blocks)])[0]
    progress(replays_needed(policies, disk=disk > 0))
    sizes = dict(zip(("l1", "l2", "l3"), (blocks * size for blocks in pick.blocks), strict=True))
    return Advice(
        policy=chosen,
        sizes=sizes,
        block_bytes=size,
        expected=_expected(lab, pick, same),
        confidence=confidence,
        reason=reason,
        rows=[_row(lab, each) for each in lab.tried.values()],
    )


def _split(memory: int, share: float, disk: int) -> tuple[int, int, int]:
    l1 = min(memory, max(1, int(memory * share)))
    return l1, memory - l1, disk


def _sizes(lab: _Lab, policy: str, memory: int, disk: int, reason: list[str]) -> _Tried:
    """The smallest L1, then the smallest L3, that save nearly as much as the best."""
    cold = lab.cold
    pick = _smallest(
        lab.replay([(policy, _split(memory, share, disk)) for share in L1_SHARES]), cold, 0
    )
    l1, l2, _ = pick.blocks
    if disk:
        shares = [max(1, int(disk * share)) for share in L3_SHARES]
        pick = _smallest(lab.replay([(policy, (l1, l2, size)) for size in shares]), cold, 2)
        if pick.blocks[2] < disk:
            reason.append(
                f"An L3 of {pick.blocks[2]:,} blocks saves within {100 * NEAR:.0f} % of what one of {disk:,} does."
            )
    return pick


def _smallest(tried: Sequence[_Tried], cold: float, tier: int) -> _Tried:
    saved = [cold - float(each.service.sum()) for each in tried]
    enough = max(saved) - NEAR * abs(max(saved))
    good = [each for each, saving in zip(tried, saved, strict=True) if saving >= enough]
    return min(good, key=lambda each: each.blocks[tier])


def _judge(trace: Trace, best: _Tried, rival: _Tried, resamples: int, seed: int) -> Confidence:
    middle = len(trace) // 2
    gains = (rival.service - best.service)[middle:]
    total = float(rival.service[middle:].sum())
    sessions = np.frombuffer(_core.sim_columns(trace.core)[1], np.uint32)[middle:]
    if sessions.any():
        # A request without a session is one of its own.
        own = int(sessions.max()) + 1 + np.arange(len(sessions))
        _, unit = np.unique(np.where(sessions > 0, sessions, own), return_inverse=True)
        units = "sessions"
    else:
        unit, units = np.arange(len(gains)) // RUN, f"runs of {RUN} requests"
    sums = np.bincount(unit, weights=gains)
    weights = np.bincount(unit, weights=rival.service[middle:])
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    bases = weights[drawn].sum(axis=1)
    relative = np.divide(sums[drawn].sum(axis=1), bases, out=np.zeros(resamples), where=bases > 0)
    low, high = (float(end) for end in np.percentile(relative, (2.5, 97.5)))
    windows = [window for window in np.array_split(gains, WINDOWS) if len(window)]
    ahead = sum(float(window.sum()) >= 0 for window in windows)
    level = "low"
    if low > 0 and len(sums) >= FEWEST_UNITS:
        level = "high" if ahead >= len(windows) - 1 else "medium"
    return Confidence(
        level=level,
        against=rival.policy,
        gain=float(gains.sum()) / total if total else 0.0,
        interval=(low, high),
        windows_ahead=ahead,
        windows=len(windows),
        units=f"{len(sums)} {units}",
    )


def _expected(lab: _Lab, pick: _Tried, lru: _Tried) -> dict[str, float]:
    cold = lab.cold
    seconds = float(pick.service.sum())
    requests = max(1, len(lab.trace))
    tokens = lab.trace.tokens
    hit_tokens = tokens - pick.replay.recomputed_tokens
    best = lab.best(sum(pick.blocks))
    return {
        "hit_tokens": hit_tokens,
        "token_hit_ratio": hit_tokens / tokens if tokens else 0.0,
        "percent_of_oracle": 100.0 * (sum(pick.replay.hits) / best) if best else 100.0,
        "hit_tokens_more_than_lru": lru.replay.recomputed_tokens - pick.replay.recomputed_tokens,
        "predicted_seconds_saved": cold - seconds,
        "predicted_percent_saved": 100 * (cold - seconds) / cold if cold else 0.0,
        "predicted_ms_a_request": 1000 * seconds / requests,
        "predicted_ms_a_request_cold": 1000 * cold / requests,
        "predicted_percent_saved_against_lru": 100
        * (float(lru.service.sum()) - seconds)
        / max(float(lru.service.sum()), 1e-12),
    }


def _row(lab: _Lab, tried: _Tried) -> Row:
    l1, l2, l3 = tried.blocks
    cold, seconds = lab.cold, float(tried.service.sum())
    best = lab.best(sum(tried.blocks))
    return {
        "trace": lab.trace.info.name,
        "policy": tried.policy,
        "l1_blocks": l1,
        "l2_blocks": l2,
        "l3_blocks": l3,
        **tier_columns(lab.trace, tried.replay, tried.blocks, lab.model.costs),
        "percent_of_oracle": 100.0 * (sum(tried.replay.hits) / best) if best else 100.0,
        "predicted_saved_percent": 100 * (cold - seconds) / cold if cold else 0.0,
    }
