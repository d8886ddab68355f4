"""How many bytes a page's numbers take: one scheme for all, or one for some layers or head groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kvlab import _core
from kvlab.errors import ConfigError

__all__ = ["SCHEMES", "Scheme", "SchemePlan", "footprint", "scheme"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to store scalars.

    Attributes:
        name: Its name.
        bytes_per_scalar: Bytes of one scalar; scales are not counted.
        decode_ms: Milliseconds that decoding adds to every use and every move of a page.
    """

    name: str
    bytes_per_scalar: float
    decode_ms: float


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {name: Scheme(name, *numbers) for name, *numbers in _core.sim_schemes()}
)
"""The known schemes by name, the largest first. The numbers are kv-hierarchy-lab's."""


def scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ConfigError: it is not known; the message lists what is.
    """
    try:
        return SCHEMES[name]
    except KeyError:
        message = f"scheme = {name}: use one of: {', '.join(SCHEMES)}"
        raise ConfigError(message) from None


def footprint(scalars: int, name: str) -> int:
    """Bytes of `scalars` numbers in the scheme of that name, rounded down, at least 1."""
    return max(1, int(scalars * scheme(name).bytes_per_scalar))


@dataclass(frozen=True, slots=True)
class SchemePlan:
    """Which scheme the pages of which layers and head groups have.

    A head group's scheme goes before a layer's, a layer's before the rest's.

    Attributes:
        rest: The scheme of pages that nothing else is said of.
        layers: Schemes by layer.
        head_groups: Schemes by head group.
    """

    rest: str = "fp16"
    layers: Mapping[int, str] = field(default_factory=dict)
    head_groups: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.rest, *self.layers.values(), *self.head_groups.values()):
            scheme(name)

    @classmethod
    def parse(cls, text: str) -> SchemePlan:
        """Reads e.g. `fp16`, or `fp16,layers:0-7=int4,heads:3=int2`.

        Raises:
            ConfigError: it is not of that form, or names an unknown scheme.
        """
        rest, *parts = text.split(",")
        named: dict[str, dict[int, str]] = {"layers": {}, "heads": {}}
        for part in parts:
            where, _, name = part.partition("=")
            kind, _, span = where.partition(":")
            first, _, last = span.partition("-")
            if kind not in named or not first.isdecimal() or not (last or first).isdecimal():
                message = (
                    f"scheme = {text}: {part!r} is not understood; write it as layers:0-7=int4 "
                    f"or heads:3=int2"
                )
                raise ConfigError(message)
            named[kind] |= dict.fromkeys(range(int(first), int(last or first) + 1), name)
        return cls(rest, named["layers"], named["heads"])

    def of(self, layer: int, head_group: int) -> str:
        """The scheme of a page of that layer and head group."""
        if head_group in self.head_groups:
            return self.head_groups[head_group]
        return self.layers.get(layer, self.rest)

    def __str__(self) -> str:
        layers = [f"layers:{layer}={name}" for layer, name in sorted(self.layers.items())]
        heads = [f"heads:{group}={name}" for group, name in sorted(self.head_groups.items())]
        return ",".join([self.rest, *layers, *heads])
