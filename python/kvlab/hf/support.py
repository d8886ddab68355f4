"""What can be served from a prefix cache, and why the rest cannot.

Both functions err on the side of refusing: a refused request is merely slow, one that is served
from rows computed under other conditions is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from kvlab.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TESTED_DEVICES = ("cpu",)

# Frequencies, and with them the cached keys, depend on the total length under these.
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
# Arguments of generate() that touch neither the prompt's keys and values nor their positions.
_HARMLESS_ARGUMENTS = frozenset(
    {
        "attention_mask",
        "generation_config",
        "logits_processor",
        "past_key_values",
        "prefix_allowed_tokens_fn",
        "stopping_criteria",
        "streamer",
        "synced_gpus",
        "tokenizer",
        "use_model_defaults",
    }
)
# Settings of a generation config that must have one of these values (None = not set).
_REQUIRED_SETTINGS: dict[str, tuple[tuple[object, ...], str]] = {
    "use_cache": ((None, True), "the request turns the KV cache off"),
    "num_beams": ((None, 1), "beam search keeps several sequences"),
    "num_beam_groups": ((None, 1), "beam search keeps several sequences"),
    "num_return_sequences": ((None, 1), "several sequences are asked for"),
    "constraints": ((None,), "constrained beam search keeps several sequences"),
    "force_words_ids": ((None,), "constrained beam search keeps several sequences"),
    "penalty_alpha": ((None, 0, 0.0), "contrastive search keeps several candidates"),
    "dola_layers": ((None,), "DoLa decoding reads hidden states of the whole prompt"),
    "prompt_lookup_num_tokens": ((None,), "assisted decoding rolls the cache back"),
    "assistant_early_exit": ((None,), "assisted decoding rolls the cache back"),
    "use_mtp": ((None, False), "assisted decoding rolls the cache back"),
    "speculation_type": ((None,), "assisted decoding rolls the cache back"),
    "is_assistant": ((None, False), "the model serves as an assistant"),
    "token_healing": ((None, False), "token healing rewrites the prompt"),
    "guidance_scale": ((None, 1, 1.0), "classifier-free guidance runs a second sequence"),
    "cache_implementation": ((None, "dynamic"), "the request chooses a cache of its own"),
    "prefill_chunk_size": ((None,), "the request chooses a prefill grid of its own"),
    "output_attentions": ((None, False), "attentions of a reused prefix do not exist"),
    "output_hidden_states": ((None, False), "hidden states of a reused prefix do not exist"),
}
_SETTINGS = frozenset(
    {*vars(GenerationConfig()), *_REQUIRED_SETTINGS}  # type: ignore[no-untyped-call]
)


def check_model(model: PreTrainedModel) -> None:
    """Check that prefixes of this model's cache can be kept and reused.

    Call it again after a `Stamp` no longer matches: most of what it looks at can change.

    Args:
        model: Any transformers model.

    Raises:
        UnsupportedModelError: With the reason.
    """
    for reason in _reasons_against(model):
        raise UnsupportedModelError(f"{type(model).__name__} cannot be attached: {reason}")


def _reasons_against(model: Any) -> Iterator[str]:
    config = model.config
    decoder = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        yield "it is an encoder-decoder; its cross-attention depends on another input"
    if not model.can_generate():
        yield "it is not a causal language model; load it with AutoModelForCausalLM"
    if model._is_stateful:
        yield "it keeps recurrent state, which cannot be cut at a token"
    if not model._supports_default_dynamic_cache():
        yield "it does not use transformers' DynamicCache"
    yield from _layers_against(decoder)
    rope = sorted(_rope_types(decoder) & _LENGTH_DEPENDENT_ROPE)
    if rope:
        yield f"its rope type {rope[0]!r} makes cached keys depend on the total length"
    kind = getattr(model.generation_config, "cache_implementation", None)
    if kind not in (None, "dynamic"):
        yield (
            f"its generation config asks for a {kind!r} cache; set "
            "model.generation_config.cache_implementation = None"
        )
    devices = sorted({str(tensor.device) for tensor in _tensors(model)} - set(TESTED_DEVICES))
    if devices:
        yield (
            f"it is on {', '.join(devices)}; restored bytes land in host memory that the model "
            f"computes from, so it must be on cpu (tested devices: {', '.join(TESTED_DEVICES)}); "
            "use model.to('cpu')"
        )
    if model.training:
        yield "it is in training mode, where dropout makes keys random; call model.eval()"
    hooked = hooked_modules(model)
    if hooked:
        yield (
            f"module {hooked[0]!r} has a forward hook, which can change keys and values in ways "
            "a fingerprint cannot see; remove the hook"
        )


def _layers_against(decoder: Any) -> Iterator[str]:
    """Reasons in the cache layers that transformers itself would choose."""
    try:
        layers = DynamicCache(config=decoder).layers
    except Exception as error:  # noqa: BLE001 - configs of exotic models fail in many ways
        yield f"transformers builds no dynamic cache from its config ({error!r})"
        return
    for index, layer in enumerate(layers):
        # Exact classes: what derives from them (indexed, hybrid, quantised) keeps more state.
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            yield (
                f"cache layer {index} is a {type(layer).__name__}, which does not keep one key "
                "and one value row per token"
            )
            return


def _rope_types(config: Any) -> set[str]:
    """Every rope type in a config, whose rope parameters may be nested by layer type."""
    found: set[str] = set()
    pending = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            kind = value.get("rope_type", value.get("type"))
            if isinstance(kind, str):
                found.add(kind)
            pending.extend(value.values())
    return found


def _tensors(model: PreTrainedModel) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def hooked_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the modules that have forward hooks or pre-hooks ('' = the model)."""
    return tuple(
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    )


