"""Cost models in files: what `kvlab sim calibrate` measures here, and the simulator predicts times by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvlab._versioned import read_versioned
from kvlab.errors import ConfigError
from kvlab.sim.tiers import Costs, Read

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ASSUMED", "CostModel", "load", "save"]

VERSION = 1
_FORWARD = ("fixed_seconds", "seconds_per_token", "seconds_per_token_and_context")
_TIERS = ("l1", "l2", "l3")


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs, and where they come from.

    Attributes:
        source: What they are of, for reports.
        measured: Whether they were measured; what is assumed is good for comparisons only.
        costs: The numbers.
    """

    source: str
    measured: bool
    costs: Costs

    def describe(self) -> str:
        """One line for a report."""
        return f"{'measured' if self.measured else 'assumed, not measured'}: {self.source}"


ASSUMED = CostModel(
    "SmolLM2-135M in fp32 on two x86-64 cores; `kvlab sim calibrate` measures yours", False, Costs()
)
"""Used where no file is given."""


def save(model: CostModel, path: Path) -> None:
    """Writes the file that `load` reads.

    Raises:
        OSError: it cannot be written.
    """
    path.write_text(json.dumps(as_dict(model), indent=1) + "\n", encoding="utf-8")


def as_dict(model: CostModel) -> dict[str, Any]:
    """The content of the file."""
    costs = model.costs
    return {
        "kvlab_costs": VERSION,
        "source": model.source,
        "measured": model.measured,
        "token_bytes": costs.token_bytes,
        "forward": dict(zip(_FORWARD, costs.prefill, strict=True)),
        "decode_seconds_per_token": costs.decode,
        "read": {
            tier: {
                "latency_seconds": read.latency,
                "bytes_per_second": read.bandwidth,
                "transfers": read.transfers,
            }
            for tier, read in zip(_TIERS, (costs.l1, costs.l2, costs.l3), strict=True)
        },
        "overlap": costs.overlap,
    }


def load(path: Path) -> CostModel:
    """Reads a file that `save` wrote.

    Raises:
        ConfigError: it is none; names the file, the field and the value.
        OSError: it cannot be read.
    """
    content = read_versioned(path, "kvlab_costs", VERSION, "kvlab sim calibrate", ConfigError)
    fields = _Fields(path, content)
    forward, reads = fields.inner("forward"), fields.inner("read")
    fixed, token, context = (forward.number(name) for name in _FORWARD)
    l1, l2, l3 = (_read(reads.inner(tier)) for tier in _TIERS)
    costs = Costs(
        prefill=(fixed, token, context),
        decode=fields.number("decode_seconds_per_token"),
        token_bytes=int(fields.number("token_bytes", least=1)),
        l1=l1,
        l2=l2,
        l3=l3,
        overlap=fields.number("overlap", most=1),
    )
    return CostModel(str(content.get("source", path.name)), content.get("measured") is True, costs)


def with_concurrency(model: CostModel, concurrency: int) -> CostModel:
    """The same costs where so many requests are computed at once."""
    return replace(model, costs=replace(model.costs, concurrency=concurrency))


def _read(fields: _Fields) -> Read:
    return Read(
        latency=fields.number("latency_seconds"),
        bandwidth=fields.number("bytes_per_second", least=1),
        transfers=int(fields.number("transfers", least=1)),
    )


class _Fields:
    """An object of the file, checked as it is read."""

    def __init__(self, path: Path, content: Mapping[str, Any], prefix: str = "") -> None:
        self._path = path
        self._content = content
        self._prefix = prefix

    def inner(self, field: str) -> _Fields:
        value = self._content.get(field)
        if not isinstance(value, dict):
            raise self._error(field, "an object")
        return _Fields(self._path, value, f"{self._prefix}{field}.")

    def number(self, field: str, *, least: float = 0, most: float = math.inf) -> float:
        value: Any = self._content.get(field)
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not fine or not math.isfinite(value) or not least <= value <= most:
            beyond = "" if most == math.inf else f" to {most:g}"
            raise self._error(field, f"a number from {least:g}{beyond or ' on'}")
        return float(value)

    def _error(self, field: str, wanted: str) -> ConfigError:
        value = self._content.get(field)
        return ConfigError(f"{self._path}, {self._prefix}{field}: is {value!r}, expected {wanted}")
