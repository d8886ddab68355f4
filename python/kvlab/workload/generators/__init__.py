"""Generators of workloads, the same from the same seed everywhere; `GENERATORS` has them by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvlab.errors import ConfigError
from kvlab.workload.generators import agents, chat, documents

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvlab.workload.generators.script import Script
    from kvlab.workload.schema import Workload

__all__ = ["GENERATORS", "Generator", "generate"]


@dataclass(frozen=True, slots=True)
class Generator:
    """A generator of workloads.

    Attributes:
        make: Writes one; takes `seed` and the options by keyword.
        about: What the requests are.
        options: Its options with their usual values; `seed` is not among them.
        seed: Its usual seed.
    """

    make: Callable[..., Script]
    about: str
    options: Mapping[str, int | float]
    seed: int


def _describe(make: Callable[..., Script]) -> Generator:
    usual = {name: each.default for name, each in inspect.signature(make).parameters.items()}
    seed = usual.pop("seed")
    about = (inspect.getdoc(make) or "").split("\n", maxsplit=1)[0]
    return Generator(make, about, MappingProxyType(usual), seed)


GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        name: _describe(getattr(module, name))
        for module in (chat, agents, documents)
        for name in module.__all__
    }
)
"""All of them."""


def generate(
    generator: str, *, seed: int | None = None, name: str | None = None, **options: float
) -> Workload:
    """Makes a workload: the same generator, options and seed give the same bytes.

    Args:
        generator: One of `GENERATORS`.
        seed: What all choices come from; by default the generator's usual one.
        name: What the workload is called; by default as its generator.
        options: Of the generator, in place of their usual values.

    Raises:
        ConfigError: an unknown generator or option; the message lists the known ones.
        InvalidArgumentError: a value that cannot be.
    """
    known = GENERATORS.get(generator)
    if known is None:
        raise ConfigError(f"generator = {generator}: use one of: {', '.join(GENERATORS)}")
    for option, value in options.items():
        usual = known.options.get(option)
        if usual is None:
            raise ConfigError(
                f"{option} = {value}: generator {generator} has {', '.join(known.options)}"
            )
        if isinstance(usual, int) and not isinstance(value, int):
            raise ConfigError(f"{option} = {value}: give a whole number")
    script = known.make(seed=known.seed if seed is None else seed, **options)
    return script.workload(name or generator, generator, {**known.options, **options})
