"""Attention sinks: a text without end in a cache of fixed size, if the first few tokens stay.

The obvious cache of fixed size keeps the last tokens and drops the oldest. The model falls apart the moment
the very first token goes, however little that token says. StreamingLLM (arXiv:2309.17453) found why: softmax
must spend its weight somewhere, and heads that have nothing to look for learned to spend it on the first
tokens, which every later one sees. Keep those (the sinks) beside the window, and the model goes on: not as well
as with the full cache, for what fell out of the window is forgotten. The paper keeps 4; here one is enough.

Positions are those inside the cache, not those in the text: a sink stays just in front of the window,
however far behind the text has left it. RoPE knows only distances (a score depends on query position minus
key position), so instead of giving all tokens new positions, we leave the window as it is and turn the sinks
after it.

The same idea stands twice in streaming_cache.py: as a mask over a whole text, to score it in one pass, and as a
cache that really drops tokens, to generate with. A test holds them equal.

    python toys/sinks.py [--quick] [--json] [--out sinks.svg]
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Results, arguments, conclude, need, panels

need("torch", "transformers")

import torch
from streaming_cache import generate, score, streaming_cache
from transformers import DynamicCache

import kvlab.hf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("docs/design.md", "docs/policy-lab.md", "docs/format.md")
SINKS = (0, 1, 2, 4, 8)
BIN = 128  # tokens a point of the curve


@torch.inference_mode()
def measure(*, quick: bool = False) -> Results:
    """Perplexity by position for each number of sinks and for the full cache; what three of them write."""
    model: Any
    model, tokenizer = kvlab.hf.load("smollm2-135m")
    size, length = (96, 320) if quick else (256, 1536)
    texts, counts = (TEXTS[:1], (0, 1, 4)) if quick else (TEXTS, SINKS)
    windows = [
        torch.tensor([tokenizer((ROOT / name).read_text())["input_ids"][:length]]) for name in texts
    ]
    rows: list[Results] = []
    arms = [("full cache", 0, length), *((f"{count} sinks", count, size) for count in counts)]
    for name, sinks, room in arms:
        scored = [score(model, ids, sinks, room) for ids in windows]
        nll = torch.stack([each for each, _ in scored]).mean(0)
        rows.append(
            {
                "arm": name,
                "cached": room,
                "perplexity_past": math.exp(nll[size:].mean()),
                "by_position": [math.exp(part.mean()) for part in torch.split(nll, BIN)],
                "weight_of_first": statistics.fmean(weight for _, weight in scored),
            }
        )
    full, window, *kept = (row["perplexity_past"] for row in rows)
    if max(full, *kept) >= 0.8 * window:
        raise AssertionError(f"sinks did not help: {[row['perplexity_past'] for row in rows]}")
    # A short cache drops the first token soon, so that reading token by token does not take long.
    prompt, small = windows[0][:, : 24 if quick else 192], 16 if quick else 128
    caches = {
        "full cache": DynamicCache(),
        "0 sinks": streaming_cache(model, 0, small),
        "4 sinks": streaming_cache(model, 4, small),
    }
    written = {
        name: tokenizer.decode(generate(model, prompt, cache, 8 if quick else 48))
        for name, cache in caches.items()
    }
    return {
        "size": size,
        "length": length,
        "texts": list(texts),
        "bin": BIN,
        "arms": rows,
        "generated": {"prompt_tokens": prompt.shape[1], "size": small, "text": written},
    }


def tell(results: Results) -> None:
    """The table over sink counts, and the texts."""
    print(f"SmolLM2-135M over {results['length']} tokens of each of {', '.join(results['texts'])}")
    print(f"perplexity behind token {results['size']}, from where on the small caches are full")
    for row in results["arms"]:
        print(f"  {row['arm']:12}{row['cached']:6} tokens cached{row['perplexity_past']:10.2f}")
    share = results["arms"][0]["weight_of_first"]
    print(f"the first token gets {share:.0%} of the second half's attention if it is there,")
    print("over all layers and heads of the full cache")
    made = results["generated"]
    print(f"\nread {made['prompt_tokens']} tokens through a cache of {made['size']}, then wrote:")
    for name, text in made["text"].items():
        print(f"  {name}: {text!r}")


def draw(results: Results) -> Figure:
    """Perplexity by position and by the number of sinks."""
    figure, (curve, bars) = panels(2)
    for row in results["arms"]:
        if row["arm"] not in ("full cache", "0 sinks", "4 sinks"):
            continue
        middle = [results["bin"] * (place + 0.5) for place in range(len(row["by_position"]))]
        curve.plot(middle, row["by_position"], ".-", label=row["arm"])
    curve.axvline(results["size"], color="0.5", linestyle=":")
    title = f"A cache of {results['size']} tokens (full at the dotted line)"
    curve.set(xlabel="position in the text", ylabel="perplexity", yscale="log", title=title)
    curve.legend(fontsize=8)
    names = [row["arm"].replace(" ", "\n") for row in results["arms"]]
    drawn = bars.bar(names, [row["perplexity_past"] for row in results["arms"]])
    bars.bar_label(drawn, fmt="{:.1f}")
    bars.set(ylabel="perplexity once the cache is full", title="How many sinks it takes")
    return figure


def main() -> None:
    """Scores, generates, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
