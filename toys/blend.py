"""Blending: documents whose KV was cached one by one, put together in an order nobody computed before.

A prefix cache has nothing for documents that come in another order. Their KV can be used all the same,
approximately. Two things are wrong with it: the keys are turned for other positions (see rotation.py),
and no token has seen the documents that now stand in front of its own. What can be recomputed:

- the first tokens of each document, which took the part of an attention sink when it stood alone (EPIC,
  Hu and others, arXiv:2410.15332);
- the 15 % of tokens whose K and V differ most from the cached ones in an early layer, which is computed
  for all to find them (CacheBlend, Yao and others, arXiv:2405.16444).

Against full prefill of the same tokens: KL and agreement of the first choice at a question's tokens.
What is compared stands in blend_arms.py.

    python toys/blend.py [--quick] [--json] [--out blend.svg]
"""

from __future__ import annotations

import random
import statistics
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

from common import Results, arguments, conclude, need, panels

need("torch", "transformers")

import torch
from blend_arms import (
    CONTEXT,
    DOCUMENT_TOKENS,
    DOCUMENTS,
    QUESTION_TOKENS,
    answer,
    arms,
    put_together,
)
from partial_prefill import KV
from rotation import difference, kv_at, kv_of
from transformers import DynamicCache

from kvlab.hf import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def compare(ours: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean KL of the truth against ours, in nats, and the share of tokens where both choose the same."""
    kl = (truth.exp() * (truth - ours)).sum(-1).mean()
    return float(kl), float((ours.argmax(-1) == truth.argmax(-1)).float().mean())


def pick(tokens: list[int], rng: random.Random) -> tuple[list[Tensor], Tensor]:
    """Documents from all over the text, in any order, and a question: how one of them goes on."""
    length = DOCUMENT_TOKENS + QUESTION_TOKENS
    starts = rng.sample(range(0, len(tokens) - length + 1, length), DOCUMENTS)
    asked = rng.choice(starts) + DOCUMENT_TOKENS
    documents = [torch.tensor(tokens[start : start + DOCUMENT_TOKENS]) for start in starts]
    return documents, torch.tensor(tokens[asked : asked + QUESTION_TOKENS])


def trial(
    model: Any, documents: list[Tensor], question: Tensor, rng: random.Random
) -> dict[str, Results]:
    """One order of documents, all arms one after the other."""
    frequencies, layers = model.model.rotary_emb.inv_freq, len(model.model.layers)
    ids = torch.cat([*documents, question])
    each = [kv_at(model, document, 0) for document in documents]
    cached = put_together(each, frequencies, 0)
    turned = put_together(each, frequencies, DOCUMENT_TOKENS)
    cache = DynamicCache(config=model.config)
    theirs = model(ids[None], past_key_values=cache, logits_to_keep=QUESTION_TOKENS).logits[0]
    truth, exact = torch.log_softmax(theirs, -1), KV(*kv_of(cache))
    # Keys of the first layer depend on nothing but their token and its place.
    if difference(turned.keys[0][:, :CONTEXT], exact.keys[0][:, :CONTEXT]) > 1e-4:
        raise AssertionError("re-rotated keys of the first layer are not those of a full prefill")
    rows: dict[str, Results] = {}
    for name, arm in arms(cached, turned, exact, rng).items():
        kv = arm.kv.copy()
        begun = time.perf_counter()
        ours = answer(model, ids, arm, kv)
        seconds = time.perf_counter() - begun
        kl, top1 = compare(ours, truth)
        whole = arm.last_whole + 1 if arm.chosen else layers
        work = whole * (len(arm.at) - QUESTION_TOKENS) + (layers - whole) * arm.chosen
        rows[name] = {"kl": kl, "top1": top1, "work": work / layers / CONTEXT, "seconds": seconds}
    return rows


@torch.inference_mode()
def measure(*, quick: bool = False) -> Results:
    """Several questions over several documents in several orders."""
    model: Any
    model, tokenizer = load("smollm2-135m")
    text = resources.files("kvlab.demo").joinpath("prompts", "agent_prefix.md").read_text()
    tokens, rng = tokenizer(text)["input_ids"], random.Random(7)
    trials = [trial(model, *pick(tokens, rng), rng) for _ in range(2 if quick else 6)]
    rows: dict[str, Results] = {}
    for name in trials[0]:
        column = {key: [one[name][key] for one in trials] for key in trials[0][name]}
        rows[name] = {
            "kl": statistics.fmean(column["kl"]),
            "kl_range": [min(column["kl"]), max(column["kl"])],
            "top1": statistics.fmean(column["top1"]),
            "work": column["work"][0],
            "seconds": statistics.median(column["seconds"]),
        }
    for control in ("full prefill", "truth's own KV"):
        if rows[control]["kl"] > 1e-6:
            raise AssertionError(f"{control}: nothing is approximate, yet KL is {rows[control]}")
    if not rows["as cached"]["kl"] > rows["re-rotated"]["kl"] > rows["15 % by layer 1"]["kl"]:
        raise AssertionError(f"re-rotation and recomputing were expected to help: {rows}")
    shape = {"documents": DOCUMENTS, "document_tokens": DOCUMENT_TOKENS}
    return {**shape, "question_tokens": QUESTION_TOKENS, "trials": len(trials), "arms": rows}


def tell(results: Results) -> None:
    """Prints a row an arm."""
    print("{documents} documents of {document_tokens} tokens, {trials} orders".format(**results))
    print("against a full prefill: work is that of computing the documents, median milliseconds\n")
    print("                     work       KL   top-1       ms")
    for name, row in results["arms"].items():
        print(f"{name:18}{row['work']:7.1%}{row['kl']:9.4f}", end="")
        print(f"{row['top1']:8.1%}{1e3 * row['seconds']:9.0f}")
    kl = {
        name: row["kl"] / results["arms"]["as cached"]["kl"]
        for name, row in results["arms"].items()
    }
    print(f"\nturning the keys, for nothing, leaves {kl['re-rotated']:.0%} of the KL; ", end="")
    print(f"first 16 {kl['first 16']:.0%}, 15 % by layer 1 {kl['15 % by layer 1']:.0%}")


def draw(results: Results) -> Figure:
    """KL over work, and the first choices that stay the same."""
    figure, (left, right) = panels(2, width=5.2)
    rows = {name: row for name, row in results["arms"].items() if row["kl"] > 1e-6}
    for name, row in rows.items():
        left.plot(100 * row["work"], row["kl"], "o", label=name)
    left.set(ylim=(0, None), xlabel="work, % of computing the documents", ylabel="KL, nats")
    left.set(title="What is left to pay, and what it buys")
    left.legend(fontsize=8)
    names = list(rows)[::-1]
    bars = right.barh(names, [100 * (1 - rows[name]["top1"]) for name in names])
    right.bar_label(bars, fmt="%.1f", padding=3)
    right.set(xlabel="first choices that differ, %", title="Against a full prefill")
    return figure


def main() -> None:
    """Blends documents."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
