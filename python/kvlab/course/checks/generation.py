"""0.2: cached generation says what naive generation says, and computes each position once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvlab.course.checks import Mine, claim

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cached_equals_naive", "positions_computed", "tiny_model"]

_VOCABULARY = 256


def tiny_model(seed: int) -> Any:
    """A Llama of two layers with random weights, the same for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough that the next token is never a matter of rounding.
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def naive(model: Any, ids: Tensor, new_tokens: int) -> list[int]:
    """Greedy generation that computes the whole text for every token."""
    import torch

    length = ids.shape[1]
    with torch.inference_mode():
        for _ in range(new_tokens):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids[0, length:].tolist()


def cached(model: Any, ids: Tensor, new_tokens: int) -> list[int]:
    """Greedy generation that computes each position once."""
    import torch

    found: list[int] = []
    past = None
    with torch.inference_mode():
        for _ in range(new_tokens):
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
            past, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(int(ids))
    return found


def cached_equals_naive(mine: Mine) -> str:
    """The same tokens as without a cache, and as few positions computed as can be."""
    import torch

    lengths = ((1, 4), (9, 1), (24, 12))
    for seed, (tokens, new) in enumerate(lengths):
        model = tiny_model(seed)
        ids = torch.randint(
            3, _VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed)
        )
        expected = naive(model, ids, new)
        computed: list[int] = []
        hook = model.get_input_embeddings().register_forward_pre_hook(
            lambda _module, arguments, into=computed: into.append(arguments[0].shape[-1])
        )
        result = (mine or cached)(model, ids.clone(), new)
        hook.remove()
        where = f"{tokens} prompt tokens, {new} new ones"
        given = [int(each) for each in result]
        claim(
            given == expected, f"{where}: gave {given[:8]} ..., naive generation {expected[:8]} ..."
        )
        # The last new token need not be computed; whoever does is not wrong.
        claim(
            tokens + new - 1 <= sum(computed) <= tokens + new,
            f"{where}: {sum(computed)} positions went through the model in {len(computed)} forwards; "
            f"with a cache it is {tokens + new - 1}",
        )
    return f"the same tokens in {len(lengths)} prompts, each position computed once"


def positions_computed(mine: Mine) -> str:
    """The formula against counting."""
    cases = [(p, n) for p in (1, 2, 16, 500) for n in (1, 2, 3, 64)]
    for prompt, new in cases:
        counted = {
            False: sum(prompt + done for done in range(new)),
            True: prompt + sum(1 for _ in range(new - 1)),
        }
        for with_cache, expected in counted.items():
            result = (mine or _positions)(prompt, new, with_cache)
            claim(
                result == expected,
                f"{prompt} prompt and {new} new tokens, {'with' if with_cache else 'without'} a cache: "
                f"gave {result}, counted {expected}",
            )
    return f"right in {2 * len(cases)} cases; 500 and 64: {_positions(500, 64, False):,} without, 563 with"


def _positions(prompt: int, new: int, with_cache: bool) -> int:
    """Arithmetic series: the naive loop computes prompt, prompt + 1, ... positions."""
    return prompt + new - 1 if with_cache else new * prompt + new * (new - 1) // 2
