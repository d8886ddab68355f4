"""What is served from a prefix cache, and the reasons given for what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from transformers import (
    BertConfig,
    BertModel,
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from kvlab.errors import UnsupportedModelError
from kvlab.hf.support import check_model, refuse_request
from tiny_models import FAMILIES, build, prompt

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "factor": 4.0,
}
UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "encoder-decoder": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16)
        ),
        "encoder-decoder",
    ),
    "no language model head": (
        lambda: BertModel(
            BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        ),
        "not a causal language model",
    ),
    "recurrent": (
        lambda: MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1)),
        "recurrent state",
    ),
    "hybrid": (
        lambda: Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])),
        "LinearAttentionLayer",
    ),
    "dynamic rope": (
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=DYNAMIC_ROPE)),
        "rope type 'dynamic'",
    ),
    "longrope": (
        lambda: Phi3ForCausalLM(Phi3Config(**SMALL, rope_parameters=LONG_ROPE)),
        "rope type 'longrope'",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_families_are_supported(family: str) -> None:
    check_model(build(family))


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_models_that_cannot_be_cut_are_refused_with_the_reason(case: str) -> None:
    make, reason = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModelError, match=reason):
        check_model(make().eval())


def test_a_model_off_the_cpu_is_refused_and_told_the_tested_devices() -> None:
    with pytest.raises(UnsupportedModelError, match=r"on meta.*tested devices: cpu"):
        check_model(build("llama").to("meta"))


def test_training_mode_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"model\.eval\(\)"):
        check_model(build("llama").train())


def test_a_quantised_default_cache_is_refused() -> None:
    model = build("llama")
    model.generation_config.cache_implementation = "quantized"
    with pytest.raises(UnsupportedModelError, match="'quantized' cache"):
        check_model(model)


def test_a_forward_hook_is_refused_until_it_is_removed() -> None:
    model = build("llama")
    handle = model.model.layers[1].register_forward_hook(lambda module, args, output: output)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1.*hook"):
        check_model(model)
    handle.remove()
    check_model(model)


def settings(**values: Any) -> Any:
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]


IDS = prompt(12)
SERVED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "full mask": {"attention_mask": torch.ones_like(IDS)},
    "boolean mask": {"attention_mask": torch.ones_like(IDS, dtype=torch.bool)},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5},
    "defaults spelled out": {"num_beams": 1, "use_cache": True, "num_return_sequences": 1},
    "scores": {"output_scores": True, "output_logits": True, "return_dict_in_generate": True},
    "config": {"generation_config": settings(max_new_tokens=3, eos_token_id=[1, 2])},
    "absent": {"past_key_values": None, "position_ids": None, "assistant_model": None},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "padding": ({"attention_mask": torch.tensor([[0] + [1] * 11])}, "padding"),
    "4-D mask": ({"attention_mask": torch.ones(1, 1, 12, 12)}, "prompt's shape"),
    "longer mask": ({"attention_mask": torch.ones(1, 13)}, "prompt's shape"),
    "own cache": ({"past_key_values": object()}, "past_key_values"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 12, 8)}, "embeddings"),
    "positions": ({"position_ids": torch.arange(12)[None]}, "positions"),
    "beams": ({"num_beams": 4}, "beam search"),
    "beams in a config": ({"generation_config": settings(num_beams=2)}, "num_beams=2"),
    "several answers": ({"num_return_sequences": 2, "do_sample": True}, "several sequences"),
    "no cache": ({"use_cache": False}, "cache off"),
    "assistant": ({"assistant_model": object()}, "assisted"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "assisted"),
    "early exit": ({"assistant_early_exit": 4}, "assisted"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive"),
    "static cache": ({"cache_implementation": "static"}, "cache of its own"),
    "chunks": ({"prefill_chunk_size": 128}, "prefill grid"),
    "hidden states": ({"output_hidden_states": True}, "hidden states"),
    "attentions": ({"output_attentions": True}, "attentions"),
    "guidance": ({"guidance_scale": 1.5}, "guidance"),
    "token healing": ({"token_healing": True}, "rewrites the prompt"),
    "images": ({"pixel_values": torch.zeros(1)}, "'pixel_values'"),
    "segments": ({"token_type_ids": torch.zeros(1, 12)}, "'token_type_ids'"),
    "custom loop": ({"custom_generate": "somebody/loop"}, "'custom_generate'"),
}


@pytest.mark.parametrize("case", SERVED)
def test_plain_requests_are_served(case: str) -> None:
    assert refuse_request(IDS, SERVED[case], settings()) is None


@pytest.mark.parametrize("case", REFUSED)
def test_requests_that_would_change_the_answer_are_refused(case: str) -> None:
    kwargs, reason = REFUSED[case]
    assert reason in str(refuse_request(IDS, kwargs))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (IDS.repeat(2, 1), "batch is 2"),
        (IDS[0], "shape"),
        (IDS[:, :0], "empty"),
        (IDS.float(), "not integers"),
        ([[1, 2, 3]], "not a tensor"),
        (None, "not a tensor"),
        (IDS.to("meta"), "on meta"),
    ],
)
def test_inputs_that_are_no_single_prompt_are_refused(ids: Any, reason: str) -> None:
    assert reason in str(refuse_request(ids, {}))


def test_the_models_own_defaults_count_unless_the_request_overrides_them() -> None:
    defaults = settings(num_beams=4)
    assert "num_beams=4" in str(refuse_request(IDS, {}, defaults))
    assert refuse_request(IDS, {"num_beams": 1}, defaults) is None
    config = settings(num_beams=1)
    assert refuse_request(IDS, {"generation_config": config}, defaults) is None


def test_autocast_is_refused() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in str(refuse_request(IDS, {}))
    assert refuse_request(IDS, {}) is None
