"""Workloads: generators of page traces and of requests, the same from the same seed everywhere.

`PAGE_WORKLOADS` and `REQUEST_WORKLOADS` say what there is by name. What gives requests gives pages
as well: `page_workload` turns each block into a page.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from kvlab.sim.request import Request
from kvlab.sim.schemes import SchemePlan
from kvlab.sim.workloads import agents, synthetic
from kvlab.sim.workloads.pages import Access, Page, PageWorkload, build_pages, trace_of

__all__ = [
    "PAGE_WORKLOADS",
    "REQUEST_WORKLOADS",
    "Access",
    "Page",
    "PageGenerator",
    "PageWorkload",
    "RequestGenerator",
    "page_workload",
]


@dataclass(frozen=True, slots=True)
class PageGenerator:
    """A generator of page workloads.

    Attributes:
        make: Makes a workload; takes `seed`, `scheme` and the parameters by keyword.
        about: What the pattern is.
        params: Its parameters with their usual values; `seed` and `scheme` are not among them.
        seed: Its usual seed.
    """

    make: Callable[..., PageWorkload]
    about: str
    params: Mapping[str, int | float]
    seed: int


@dataclass(frozen=True, slots=True)
class RequestGenerator:
    """A generator of requests, as `PageGenerator` is one of pages."""

    make: Callable[..., list[Request]]
    about: str
    params: Mapping[str, int | float]
    seed: int


def page_workload(
    requests: Sequence[Request],
    *,
    name: str = "requests",
    base_scalars: int = 2048,
    scheme: str | SchemePlan = "fp16",
    seed: int = 7,
) -> PageWorkload:
    """Requests as uses of pages: each block is a page, used from first to last by each request.

    Args:
        requests: The requests, in order.
        name: What the workload is called.
        base_scalars: Numbers of a page, about.
        scheme: How pages are stored.
        seed: What the pages' sizes come from.

    Raises:
        InvalidArgumentError: requests without any block.
        ConfigError: an unknown scheme.
    """
    numbers: dict[int, int] = {}
    trace = trace_of([numbers.setdefault(b, len(numbers)) for r in requests for b in r.blocks])
    sequences = [r.session or f"request-{n}" for n, r in enumerate(requests) for _ in r.blocks]
    pages = build_pages(len(numbers), base_scalars, scheme, seed)
    return PageWorkload(name=name, pages=pages, trace=trace, sequences=sequences, seed=seed)


def _pages_of(
    make: Callable[..., list[Request]],
    name: str,
    *,
    scheme: str | SchemePlan = "fp16",
    seed: int,
    **params: float,
) -> PageWorkload:
    return page_workload(make(seed=seed, **params), name=name, scheme=scheme, seed=seed)


_Made = TypeVar("_Made")


def _describe(
    make: Callable[..., _Made],
) -> tuple[Callable[..., _Made], str, Mapping[str, int | float], int]:
    usual = {name: p.default for name, p in inspect.signature(make).parameters.items()}
    seed = usual.pop("seed")
    usual.pop("scheme", None)
    about = (inspect.getdoc(make) or "").split("\n", maxsplit=1)[0]
    return make, about, MappingProxyType(usual), seed


REQUEST_WORKLOADS: Mapping[str, RequestGenerator] = MappingProxyType(
    {name: RequestGenerator(*_describe(getattr(agents, name))) for name in agents.__all__}
)
"""Generators of requests by name."""


def _page_generators() -> Mapping[str, PageGenerator]:
    known = {
        name: PageGenerator(*_describe(getattr(synthetic, name))) for name in synthetic.__all__
    }
    for name, generator in REQUEST_WORKLOADS.items():
        make = partial(_pages_of, generator.make, name, seed=generator.seed)
        known[name] = PageGenerator(make, generator.about, generator.params, generator.seed)
    return MappingProxyType(known)


PAGE_WORKLOADS: Mapping[str, PageGenerator] = _page_generators()
"""Generators of page workloads by name: kv-hierarchy-lab's eight, and the requests' as pages."""
