"""What reads and forwards cost: measured by `kvlab sim calibrate`, or assumed; and what requests come to with it.

The formula is the one that the live store decides by (`kvlab.Store.costs`): a read takes its latency and
its bytes over the rate; a forward takes a fixed time, a time for each token and one for each token and token
before it; of the shorter of both a share runs beside the longer one.
"""

from __future__ import annotations

import heapq
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ASSUMED", "CostModel", "Read", "TIERS", "queue_ms", "spread_of"]

TIERS = ("l1", "l2", "l3")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Read:
    """What reading from a tier takes.

    Attributes:
        latency_us: Microseconds, whatever the size.
        gb_per_s: 10^9 bytes a second; None where the size makes no difference.
    """

    latency_us: float
    gb_per_s: float | None


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of one model on one machine.

    Attributes:
        source: Where the numbers come from, for reports.
        measured: Whether they were measured; assumed ones are only good for comparisons.
        bytes_per_token: KV bytes of a token, as they are stored.
        fixed_ms: Milliseconds of a forward, whatever its size.
        tokens_per_s: Tokens a second beyond that, without context; None where the number makes no difference.
        us_per_1k_context: Microseconds that a token takes more for each 1,000 tokens before it.
        overlap: The share of the shorter of restore and forward that the longer one hides, 0 to 1.
        read: By tier: l1, l2, l3.
    """

    source: str
    measured: bool
    bytes_per_token: int
    fixed_ms: float
    tokens_per_s: float | None
    us_per_1k_context: float
    overlap: float
    read: Mapping[str, Read]

    def prefill_ms(
        self, tokens: NDArray[np.int64], context: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Forwards over `tokens` tokens that follow `context` others; 0 for no tokens."""
        each = 1000.0 / self.tokens_per_s if self.tokens_per_s else 0.0
        attention = tokens * (context + tokens / 2.0) * (self.us_per_1k_context / 1e6)
        return np.where(tokens > 0, self.fixed_ms + tokens * each + attention, 0.0)

    def read_ms(self, tier: str, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Reads of so many tokens; 0 for none."""
        cost = self.read[tier]
        rate = 1e-6 / cost.gb_per_s if cost.gb_per_s else 0.0
        return np.where(
            tokens > 0, cost.latency_us / 1000.0 + tokens * (self.bytes_per_token * rate), 0.0
        )

    def ttft_ms(
        self, tokens: NDArray[np.int64], found: Mapping[str, NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """Time from a request's start to its first token, without queueing, `[requests]`.

        At least one token of a prompt is computed, whatever was found.

        Args:
            tokens: Of the prompts.
            found: By tier, the tokens that come from there.
        """
        restored = np.zeros(len(tokens), dtype=np.int64)
        reading = np.zeros(len(tokens))
        for tier, count in found.items():
            restored += count
            reading += self.read_ms(tier, count)
        restored = np.minimum(restored, np.maximum(tokens - 1, 0))
        computing = self.prefill_ms(tokens - restored, restored)
        return reading + computing - self.overlap * np.minimum(reading, computing)

    def save(self, path: Path) -> None:
        """Writes the file that `load` reads.

        Raises:
            OSError: it cannot be written.
        """
        content = {"kvlab_costs": _VERSION, **asdict(self)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CostModel:
        """Reads a file that `kvlab sim calibrate` wrote.

        Raises:
            ConfigError: it is none; names the file, the field and the value.
            OSError: it cannot be read.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is no JSON: {error}") from None
        if not isinstance(content, dict) or content.get("kvlab_costs") != _VERSION:
            raise ConfigError(f"{path}, kvlab_costs: is not {_VERSION}; `kvlab sim calibrate` writes such a file")
        return cls._read(content, path)

    @classmethod
    def _read(cls, content: Mapping[str, Any], path: Path) -> CostModel:
        def number(fields: Any, field: str, where: str = "", *, above: bool = False) -> float:
            value = fields.get(field) if isinstance(fields, dict) else None
            fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not fine or value < 0 or (above and value == 0):
                wanted = "a number above 0" if above else "a number from 0 on"
                raise ConfigError(f"{path}, {where}{field}: is {value!r}, expected {wanted}")
            return float(value)

        def rate(fields: Any, field: str, where: str = "") -> float | None:
            if isinstance(fields, dict) and field in fields and fields[field] is None:
                return None
            return number(fields, field, where, above=True)

        reads = content.get("read")
        reads = reads if isinstance(reads, dict) else {}
        read = {
            tier: Read(
                number(reads.get(tier), "latency_us", f"read.{tier}."),
                rate(reads.get(tier), "gb_per_s", f"read.{tier}."),
            )
            for tier in TIERS
        }
        overlap = number(content, "overlap")
        if overlap > 1:
            raise ConfigError(f"{path}, overlap: is {overlap:g}, expected 0 to 1")
        return cls(
            source=str(content.get("source", path.name)),
            measured=content.get("measured") is True,
            bytes_per_token=max(1, int(number(content, "bytes_per_token", above=True))),
            fixed_ms=number(content, "fixed_ms"),
            tokens_per_s=rate(content, "tokens_per_s"),
            us_per_1k_context=number(content, "us_per_1k_context"),
            overlap=overlap,
            read=read,
        )


ASSUMED = CostModel(
    source="assumed: what the live store believes before it has measured anything (SmolLM2-135M, two x86-64 cores)",
    measured=False,
    bytes_per_token=46080,
    fixed_ms=20.0,
    tokens_per_s=1000 / 1.2,
    us_per_1k_context=400.0,
    overlap=0.0,
    read={"l1": Read(20.0, 5.0), "l2": Read(20.0, 5.0), "l3": Read(200.0, 1.0)},
)
"""Used where nothing was calibrated."""


def queue_ms(
    at_ms: NDArray[np.float64], service_ms: NDArray[np.float64], servers: int
) -> NDArray[np.float64]:
    """What requests wait before they start, first come first served; only first tokens take a server's time.

    Args:
        at_ms: Arrivals, ascending.
        service_ms: How long each takes.
        servers: How many are served at once, at least 1.

    Raises:
        InvalidArgumentError: fewer than 1 server.
    """
    if servers < 1:
        raise InvalidArgumentError(f"servers = {servers}: use at least 1")
    free = [0.0] * servers
    waits = np.empty(len(at_ms))
    for index, (arrival, service) in enumerate(zip(at_ms.tolist(), service_ms.tolist(), strict=True)):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        waits[index] = start - arrival
    return waits


def spread_of(values: NDArray[np.float64], name: str) -> dict[str, float]:
    """Mean and percentiles as `NAME_mean_ms`, `NAME_p50_ms`, `NAME_p95_ms`, `NAME_p99_ms`; 0 for no values."""
    if not len(values):
        return {f"{name}_{part}_ms": 0.0 for part in ("mean", "p50", "p95", "p99")}
    middle, high, highest = np.percentile(values, (50, 95, 99))
    return {
        f"{name}_mean_ms": float(values.mean()),
        f"{name}_p50_ms": float(middle),
        f"{name}_p95_ms": float(high),
        f"{name}_p99_ms": float(highest),
    }
