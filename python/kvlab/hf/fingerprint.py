"""A digest of everything that makes the keys and values of one token sequence differ.

Two models with one fingerprint may share cached bytes, so what is left out here turns into wrong
answers, and what is added without need into misses. The live tensors are hashed, not the files
they came from: fine-tuning, merging an adapter or editing a weight in memory must show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from kvlab.errors import UnsupportedModelError
from kvlab.hf.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a config came from and how outputs are packed, which no key or value depends on. The
# dtype is read off the live tensors and the attention implementation has a field of its own.
VOLATILE_CONFIG = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "_output_attentions",
        "_post_init_done",
        "dtype",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_HASH_THREADS = 2  # sha256 releases the GIL; a second thread halves the time, more rarely help


def fingerprint(model: PreTrainedModel, layout: ModelLayout, *, chunk_tokens: int) -> bytes:
    """Digest a model for use as the namespace of its cached keys and values.

    Args:
        model: A model that passed `kvlab.hf.check_model`.
        layout: Its layout, from `kvlab.hf.read_layout`.
        chunk_tokens: The fixed prefill grid in tokens, 0 for none: a grid changes the rounding
            of keys and values.

    Returns:
        32 bytes, the same in every process that loads the same model under the same conditions.

    Raises:
        UnsupportedModelError: A parameter or buffer whose bytes cannot be read.
    """
    digest = hashlib.sha256()
    for tag, content in _fields(model, layout, chunk_tokens):
        # Lengths before the bytes, so that no two different field lists read the same.
        digest.update(len(tag).to_bytes(4, "little") + tag.encode())
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def forward_key(model: PreTrainedModel, layout: ModelLayout) -> bytes:
    """Return 32 bytes that stand for all that the time of a forward depends on, of this machine and process.

    Unlike the fingerprint it leaves the weights' values out: they change no time.
    """
    digest = hashlib.sha256(b"kvlab forward 1")
    digest.update(f"{type(model).__module__}.{type(model).__qualname__}\0".encode())
    digest.update(_canonical(_without_volatile(model.config.to_dict())))
    attention = model.config._attn_implementation
    digest.update(repr((attention, layout, numerics(), adapter_state(model))).encode())
    return digest.digest()


def _fields(
    model: PreTrainedModel, layout: ModelLayout, chunk_tokens: int
) -> Iterator[tuple[str, bytes]]:
    yield "kvlab.fingerprint", b"1"
    yield "class", f"{type(model).__module__}.{type(model).__qualname__}".encode()
    yield "config", _canonical(_without_volatile(model.config.to_dict()))
    yield "attention", str(model.config._attn_implementation).encode()
    decoder = model.config.get_text_config(decoder=True)
    yield "rope", _canonical(getattr(decoder, "rope_parameters", None))
    yield "layout", repr(layout).encode()
    yield "chunk_tokens", str(chunk_tokens).encode()
    yield "numerics", repr(numerics()).encode()
    yield "adapters", repr(adapter_state(model)).encode()
    named = live_tensors(model)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        contents = list(pool.map(_tensor_digest, named.values(), named))
    for (name, tensor), content in zip(named.items(), contents, strict=True):
        head = f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0"
        yield "tensor", head.encode() + content


def numerics() -> tuple[tuple[str, object], ...]:
    """Return what the process itself adds to the rounding of keys and values.

    Measured on SmolLM2-135M: one and two threads give different bytes in bf16 (by up to 0.69 in a
    key, the same in fp32 and fp16), and so does a lower matmul precision in fp32. Switching oneDNN
    off did not, and neither did repeating a run. The instruction set and the versions decide
    which kernels run at all.
    """
    return (
        ("torch", ".".join(torch.__version__.split(".")[:2])),
        ("transformers", ".".join(transformers.__version__.split(".")[:2])),
        ("threads", torch.get_num_threads()),
        ("cpu", torch.backends.cpu.get_cpu_capability()),
        ("matmul", torch.get_float32_matmul_precision()),
    )


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, buffers that are not saved (rope) included, by name.

    A tensor under two names (tied embeddings) appears under both.
    """
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return dict(sorted(named.items()))


def adapter_state(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return the switches of adapter layers: which are active, merged, scaled by how much.

    The adapters' weights are parameters and covered as such; these attributes (of peft's tuner
    layers) decide whether and how strongly they act.
    """
    found: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        state = adapter_switches(module)
        if state is not None:
            found.append((name, state))
    return tuple(found)


def adapter_switches(module: nn.Module) -> str | None:
    """Return the adapter switches of one module as text, or None where it has none."""
    values = vars(module)
    if "_active_adapter" not in values:
        return None
    return repr(
        [
            values.get(key)
            for key in ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
        ]
    )


def _tensor_digest(tensor: Tensor, name: str) -> bytes:
    """SHA-256 of a tensor's elements in order, whatever its strides."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise UnsupportedModelError(
            f"the bytes of {name!r} cannot be read: it is {tensor.layout} on {tensor.device}"
        )
    flat = tensor.detach().contiguous().reshape(-1)
    try:
        raw = flat.view(torch.uint8).numpy()
    except (RuntimeError, TypeError) as error:
        raise UnsupportedModelError(f"the bytes of {name!r} cannot be read: {error}") from error
    return hashlib.sha256(raw.data).digest()


def _without_volatile(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_volatile(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in VOLATILE_CONFIG
    }


def _canonical(value: Any) -> bytes:
    """JSON with sorted keys; what JSON cannot say is written by its repr."""
    return json.dumps(value, sort_keys=True, default=repr).encode()
