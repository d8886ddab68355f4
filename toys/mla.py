"""Multi-head latent attention: cache one small vector a token, from which all heads' keys and values follow.

DeepSeek-V2 (arXiv:2405.04434, section 2.1) projects a token down to a latent c of 512 numbers, caches that,
and gives every head its own key and value as K_h = c Uk_h and V_h = c Uv_h. Written out, that saves memory and
costs time: each step expands the whole cache again. But the up-projections can be moved to the other side,

    q_h . K_h = q_h . (c Uk_h) = (q_h Uk_h^T) . c       absorbed into the query
    sum_t w_t V_h,t = (sum_t w_t c_t) Uv_h              and into the output,

so that all heads attend to the latents themselves, as in MQA: one shared "head", 512 wide. One thing does not
fit through a projection: RoPE turns a key by its position, and a turn between q_h and Uk_h would differ from
token to token. Hence the decoupled part: 64 numbers a token with RoPE, one key for all heads, whose scores are added.

What to see: absorbing takes about three times the arithmetic of a cache as large as MHA's, and far fewer bytes.
Behind a long text the bytes are what decoding waits for. Prefill waits for arithmetic: there one expands.

Both forms are in latent_attention.py; what they cost is here.

    python toys/mla.py [--quick] [--json] [--out mla.svg]
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, need, panels

need("torch")

import torch
from latent_attention import LatentAttention, Shape
from timing import thread_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def decode_row(layer: LatentAttention, tokens: int, rounds: int) -> Results:
    """One token over a cache of `tokens`: the three forms agree, and what each takes."""
    x = torch.randn(tokens, layer.shape.width)
    latents, rope_keys = layer.compress(x, 0)
    keys, values = layer.expand(latents, rope_keys)
    query = layer.ask(x[-1:], tokens - 1)
    truth = layer.naive(query, latents, rope_keys)
    error = (layer.absorbed(query, latents, rope_keys) - truth).abs().max().item()
    if error > 1e-4:
        raise AssertionError(
            f"the absorbed form is {error:.1e} off the naive one over {tokens} tokens"
        )
    arms = {
        "expanded every step": lambda: layer.naive(query, latents, rope_keys),
        "expanded once": lambda: layer.attend_expanded(query, keys, values),
        "absorbed": lambda: layer.absorbed(query, latents, rope_keys),
    }
    kept = {"expanded every step": latents.numel() + rope_keys.numel()}
    kept |= {
        "expanded once": keys.numel() + values.numel(),
        "absorbed": kept["expanded every step"],
    }
    flops, times = layer.shape.flops(1, tokens), thread_ms(arms, rounds)
    forms = {
        name: {"ms": times[name], "gflop": flops[name] / 1e9, "cache_mb": kept[name] * 4 / 1e6}
        for name in arms
    }
    return {"tokens": tokens, "error": error, "forms": forms}


@torch.inference_mode()
def measure(*, quick: bool = False) -> Results:
    """Sizes at DeepSeek-V2's shape; times there too, with --quick at 16 of its 128 heads."""
    torch.manual_seed(0)
    published = Shape()
    timed = Shape(width=2048, heads=16) if quick else published
    lengths = (256, 1024) if quick else (256, 512, 1024, 2048, 4096)
    layer = LatentAttention(timed)
    rows = [decode_row(layer, tokens, 2 if quick else 5) for tokens in lengths]
    last = rows[-1]["forms"]
    if not quick and last["absorbed"]["ms"] >= last["expanded every step"]["ms"]:
        raise AssertionError("absorbing did not pay: " + str(last))
    return {
        "shape": asdict(published),
        "bytes_per_token": {
            name: numbers * published.layers * 2
            for name, numbers in published.cached_numbers().items()
        },
        "timed_heads": timed.heads,
        "decode": rows,
        "prefill_tokens": 4096,
        "prefill_gflop": {name: n / 1e9 for name, n in published.flops(4096, 4096).items()},
    }


def tell(results: Results) -> None:
    """Sizes, then what a decoded token costs in each form, then why prefill does not absorb."""
    shape = results["shape"]
    print(f"DeepSeek-V2's shape, {shape['layers']} layers of {shape['heads']} heads, 16 bit")
    for name, size in results["bytes_per_token"].items():
        print(f"  {name:16}{size:12,} bytes/token")
    print(f"\none token's attention, one layer of {results['timed_heads']} heads, fp32, one thread")
    print("  tokens   form                   cache MB      GFLOP         ms")
    for row in results["decode"]:
        for name, form in row["forms"].items():
            print(f"{row['tokens']:8}   {name:20}{form['cache_mb']:11.1f}", end="")
            print(f"{form['gflop']:11.3f}{form['ms']:11.2f}")
    worst = max(row["error"] for row in results["decode"])
    print(f"absorbed and naive agree within {worst:.1e}")
    prefill = results["prefill_gflop"]
    print(f"\nprefill of {results['prefill_tokens']} tokens, one layer: ", end="")
    print(f"{prefill['expanded once']:,.0f} GFLOP expanded, {prefill['absorbed']:,.0f} absorbed")


def draw(results: Results) -> Figure:
    """Bytes a token, and the time and work of a decoded token by length."""
    figure, (sizes, times, work) = panels(3, width=4.2)
    names = list(results["bytes_per_token"])
    bars = sizes.bar(names, [size / 1024 for size in results["bytes_per_token"].values()])
    sizes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    sizes.tick_params("x", labelsize=8)
    sizes.set(yscale="log", ylabel="KiB per token (16 bit)", title="Cache at DeepSeek-V2's shape")
    tokens = [row["tokens"] for row in results["decode"]]
    for name in results["decode"][0]["forms"]:
        forms = [row["forms"][name] for row in results["decode"]]
        times.plot(tokens, [form["ms"] for form in forms], "o-", label=name)
        work.plot(tokens, [form["gflop"] for form in forms], "o-", label=name)
    heads = results["timed_heads"]
    times.set(ylabel="ms, one thread", title=f"One decoded token, a layer of {heads} heads")
    work.set(ylabel="GFLOP", title="The arithmetic of the same")
    for axes in (times, work):
        axes.set(xscale="log", yscale="log", xlabel="tokens in the cache")
        axes.set_xticks(tokens, [str(each) for each in tokens])
        axes.xaxis.minorticks_off()
    times.legend(fontsize=8)
    return figure


def main() -> None:
    """Checks, measures, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
