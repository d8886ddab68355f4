"""Generation with and without a KV cache: the same tokens, at very different cost.

A model predicts one token after all tokens it is given. To write a text it is asked again and again.
Naively every step runs the whole text through the model, though of all tokens but the newest the keys
and values come out as they did the step before: under a causal mask they cannot depend on what follows.
Kept in a cache, they leave one token to compute a step.

A cached step is not free of the length all the same. Its linear layers see one token, whatever the
length; but its attention reads the keys and values of all of them. Both parts are timed apart here.

Source: Pope et al., "Efficiently Scaling Transformer Inference", 2022 (https://arxiv.org/abs/2211.05102).

    python toys/generation.py [--quick] [--json] [--out generation.svg]
"""

from __future__ import annotations

import time
from statistics import linear_regression, median
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, need, panels

need("torch", "transformers")

import torch
from stepping import Model, SmolLM2, Toy
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def most_likely(logits: Tensor) -> Tensor:
    """Greedy choice: the token with the highest score, `[1, 1]`."""
    return logits.argmax().view(1, 1)


def generate_naive(model: Model, ids: Tensor, count: int) -> list[int]:
    """So many tokens after the prompt `[1, n]`; each step runs the whole text."""
    start = ids.shape[1]
    for _ in range(count):
        logits, _ = model.logits(ids)
        ids = torch.cat([ids, most_likely(logits)], dim=1)
    return ids[0, start:].tolist()


def generate_cached(model: Model, ids: Tensor, count: int) -> list[int]:
    """The same tokens; the first step runs the prompt, the others one token each."""
    cache, written = model.empty(ids.shape[1] + count), []
    for _ in range(count):
        logits, cache = model.logits(ids, cache)
        ids = most_likely(logits)
        written.append(int(ids))
    return written


def check_same(model: Model, prompt: int, count: int) -> int:
    """How many tokens both ways wrote; raises unless they are the same ones."""
    ids = model.tokens(prompt)
    naive, cached = (generate(model, ids, count) for generate in (generate_naive, generate_cached))
    if naive != cached:
        raise AssertionError(f"with a cache other tokens are written: {naive} and {cached}")
    return len(cached)


def latency(model: Model, tokens: int, rounds: int, naive_rounds: int) -> Results:
    """Median seconds of a step after so many tokens, naive and cached, taken in turns."""
    ids = model.tokens(tokens)
    _, cache = model.logits(ids[:, :-1], model.empty(tokens + rounds))
    taken: dict[str, list[float]] = {"naive": [], "cached": [], "attention": []}
    for turn in range(rounds + 1):
        before, begun = model.attention_seconds, time.perf_counter()
        logits, cache = model.logits(ids[:, -1:], cache)
        taken["cached"].append(time.perf_counter() - begun)
        if before is not None and model.attention_seconds is not None:
            taken["attention"].append(model.attention_seconds - before)
        if turn <= naive_rounds:
            begun = time.perf_counter()
            whole, _ = model.logits(ids)
            taken["naive"].append(time.perf_counter() - begun)
            if whole.argmax() != logits.argmax():
                raise AssertionError(f"after {ids.shape[1]} tokens the cache changes the token")
        ids = torch.cat([ids, most_likely(logits)], dim=1)
    # Each arm's first turn warms it up.
    return {
        "tokens": tokens,
        **{arm: median(seconds[1:]) for arm, seconds in taken.items() if seconds},
    }


