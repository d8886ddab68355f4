"""Tiny random models of the families kvlab serves, built in the test process in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 256
WINDOW = 32
"""Sliding window of the families that have one, in tokens: far less than the prompts used."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,  # generation always runs to the asked length
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_MIXED_LAYERS = ["sliding_attention", "full_attention"] * 2


def _qwen2(**extra: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_COMMON, **extra))


def _deepseek_v3() -> PreTrainedModel:
    """MLA: caches a latent, so K and V differ in their dimensions."""
    latent: dict[str, Any] = {
        "kv_lora_rank": 24,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    }
    experts: dict[str, Any] = {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    }
    shape = _COMMON | {"num_key_value_heads": 4, "head_dim": 8, "qk_rope_head_dim": 8}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**shape, **latent, **experts))


_BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON)),
    "llama3-rope": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, rope_parameters=_LLAMA3_ROPE)),
    "qwen2": _qwen2,
    "qwen2-swa": lambda: _qwen2(
        use_sliding_window=True, sliding_window=WINDOW, layer_types=_MIXED_LAYERS
    ),
    "mistral-swa": lambda: MistralForCausalLM(MistralConfig(**_COMMON, sliding_window=WINDOW)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**_COMMON, sliding_window=WINDOW, layer_types=_MIXED_LAYERS)
    ),
    "deepseek-v3": _deepseek_v3,
}
FAMILIES = tuple(_BUILDERS)
SLIDING = ("qwen2-swa", "mistral-swa", "gemma3")


def build(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Build a model of a family in eval mode, the same for the same seed.

    Every parameter is random, biases and norms too: transformers starts them at zero or one,
    where a mistake with them would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    model: Any = _BUILDERS[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.ndim > 1 else parameter + noise * 0.2)
    return model.to(dtype).eval()


def prompt(tokens: int, *, seed: int = 0) -> torch.Tensor:
    """Random token ids ``[1, tokens]`` without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (1, tokens), generator=generator)
