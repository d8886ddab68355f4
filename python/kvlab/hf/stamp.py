"""A cheap look at a model, to notice that it changed since its fingerprint was taken.

A fingerprint reads every byte of the model; a stamp is taken for every request.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kvlab.hf.fingerprint import VOLATILE_CONFIG, adapter_switches, numerics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLE_BYTES = 32  # at the start, the middle and the end of each tensor
_read = ctypes.string_at


@dataclass(frozen=True)
class Stamp:
    """What was seen of a model at one moment.

    Noticed are: parameters or buffers added, replaced, moved, or written in place through torch;
    adapters switched, merged or scaled; config fields; training mode; forward hooks; the thread
    count and matmul precision. A write that goes around torch's version counter (``p.data``,
    numpy, another library) is noticed when it reaches one of the few sampled places of the
    tensor, as every whole-tensor update does; an edit of single elements that way is not.
    """

    modules: tuple[object, ...]
    config: str
    process: tuple[tuple[str, object], ...]

    @classmethod
    def take(cls, model: PreTrainedModel) -> Stamp:
        """Look at a model that is on the CPU. Nothing is kept alive by the result."""
        seen: list[object] = []
        _walk(model, seen)
        return cls(tuple(seen), _config_text(model.config), numerics())

    def matches(self, model: PreTrainedModel) -> bool:
        """Whether the model still looks as it did."""
        return self == Stamp.take(model)


def _walk(module: nn.Module, seen: list[object]) -> None:
    """Append the state of a module and its children.

    This runs before every request, so the tree is walked by hand: ``named_parameters()`` alone
    takes longer than all of this.
    """
    state = module.__dict__
    if module.training or state["_forward_hooks"] or state["_forward_pre_hooks"]:
        seen.append((module.training, *state["_forward_hooks"], *state["_forward_pre_hooks"]))
    if "_active_adapter" in state:
        seen.append(adapter_switches(module))
    for tensors in (state["_parameters"], state["_buffers"]):
        for name, tensor in tensors.items():
            seen.append(name)
            if tensor is not None:
                _look_at(tensor, seen)
    for name, child in state["_modules"].items():
        seen.append(name)
        if child is not None:
            _walk(child, seen)


def _look_at(tensor: Tensor, seen: list[object]) -> None:
    pointer, size = tensor.data_ptr(), tensor.nbytes
    # Inference tensors carry no version counter; their content is still sampled.
    version = -1 if tensor.is_inference() else tensor._version
    seen += (pointer, version, tensor.shape, tensor.dtype)
    if not tensor.is_cpu or not tensor.is_contiguous():
        seen.append(tensor.stride())
    elif size <= _SAMPLE_BYTES:
        seen.append(_read(pointer, size))
    else:
        last = size - _SAMPLE_BYTES
        seen += (
            _read(pointer, _SAMPLE_BYTES),
            _read(pointer + last // 2, _SAMPLE_BYTES),
            _read(pointer + last, _SAMPLE_BYTES),
        )


def _config_text(config: object) -> str:
    """The fields of a config, nested configs included, without those that do not matter."""
    parts = []
    for key, value in sorted(vars(config).items()):
        if key not in VOLATILE_CONFIG:
            nested = hasattr(value, "to_dict") and hasattr(value, "__dict__")
            parts.append(f"{key}={_config_text(value) if nested else repr(value)}")
    return f"{type(config).__name__}({', '.join(parts)})"
