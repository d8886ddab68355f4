"""Partial prefill: computing some tokens of a prompt, anywhere in it, over cached KV of all the others.

A forward does not have to begin where the cache ends. A layer needs the hidden states of the tokens
that are computed, and keys and values of every token in front of them; where those come from it cannot
tell. So any tokens can be computed: each layer puts their fresh K and V into the prompt's, in place of
what was there, and lets each look at all up to its own position. If what was there is right, nothing
changes; that is checked here. blend.py does it where what was there is not quite right.

The time is that of the tokens computed, and a floor: the weights are read however few they are.

    python toys/partial_prefill.py [--quick] [--json] [--out partial_prefill.svg]
"""

from __future__ import annotations

import random
import statistics
import time
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from common import Results, arguments, conclude, need, panels

need("torch", "transformers")

import torch
from rope import rotate
from rotation import difference
from torch.nn.functional import scaled_dot_product_attention

from kvlab.hf import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

TOKENS = 768
COUNTS = (1, 16, 64, 128, 256, 512, 768)


class KV(NamedTuple):
    """Keys and values `[layers, heads, tokens, dim]` of a whole prompt."""

    keys: Tensor
    values: Tensor

    def copy(self) -> KV:
        """Another one with the same numbers."""
        return KV(self.keys.clone(), self.values.clone())


def empty(model: Any, tokens: int) -> KV:
    """Room for the KV of `tokens` tokens of a model of the Llama family."""
    config = model.config
    shape = config.num_hidden_layers, config.num_key_value_heads, tokens, config.head_dim
    return KV(torch.zeros(shape), torch.zeros(shape))


def run_layer(model: Any, index: int, hidden: Tensor, at: Tensor, kv: KV) -> Tensor:
    """One layer for the tokens at positions `at [computed]`, whose K and V replace those in `kv`.

    Args:
        model: Of the Llama family.
        index: Which layer.
        hidden: `[computed, width]`.
        at: Where in the prompt they stand.
        kv: Of the whole prompt; changed in place.
    """
    block = model.model.layers[index]
    attention, normed = block.self_attn, block.input_layernorm(hidden)
    query, key, value = (
        project(normed).view(len(at), -1, attention.head_dim).transpose(0, 1)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    frequencies = model.model.rotary_emb.inv_freq
    kv.keys[index][:, at] = rotate(key, at, frequencies)
    kv.values[index][:, at] = value
    seen = torch.arange(kv.keys.shape[2]) <= at[:, None]
    mixed = scaled_dot_product_attention(
        rotate(query, at, frequencies)[None],
        kv.keys[index][None],
        kv.values[index][None],
        attn_mask=seen,
        enable_gqa=True,
    )
    hidden = hidden + attention.o_proj(mixed[0].transpose(0, 1).flatten(1))
    changed: Tensor = block.mlp(block.post_attention_layernorm(hidden))
    return hidden + changed


def compute(model: Any, ids: Tensor, at: Tensor, kv: KV) -> Tensor:
    """All layers for the tokens of `ids [tokens]` at `at`; their hidden states `[computed, width]`."""
    hidden: Tensor = model.model.embed_tokens(ids[at])
    for index in range(len(model.model.layers)):
        hidden = run_layer(model, index, hidden, at, kv)
    return hidden


def log_probabilities(model: Any, hidden: Tensor) -> Tensor:
    """Of the token behind each `[computed, vocabulary]`."""
    return torch.log_softmax(model.lm_head(model.model.norm(hidden)), -1)


@torch.inference_mode()
def measure(*, quick: bool = False) -> Results:
    """Computes a prompt whole, and then again so many tokens of it, drawn anywhere."""
    model: Any
    model, tokenizer = load("smollm2-135m")
    text = resources.files("kvlab.demo").joinpath("prompts", "agent_prefix.md").read_text()
    ids = torch.tensor(tokenizer(text)["input_ids"][:TOKENS])
    truth, rng = empty(model, TOKENS), random.Random(3)
    hidden = compute(model, ids, torch.arange(TOKENS), truth)
    theirs = torch.log_softmax(model(ids[None], logits_to_keep=64).logits[0], -1)
    off = float((log_probabilities(model, hidden[-64:]) - theirs).abs().max())
    if off > 1e-3:
        raise AssertionError(f"this loop and transformers differ by {off} in log-probabilities")
    rows: list[Results] = []
    counts = COUNTS[::3] if quick else COUNTS
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(2 if quick else 5):
        for count in counts:
            at, kv = torch.tensor(rng.sample(range(TOKENS), count)), truth.copy()
            begun = time.perf_counter()
            again = compute(model, ids, at, kv)
            if turn > 0:  # the first is the warm-up
                seconds[count].append(time.perf_counter() - begun)
                continue
            changed = max(difference(kv.keys, truth.keys), difference(kv.values, truth.values))
            changed = max(changed, difference(again, hidden[at]))
            rows.append({"computed": count, "changed": changed})
            if changed > 1e-4:
                raise AssertionError(f"computing {count} tokens again changed KV by {changed}")
    for row in rows:
        row["seconds"] = statistics.median(seconds[row["computed"]])
        row["seconds_range"] = [min(seconds[row["computed"]]), max(seconds[row["computed"]])]
    return {"tokens": TOKENS, "off": off, "rows": rows}


def tell(results: Results) -> None:
    """Prints a row a number of tokens."""
    print(
        f"a prompt of {results['tokens']} tokens, computed whole; then some of it again, anywhere"
    )
    print("   computed        ms   KV changed by")
    for row in results["rows"]:
        print(f"{row['computed']:11}{1e3 * row['seconds']:10.0f}{row['changed']:16.1e}")


def draw(results: Results) -> Figure:
    """Time over tokens computed."""
    figure, (axes,) = panels(width=5.2)
    computed = [row["computed"] for row in results["rows"]]
    axes.plot(computed, [1e3 * row["seconds"] for row in results["rows"]], "o-", label="median")
    low, high = zip(*(row["seconds_range"] for row in results["rows"]), strict=True)
    axes.fill_between(computed, [1e3 * s for s in low], [1e3 * s for s in high], alpha=0.2)
    axes.set(
        ylim=(0, None), xlabel=f"tokens computed of {results['tokens']}", ylabel="milliseconds"
    )
    axes.set(title="Computing some tokens over cached KV of the rest")
    return figure


def main() -> None:
    """Computes parts of a prompt."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
