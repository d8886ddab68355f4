"""Importers of traces, one file a format: each gives an iterator of requests and what is known of them."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvlab.errors import ConfigError
from kvlab.sim.formats._info import Source, TraceInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Source", "TraceInfo", "importer", "names", "read"]

_IMPORTERS = {
    "azure": ("arrivals", "read_azure"),
    "bailian": ("bailian", "read"),
    "burstgpt": ("arrivals", "read_burstgpt"),
    "chat": ("chat", "read"),
    "capture": ("capture", "read"),
    "kvlab": ("capture", "read"),
    "kv_events": ("kv_events", "read"),
    "mooncake": ("mooncake", "read"),
    "ragpulse": ("ragpulse", "read"),
    "sglang_log": ("request_log", "read_sglang"),
    "vllm_log": ("request_log", "read_vllm"),
    "weka": ("weka", "read"),
}


def names() -> tuple[str, ...]:
    """The formats that can be read."""
    return tuple(_IMPORTERS)


def importer(name: str) -> Callable[..., Source]:
    """The function that reads a format: a path and the format's own options.

    Raises:
        ConfigError: the format is unknown; the message lists the known ones.
    """
    try:
        module, function = _IMPORTERS[name]
    except KeyError:
        raise ConfigError(f"format = {name}: use one of: {', '.join(_IMPORTERS)}") from None
    found: Callable[..., Source] = getattr(import_module(f"kvlab.sim.formats.{module}"), function)
    return found


def read(path: Path, name: str, **options: Any) -> Source:
    """Starts reading a trace; rows are read as the requests are iterated.

    Raises:
        ConfigError: the format, or an option of it, is unknown; the message lists the known ones.
    """
    function = importer(name)
    known = [option for option in inspect.signature(function).parameters if option != "path"]
    for option, value in options.items():
        if option not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise ConfigError(f"{option} = {value}: format {name} {has}")
    return function(path, **options)
