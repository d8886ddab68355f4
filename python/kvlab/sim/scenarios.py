"""What page mode runs on: tiers, schemes, prefetch; and which of them are known by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Self, TypeAlias

from kvlab import _core
from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim.schemes import SchemePlan

__all__ = [
    "SCENARIOS",
    "TIER_PRESETS",
    "Engine",
    "PolicySpec",
    "Scenario",
    "TierSpec",
    "page_policies",
    "scenario",
    "tiers",
]

Engine: TypeAlias = Literal["exact", "compat"]
"""`exact`: a page is in one tier at a time. `compat`: kv-hierarchy-lab's rules, defect included."""

TIER_PRESETS: Mapping[str, str] = MappingProxyType(dict(_core.sim_tier_presets()))
"""What sets of tiers there are by name, with what they are."""


@dataclass(frozen=True, slots=True)
class TierSpec:
    """One simulated tier.

    Attributes:
        name: Its name, unique among the tiers of a scenario.
        capacity_bytes: Bytes of pages that fit.
        read_ms: Milliseconds to begin to read.
        write_ms: Milliseconds to begin to write.
        bytes_per_ms: Bytes that are moved in a millisecond.
        concurrency: How many transfers it takes part in at once; None for any number. Only a
            scenario with `compute_ms` looks at it.
    """

    name: str
    capacity_bytes: int
    read_ms: float
    write_ms: float
    bytes_per_ms: float
    concurrency: int | None = None


def tiers(name: str = "default", *, divisor: int = 1) -> tuple[TierSpec, ...]:
    """The tiers of a preset, the fastest first, at a fraction of their capacity.

    Raises:
        ConfigError: the name is not known; the message lists what is.
        InvalidArgumentError: the divisor is below 1.
    """
    if divisor < 1:
        message = f"divisor = {divisor}; use at least 1"
        raise InvalidArgumentError(message)
    preset = [TierSpec(*fields) for fields in _core.sim_tier_preset(name)]
    return tuple(replace(t, capacity_bytes=max(1, t.capacity_bytes // divisor)) for t in preset)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a workload is replayed on.

    Attributes:
        name: What it is called in results.
        tiers: The tiers, the fastest first; at least two.
        scheme: How pages are stored: a scheme's name, or a plan for layers and head groups.
        prefetch: Whether pages are fetched ahead.
        max_prefetches: How many of a policy's proposals are followed at each access.
        compute_ms: Milliseconds of compute behind each access, that transfers overlap with; None
            for transfers one after the other, without compute.
        engine: Which rules a move follows.
        notes: What it is for.
    """

    name: str
    tiers: tuple[TierSpec, ...]
    scheme: str | SchemePlan = "fp16"
    prefetch: bool = False
    max_prefetches: int = 2
    compute_ms: float | None = None
    engine: Engine = "exact"
    notes: str = ""

    def with_engine(self, engine: Engine) -> Self:
        """The same scenario by other rules.

        Raises:
            ConfigError: there are no such rules.
        """
        if engine not in ("exact", "compat"):
            message = f"engine = {engine}: use one of: exact, compat"
            raise ConfigError(message)
        return replace(self, engine=engine)


_ALL = (
    Scenario("small_fp16_prefetch", tiers("small"), prefetch=True, notes="moderate pressure"),
    Scenario("small_fp16_no_prefetch", tiers("small"), notes="moderate pressure"),
    Scenario("small_int4_no_prefetch", tiers("small"), "int4", notes="a quarter of the bytes"),
    Scenario("base_fp8_prefetch", tiers(), "fp8", prefetch=True, notes="light pressure"),
    Scenario(
        "constrained_fp16_prefetch", tiers("constrained"), prefetch=True, notes="much pressure"
    ),
    Scenario("medium", tiers("medium"), notes="the regret ablation's moderate pressure"),
    Scenario("tight", tiers("tight"), notes="the regret ablation's much pressure"),
    Scenario("cxl_like_fp16", tiers("cxl_like"), notes="much memory behind CXL in place of RAM"),
)

SCENARIOS: Mapping[str, Scenario] = MappingProxyType({known.name: known for known in _ALL})
"""Scenarios by name. The first five are kv-hierarchy-lab's default sweep, the next two its ablation of regret,
which calls `tight` constrained: a sixth of the usual capacities, where `constrained_fp16_prefetch` has a quarter."""


def scenario(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        ConfigError: it is not known; the message lists what is.
    """
    if name not in SCENARIOS:
        message = f"scenario = {name}: use one of: {', '.join(SCENARIOS)}"
        raise ConfigError(message)
    return SCENARIOS[name]


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy by its name, with parameters.

    Attributes:
        name: One of `page_policies`.
        params: Its parameters by name; what is not said is as usual.
        label: What it is called in results; its name if empty.
    """

    name: str
    params: Mapping[str, float] = field(default_factory=dict)
    label: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads e.g. `lru`, or `regret_aware:weight=0,horizon=64`, which is also the label.

        Raises:
            ConfigError: a parameter is not of the form `name=number`.
        """
        # `per_tier:NAME` is one name.
        head, colon, rest = text.removeprefix("per_tier:").partition(":")
        prefix = "per_tier:" if text.startswith("per_tier:") else ""
        params = {}
        for part in rest.split(",") if colon else ():
            key, _, value = part.partition("=")
            try:
                params[key] = float(value)
            except ValueError:
                message = f"policy = {text}: {part!r} is not understood; write it as name=number"
                raise ConfigError(message) from None
        return cls(prefix + head, params, text)


def page_policies() -> dict[str, tuple[str, tuple[str, ...]]]:
    """The policies of page mode by name: what each does, and the parameters that it takes.

    Those of the live tiers and of prefix mode run with one instance a tier.
    """
    known = _core.sim_page_policies()
    return {name: (about, tuple(params)) for name, about, params, _per_tier in known}