def refuse_request(
    input_ids: Any, kwargs: Mapping[str, Any], defaults: GenerationConfig | None = None
) -> str | None:
    """Return why a request must be left to plain transformers, or None if it can be served.

    Args:
        input_ids: The full prompt; served when it is an integer tensor ``[1, tokens]`` on the
            CPU.
        kwargs: The other arguments of ``generate()``.
        defaults: The model's own generation config, for settings the request does not name.

    Returns:
        A reason as a sentence without a full stop, or None.
    """
    return (
        _input_reason(input_ids)
        or _mask_reason(input_ids, kwargs, defaults)
        or _argument_reason(kwargs)
        or _setting_reason(kwargs, defaults)
    )


def _input_reason(input_ids: Any) -> str | None:
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        return "input_ids is not a tensor of shape [1, tokens]"
    if input_ids.shape[0] != 1:
        return f"the batch is {input_ids.shape[0]}, and one sequence is served at a time"
    if input_ids.shape[1] == 0:
        return "the prompt is empty"
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        return f"input_ids are {input_ids.dtype}, not integers"
    if input_ids.device.type not in TESTED_DEVICES:
        return f"input_ids are on {input_ids.device}, not on the cpu"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on, so keys and values are not in the model's dtype"
    return None


def _mask_reason(
    input_ids: Tensor, kwargs: Mapping[str, Any], defaults: GenerationConfig | None
) -> str | None:
    mask = kwargs.get("attention_mask")
    if mask is None:
        return _padding_reason(input_ids, kwargs, defaults)
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        return "the attention mask is not of the prompt's shape"
    if not bool((mask == 1).all()):
        return "the attention mask hides tokens (padding)"
    return None


def _padding_reason(
    input_ids: Tensor, kwargs: Mapping[str, Any], defaults: GenerationConfig | None
) -> str | None:
    """Where no mask is given generate() makes one, which hides padding if it can tell it from the end."""
    pad, end = (setting(name, kwargs, defaults) for name in ("pad_token_id", "eos_token_id"))
    ends = end if isinstance(end, list | tuple) else [end]
    if pad is None or pad in ends or not bool((input_ids == pad).any()):
        return None
    return (
        f"the prompt has the padding token {pad}, which generate() hides; "
        "give an attention_mask of ones if it is no padding"
    )


def _argument_reason(kwargs: Mapping[str, Any]) -> str | None:
    given = {name for name, value in kwargs.items() if value is not None}
    if "past_key_values" in given:
        return "the caller brings past_key_values of its own"
    if "inputs_embeds" in given:
        return "the prompt comes as embeddings, which have no token ids to match"
    if "position_ids" in given:
        return "the caller chooses the positions"
    if "assistant_model" in given:
        return "assisted decoding rolls the cache back"
    unknown = sorted(given - _HARMLESS_ARGUMENTS - _SETTINGS)
    if unknown:
        # Whatever else reaches the model's forward may change keys and values.
        return f"the argument {unknown[0]!r} may change what the model computes"
    return None


def _setting_reason(kwargs: Mapping[str, Any], defaults: GenerationConfig | None) -> str | None:
    for name, (served, reason) in _REQUIRED_SETTINGS.items():
        value = setting(name, kwargs, defaults)
        if value not in served:
            return f"{reason} ({name}={value!r})"
    return None


def setting(name: str, kwargs: Mapping[str, Any], defaults: GenerationConfig | None) -> Any:
    """Return a setting of generate(), from its arguments, else its config, else the model's."""
    value = kwargs.get(name)
    for source in (kwargs.get("generation_config"), defaults):
        if value is None:
            value = getattr(source, name, None)
    return value
