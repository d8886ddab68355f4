"""How large a model's KV cache is, and where it outgrows the weights.

The arithmetic is the Rust core's, exact and checked. This module finds a model's shape: among the
built-in presets, or in a directory with a `config.json` as transformers writes it. It reads JSON
and safetensors headers only, never a tensor, and imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab import _core
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DTYPES", "KvSize", "ModelShape", "kv_size", "presets", "read_dtype", "shape_of"]

DTYPES = ("float32", "float16", "bfloat16", "float8", "int8", "int4")
"""Element types by name; `fp32`, `fp16`, `bf16` and `fp8` are understood as well."""

SHORT_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}

KV_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
"""The `layer_types` of a config that keep a KV cache."""

MAX_HEADER_BYTES = 100_000_000
"""What the safetensors format allows a header to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of a model decides its memory.

    Attributes:
        layers: Layers that keep a KV cache.
        kv_heads: Key/value heads of a layer (fewer than query heads under GQA).
        head_dim: Elements of one head.
        dtype: Element type of weights and cache, one of `DTYPES`.
        params: Parameters in all; None if unknown.
        latent: `(kv_lora_rank, rope_dim)` of multi-head latent attention, which caches these in
            place of heads.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"
    params: int | None = None
    latent: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSize:
    """Sizes of one model, exact. What needs the number of parameters is None without it.

    Attributes:
        kv_bytes_per_token: KV bytes of one token over all layers.
        kv_bytes: KV bytes of the whole batch.
        weight_bytes: Bytes of the weights.
        crossover_tokens: The fewest cached tokens, over all sequences, larger than the weights.
        crossover_seq_len: The shortest length at which this batch's cache is larger.
        sequences: How many sequences of this length fit `memory` beside the weights.
    """

    kv_bytes_per_token: int
    kv_bytes: int
    weight_bytes: int | None
    crossover_tokens: int | None
    crossover_seq_len: int | None
    sequences: int | None


def kv_size(
    shape: ModelShape, *, batch: int = 1, seq_len: int = 4096, memory: int | None = None
) -> KvSize:
    """Sizes of `batch` sequences of `seq_len` tokens of a model, in bytes and tokens.

    Args:
        shape: The model.
        batch: Sequences at once.
        seq_len: Tokens of each.
        memory: Bytes for weights and cache together.

    Raises:
        InvalidArgumentError: a number below 1 or too large, or an unknown dtype.
    """
    for name, value in (
        ("layers", shape.layers),
        ("kv_heads", shape.kv_heads),
        ("head_dim", shape.head_dim),
    ):
        _check(name, value, 32)
    if shape.latent is not None:
        _check("kv_lora_rank", shape.latent[0], 32)
        _check("rope_dim", shape.latent[1], 32, least=0)
    for name, optional in (
        ("batch", batch),
        ("seq_len", seq_len),
        ("params", shape.params),
        ("memory", memory),
    ):
        if optional is not None:
            _check(name, optional, 64)
    sizes = _core.kv_size(
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=read_dtype(shape.dtype),
        batch=batch,
        seq_len=seq_len,
        params=shape.params,
        latent=shape.latent,
        memory=memory,
    )
    return KvSize(**sizes)


def presets() -> dict[str, ModelShape]:
    """Published models by name, the smallest first."""
    return {name: ModelShape(**shape) for name, shape in _core.kv_presets().items()}


def read_dtype(name: str) -> str:
    """The full name of an element type: `fp32` is `float32`, `float8_e4m3fn` is `float8`.

    Raises:
        InvalidArgumentError: it is not known.
    """
    full = SHORT_DTYPES.get(name, name.removeprefix("torch."))
    if full.startswith("float8_"):
        full = "float8"
    if full not in DTYPES:
        message = f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}"
        raise InvalidArgumentError(message)
    return full


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a preset, or of a directory with a `config.json`.

    Raises:
        InvalidArgumentError: neither, or a config that does not describe a KV cache.
    """
    known = presets()
    if str(model) in known:
        return known[str(model)]
    directory = Path(model).expanduser()
    if (directory / "config.json").is_file():
        return _read_directory(directory)
    message = (
        f"model {str(model)!r} is neither a directory with a config.json nor one of "
        f"{', '.join(known)}; give one of these, or its shape"
    )
    raise InvalidArgumentError(message)


def _check(name: str, value: int, bits: int, *, least: int = 1) -> None:
    if not least <= value < 1 << bits:
        message = f"{name} = {value}; use {least} to 2^{bits} - 1"
        raise InvalidArgumentError(message)


def _read_directory(directory: Path) -> ModelShape:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read: {error}; give the shape instead"
        raise InvalidArgumentError(message) from error
    if not isinstance(config, dict):
        message = f"{path} holds no JSON object; give the shape instead"
        raise InvalidArgumentError(message)
    # A model of text and images keeps the part with the cache one level down.
    text = config.get("text_config")
    if "num_hidden_layers" not in config and isinstance(text, dict):
        config = {**config, **text}
    # Packed weights do not show how many parameters they are.
    params = None if config.get("quantization_config") else _count_parameters(directory)
    return _read_config(config, params, path)


def _read_config(config: Mapping[str, Any], params: int | None, path: Path) -> ModelShape:
    heads = _number(config, "num_attention_heads", path)
    layers = _number(config, "num_hidden_layers", path)
    types = config.get("layer_types")
    if isinstance(types, list):
        layers = sum(kind in KV_LAYERS for kind in types)
    latent = None
    if config.get("kv_lora_rank") is not None:
        rank = _number(config, "kv_lora_rank", path)
        latent = (rank, _number(config, "qk_rope_head_dim", path))
    if config.get("head_dim") is not None:
        head_dim = _number(config, "head_dim", path)
    else:
        head_dim = _number(config, "hidden_size", path) // heads
    # Without the key every query head has a KV head; without a dtype transformers means float32.
    grouped = config.get("num_key_value_heads") is not None
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return ModelShape(
        layers=layers,
        kv_heads=_number(config, "num_key_value_heads", path) if grouped else heads,
        head_dim=head_dim,
        dtype=read_dtype(str(dtype)),
        params=params,
        latent=latent,
    )


def _number(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        message = f"{path}: {key} = {value!r} is not a whole number above 0; give the shape instead"
        raise InvalidArgumentError(message)
    return value


def _count_parameters(directory: Path) -> int | None:
    """Elements of all tensors in the directory's safetensors files; None if there are none."""
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = [
                directory / name
                for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{index} is no safetensors index: {error!r}; give the parameters"
            raise InvalidArgumentError(message) from error
    if not files or not all(file.is_file() for file in files):
        return None
    return sum(_count_elements(file) for file in files)


def _count_elements(path: Path) -> int:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        return sum(
            math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is no safetensors file: {error}; give the parameters"
        raise InvalidArgumentError(message) from error