@torch.no_grad()
def measure(*, quick: bool = False) -> Results:
    """Both models: the same tokens first, then the time of a step at lengths that double."""
    rounds, naive_rounds = (5, 1) if quick else (24, 3)
    with torch.enable_grad():
        toy = Toy(steps=2 if quick else 20)
    toy_lengths = [64, 960] if quick else [64, 128, 256, 512, 960]
    real = SmolLM2()
    lengths = [64, 768] if quick else [64, 128, 256, 512, 1024, 2048, 4096]
    same = {
        "toy": check_same(toy, 32, 64 if quick else 256),
        "smollm2": check_same(real, 32, 12 if quick else 48),
    }
    rows = [latency(real, tokens, rounds, naive_rounds) for tokens in lengths]
    first, last = rows[0], rows[-1]
    if not quick and last["naive"] < 3 * last["cached"]:
        raise AssertionError(f"a naive step must cost several cached ones: {last}")
    if not quick and last["attention"] <= first["attention"]:
        raise AssertionError(f"attention over a longer cache must take longer: {first}, {last}")
    fit = linear_regression(lengths, [row["attention"] for row in rows])
    kv_bytes = real.layout.bytes_per_token
    return {
        "same_tokens": same,
        "toy": [latency(toy, tokens, rounds, naive_rounds) for tokens in toy_lengths],
        "smollm2": rows,
        "kv_bytes_per_token": kv_bytes,
        "attention_fit": {"seconds": fit.intercept, "seconds_per_token": fit.slope},
        "attention_bytes_per_second": kv_bytes / fit.slope,
    }


def tell(results: Results) -> None:
    """Prints the tables, and what makes the cached curve rise."""
    same = results["same_tokens"]
    print(f"the same tokens with and without a cache: {same['smollm2']} of SmolLM2-135M, ", end="")
    print(f"{same['toy']} of the toy model (fp32)\n")
    print("time of one more token, ms\n")
    print("            tokens before    naive   cached   of it attention   naive / cached")
    for name, label in (("smollm2", "SmolLM2-135M"), ("toy", "toy model")):
        for row in results[name]:
            part = f"{1e3 * row['attention']:18.2f}" if "attention" in row else " " * 18
            print(f"{label:12}{row['tokens']:13}{1e3 * row['naive']:9.1f}", end="")
            print(f"{1e3 * row['cached']:9.2f}{part}{row['naive'] / row['cached']:16.1f}")
    first, last = results["smollm2"][0], results["smollm2"][-1]
    rest = [1e3 * (row["cached"] - row["attention"]) for row in (first, last)]
    attention = [1e3 * row["attention"] for row in (first, last)]
    print(
        f"\nfrom {first['tokens']} to {last['tokens']} tokens, of a cached step attention goes ",
        end="",
    )
    print(f"from {attention[0]:.1f} to {attention[1]:.1f} ms, ", end="")
    print(f"all else from {rest[0]:.1f} to {rest[1]:.1f} ms:")
    slope = results["attention_fit"]["seconds_per_token"]
    print(f"{1e6 * slope:.2f} us for each token in the cache, which has ", end="")
    print(f"{results['kv_bytes_per_token']:,} bytes of keys and values to read: ", end="")
    print(f"{results['attention_bytes_per_second'] / 1e9:.1f} GB/s")


def draw(results: Results) -> Figure:
    """Time of a step against length: both ways, and the parts of a cached step."""
    figure, (left, right) = panels(2)
    rows = results["smollm2"]
    for name, label, line in (("smollm2", "SmolLM2-135M", "-"), ("toy", "toy model", ":")):
        tokens = [row["tokens"] for row in results[name]]
        for arm, colour in (("naive", "C3"), ("cached", "C0")):
            took = [1e3 * row[arm] for row in results[name]]
            left.plot(tokens, took, "o" + line, color=colour, ms=4, label=f"{label}, {arm}")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    tokens = [row["tokens"] for row in rows]
    left.set_xticks(tokens, [str(count) for count in tokens])
    left.set(title="One more token", xlabel="tokens before it", ylabel="ms")
    left.legend(fontsize=8)
    attention = [1e3 * row["attention"] for row in rows]
    rest = [1e3 * (row["cached"] - row["attention"]) for row in rows]
    labels = ["all else: one token's work", "attention: reads the whole cache"]
    right.stackplot(tokens, rest, attention, labels=labels, colors=["#bbb", "C0"], alpha=0.8)
    right.set(title="A cached step of SmolLM2-135M", xlabel="tokens in the cache", ylabel="ms")
    right.set_ylim(0, 1.35 * max(1e3 * row["cached"] for row in rows))
    right.legend(loc="upper left")
    return figure


def main() -> None:
    """Generates, measures and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
