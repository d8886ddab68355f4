"""Load a causal language model and its tokenizer, ready to attach."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from kvlab import models
from kvlab._quiet import quiet_transformers
from kvlab.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load(
    name: str, *, dtype: str | torch.dtype = "float32", cache_dir: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in eval mode on the CPU, with sdpa attention.

    Args:
        name: ``smollm2-135m``, a local directory or a hub id; see `kvlab.models.resolve`.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or the torch dtype of that name. It
            is the dtype of the weights and of every cached key and value.
        cache_dir: Where converted models are kept; see `kvlab.models.cache_root`.

    Returns:
        The model and its tokenizer.

    Raises:
        ConfigError: The dtype is none of the three.
        ModelUnavailableError: The model cannot be obtained from here.
    """
    wanted = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted not in _DTYPES.values():
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    path = models.resolve(name, cache_dir=cache_dir)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=wanted, attn_implementation="sdpa", use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    return cast("PreTrainedModel", model.eval()), cast("PreTrainedTokenizerBase", tokenizer)
