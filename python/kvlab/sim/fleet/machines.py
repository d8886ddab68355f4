"""What a forward costs on a machine: from operations and a stated utilisation, or as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim.tiers import Costs, Read
from kvlab.sizing import kv_size, shape_of

__all__ = ["ACCELERATORS", "MFU", "WIDTHS", "Accelerator", "Machine", "machine_of"]

MFU = 0.4
"""Assumed share of an accelerator's operations that a prefill reaches. The nearest figure that was published for these
models is of training: 38 to 43 % on H100 (Grattafiori and others, "The Llama 3 Herd of Models", arXiv:2407.21783,
table 4)."""

_IN_PLACE = Read(0.0, 1e15)
"""L1 of an accelerator: the model reads the blocks where they are."""
_HOST = Read(1e-4, 25e9)
"""L2 of an accelerator: host memory over PCIe 4.0 x16, 31.5 GB/s on paper; 25 is assumed."""

WIDTHS: Mapping[str, int] = MappingProxyType(
    {"smollm2-135m": 576, "llama-3.1-8b": 4096, "llama-3.1-70b": 8192}
)
"""Query heads times their dimension, from the models' config.json: attention's share of a forward."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What computes.

    Attributes:
        flops: Dense bf16 operations a second, on paper.
        source: Where that figure is from.
    """

    flops: float
    source: str


ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType(
    {
        "a100": Accelerator(312e12, "NVIDIA A100 data sheet: 312 TFLOP/s, dense"),
        "l40s": Accelerator(
            362e12, "NVIDIA L40S data sheet: 733 TFLOP/s with sparsity, half of it dense"
        ),
        "h100": Accelerator(
            989.4e12, "NVIDIA H100 SXM data sheet: 1,979 TFLOP/s with sparsity, half of it dense"
        ),
    }
)
"""Accelerators by name, each with what its maker's data sheet says (cited, not measured)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a fleet: what computing and reading cost on it.

    Attributes:
        name: For tables.
        costs: Of forwards, of its own tiers, and how many requests it computes at once.
        source: Where the costs are from.
    """

    name: str
    costs: Costs
    source: str

    def prefill(self, tokens: int, context: int) -> float:
        """Seconds of a forward over `tokens` tokens behind `context` others."""
        once, token, attended = self.costs.prefill
        return once + token * tokens + attended * tokens * (context + tokens / 2)

    def break_even_gigabits(self, tokens: int) -> float:
        """Payload gigabits a second from which fetching a prefix of so many tokens is as fast as computing it.

        Without round trips and waiting, as docs/remote/01 has it.
        """
        once, *_ = self.costs.prefill
        return 8e-9 * tokens * self.costs.token_bytes / (self.prefill(tokens, 0) - once)


def machine_of(
    model: str,
    *,
    accelerator: str = "h100",
    count: int = 1,
    mfu: float = MFU,
    tokens_per_second: float | None = None,
    token_bytes: int | None = None,
) -> Machine:
    """A machine with accelerators.

    A token costs two operations for each weight, and four for each layer, element of its width and token before it.
    Answers are decoded beside the prompts of others, and take nothing from them (assumed).

    Args:
        model: A preset of `kvlab size`, or a directory with a config.json.
        accelerator: One of `ACCELERATORS`.
        count: So many of them work on one forward, and lose nothing between them (assumed).
        mfu: The share of their operations that a prefill reaches, above 0 and at most 1.
        tokens_per_second: Prompt tokens a second as measured by the reader, whatever stands before them; in place of
            operations.
        token_bytes: KV bytes of a token, in place of the model's.

    Raises:
        ConfigError: an unknown accelerator.
        InvalidArgumentError: an unknown model, or one whose operations are not known and that has no
            `tokens_per_second`.
    """
    if accelerator not in ACCELERATORS:
        raise ConfigError(f"accelerator = {accelerator}: use one of: {', '.join(ACCELERATORS)}")
    if count < 1 or not 0 < mfu <= 1:
        raise InvalidArgumentError(
            f"accelerators = {count}, mfu = {mfu}: at least 1, and a share above 0 and at most 1"
        )
    shape = shape_of(model)
    size = token_bytes or kv_size(shape).kv_bytes_per_token
    if tokens_per_second is not None:
        if not tokens_per_second > 0:
            raise InvalidArgumentError(f"{tokens_per_second} prefill tokens a second: more than 0")
        costs = Costs((0.0, 1 / tokens_per_second, 0.0), 0.0, size, l1=_IN_PLACE, l2=_HOST)
        source = f"{tokens_per_second:,.0f} prompt tokens a second, as given"
        return Machine(f"{model}, given speed", costs, source)
    width = WIDTHS.get(model)
    if shape.params is None or width is None:
        raise InvalidArgumentError(
            f"model {model}: its operations are not known; give --prefill-tokens-per-second, "
            f"or one of: {', '.join(WIDTHS)}"
        )
    used = ACCELERATORS[accelerator]
    rate = count * used.flops * mfu
    costs = Costs(
        (0.0, 2 * shape.params / rate, 4 * shape.layers * width / rate),
        0.0,
        size,
        l1=_IN_PLACE,
        l2=_HOST,
    )
    many = f"{count} x {accelerator}" if count > 1 else accelerator
    source = f"{rate / 1e12:,.0f} TFLOP/s: {100 * mfu:g} % (assumed) of {count} x {used.flops / 1e12:g} ({used.source})"
    return Machine(f"{model} on {many}", costs, source)
