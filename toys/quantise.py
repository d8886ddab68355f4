"""Quantising a KV cache: how few bits keys and values survive, and along which side to count them.

A group of numbers shares a scale and a zero point; each becomes an integer of 8, 4 or 2 bits. Whoever lies far
from the others in its group makes the steps wide for all. So it matters who shares a group: keys have a few
channels that are large for every token (see the picture), values do not. KIVI (arXiv:2402.02750) therefore
groups keys per channel, over 32 tokens, and values per token, over 32 channels. A per-channel group is complete
only when 32 tokens have come: the latest ones wait in full precision.

What to see: 8 bits are close to exact. At equal bits, keys per channel lose less than keys per token, the more
the fewer the bits. Values suffer least. The tokens that wait make KIVI larger, so size against loss the two come
close to each other, except at 2 bits.

The quantisers are in quantisers.py; what they cost the model is here.

    python toys/quantise.py [--quick] [--json] [--out quantise.svg]
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Results, arguments, conclude, need, panels

need("torch", "transformers")

import torch
from quantisers import GROUP, RESIDUAL, SCHEMES, through
from torch import Tensor
from transformers import DynamicCache

import kvlab.hf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("docs/design.md", "docs/policy-lab.md", "docs/format.md", "docs/workload-model.md")
BITS = (8, 4, 2)


def continuation(model: Any, ids: Tensor, cache: Any, prefix: int) -> Tensor:
    """Log-probabilities [tokens - prefix - 1, vocabulary] of what follows each token behind the prefix."""
    places = torch.arange(prefix, ids.shape[1] - 1)[None]
    out = model(input_ids=ids[:, prefix:-1], position_ids=places, past_key_values=cache)
    return torch.log_softmax(out.logits[0], -1)


def judge(ours: Tensor, truth: Tensor, targets: Tensor) -> tuple[float, float, float]:
    """Surprise at the text in nats, KL divergence of the exact distribution from ours, same first choice."""
    nll = -ours.gather(1, targets[:, None]).mean().item()
    kl = (truth.exp() * (truth - ours)).sum(-1).mean().item()
    return nll, kl, (ours.argmax(-1) == truth.argmax(-1)).double().mean().item()


@torch.inference_mode()
def measure(*, quick: bool = False) -> Results:
    """The start of each text is cached in full precision; what follows is scored behind each scheme's copy."""
    model: Any
    model, tokenizer = kvlab.hf.load("smollm2-135m")
    prefix, scored = (256, 64) if quick else (1024, 256)
    texts = TEXTS[:1] if quick else TEXTS
    arms = [("16 bits", 16), *((scheme, bits) for scheme in list(SCHEMES)[1:] for bits in BITS)]
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {arm: [] for arm in arms}
    channels: Results = {}
    for name in texts:
        ids = torch.tensor([tokenizer((ROOT / name).read_text())["input_ids"][: prefix + scored]])
        cache: Any = DynamicCache()
        model(input_ids=ids[:, :prefix], past_key_values=cache)
        truth = continuation(model, ids, cache, prefix)
        cache.crop(prefix - cache.get_seq_length())
        for scheme, bits in arms:
            copy, size = through(cache, scheme, bits)
            ours = continuation(model, ids, copy, prefix)
            found[scheme, bits].append((size / prefix, *judge(ours, truth, ids[0, prefix + 1 :])))
        middle = cache.layers[len(cache.layers) // 2]
        channels = channels or {
            "keys": middle.keys[0, 0].abs().mean(0).tolist(),
            "values": middle.values[0, 0].abs().mean(0).tolist(),
        }
    rows: list[Results] = []
    for (scheme, bits), windows in found.items():
        mean_size, nll, kl, top1 = (
            statistics.fmean(column) for column in zip(*windows, strict=True)
        )
        row = {"scheme": scheme, "bits": bits, "bytes_per_token": mean_size, "kl": kl, "top1": top1}
        rows.append({**row, "perplexity": math.exp(nll)})
    loss = {(row["scheme"], row["bits"]): row["kl"] for row in rows}
    if max(loss["per token", 8], loss["KIVI", 8]) > 1e-3:
        raise AssertionError(f"int8 is not close to exact: {loss}")
    if loss["keys per channel", 2] >= loss["keys per token", 2]:
        raise AssertionError(f"2-bit keys are not better per channel than per token: {loss}")
    return {
        "prefix": prefix,
        "scored": scored,
        "texts": list(texts),
        "group": GROUP,
        "residual": RESIDUAL,
        "rows": rows,
        "layer": len(cache.layers) // 2,
        "channels": channels,
    }


def tell(results: Results) -> None:
    """One row an arm."""
    print(
        f"SmolLM2-135M: {results['prefix']} tokens of {len(results['texts'])} texts cached, ",
        end="",
    )
    print(f"the next {results['scored']} scored")
    print(
        f"groups of {results['group']}; the latest {results['residual']} tokens of all but ", end=""
    )
    print("'per token' in 16 bits\n")
    print("scheme               bits   bytes/token   perplexity         KL   same first choice")
    for row in results["rows"]:
        print(f"{row['scheme']:20}{row['bits']:5}{row['bytes_per_token']:14,.0f}", end="")
        print(f"{row['perplexity']:13.3f}{row['kl']:11.1e}{row['top1']:20.1%}")


def draw(results: Results) -> Figure:
    """Size against KL, 2-bit and 4-bit keys by grouping, and why: the size of each channel."""
    figure, (sizes, keys, profile) = panels(3, width=4.2)
    by_scheme: dict[str, list[Results]] = {}
    for row in results["rows"]:
        by_scheme.setdefault(row["scheme"], []).append(row)
    exact_size = by_scheme["16 bits"][0]["bytes_per_token"]
    for scheme in ("per token", "KIVI"):
        rows = by_scheme[scheme]
        at = [row["bytes_per_token"] / 1024 for row in rows]
        sizes.plot(at, [row["kl"] for row in rows], "o-", label=scheme)
        for x, row in zip(at, rows, strict=True):
            sizes.annotate(f"int{row['bits']}", (x, row["kl"]), (4, 4), textcoords="offset points")
    title = f"Size against loss (16 bits: {exact_size / 1024:.1f} KiB)"
    sizes.set(
        yscale="log", xlabel="KiB per token", ylabel="KL to the exact cache, nats", title=title
    )
    sizes.legend()
    names = ("keys per token", "keys per channel", "values per token")
    for place, name in enumerate(names):
        heights = [row["kl"] for row in by_scheme[name]]
        keys.bar([at + 0.27 * (place - 1) for at in range(len(heights))], heights, 0.25, label=name)
    keys.set_xticks(range(len(BITS)), [f"int{bits}" for bits in BITS])
    keys.set(yscale="log", ylabel="KL, nats", title="One half quantised, the other exact")
    keys.legend(fontsize=8)
    for name in ("keys", "values"):
        profile.plot(results["channels"][name], label=name)
    title = f"Why: layer {results['layer']}, head 0"
    profile.set(xlabel="channel", ylabel="mean size over the tokens", title=title)
    profile.legend()
    return figure


def main() -> None:
    """Measures, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
