"""Multi-head latent attention: cache one small vector a token, from which all heads' keys and values follow.

DeepSeek-V2 (arXiv:2405.04434, section 2.1) projects a token down to a latent c of 512 numbers, caches that,
and gives every head its own key and value as K_h = c Uk_h and V_h = c Uv_h. Written out, that saves memory and
costs time: each step expands the whole cache again. But the up-projections can be moved to the other side,

    q_h . K_h = q_h . (c Uk_h) = (q_h Uk_h^T) . c       absorbed into the query
    sum_t w_t V_h,t = (sum_t w_t c_t) Uv_h              and into the output,

so that all heads attend to the latents themselves, as in MQA: one shared "head", 512 wide. One thing does not
fit through a projection: RoPE turns a key by its position, and a turn between q_h and Uk_h would differ from
token to token. Hence the decoupled part: 64 numbers a token with RoPE, one key for all heads, whose scores are added.

    python toys/mla.py [--quick] [--json] [--out mla.svg]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, need, panels

need("torch")

import torch
from kv_heads import attend, bytes_per_token, thread_ms
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shape:
    """What of a model's attention decides about its cache; the defaults are DeepSeek-V2's."""

    layers: int = 60
    width: int = 5120
    heads: int = 128
    latent: int = 512
    nope: int = 128  # of a query's and a key's dimensions those without RoPE
    rope: int = 64  # and those with it
    value: int = 128

    def cached_numbers(self) -> dict[str, int]:
        """Numbers a token and layer: MLA's, and those of key-value heads as wide as `nope`."""
        per_head = bytes_per_token(1, 1, self.nope, element=1)
        names = {"MHA": self.heads, "GQA, 8 kv heads": 8, "MQA": 1}
        rows = {name: heads * per_head for name, heads in names.items()}
        return {**rows, "MLA": self.latent + self.rope}

    def flops(self, new: int, tokens: int) -> dict[str, int]:
        """Multiplications and additions, one layer: `new` tokens attend to all of `tokens` cached ones.

        Counted from the latents on. `expanded once` keeps the keys and values of all heads, as MHA does.
        """
        pair = 2 * self.heads * (self.nope + self.rope + self.value)
        up = 2 * self.heads * self.latent * (self.nope + self.value)
        absorbed_pair = 2 * self.heads * (2 * self.latent + self.rope)
        return {
            "expanded every step": tokens * up + new * tokens * pair,
            "expanded once": new * up + new * tokens * pair,
            "absorbed": new * up + new * tokens * absorbed_pair,
        }


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """RoPE (arXiv:2104.09864): turns pairs of x [..., tokens, dim] by angles that grow with the position."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class LatentAttention:
    """One layer with random weights; the output projection, the same in all forms, is left out.

    A cache is (latents [tokens, latent], rope_keys [tokens, rope]).
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = s = shape

        def weight(rows: int, *columns: int) -> Tensor:
            return torch.randn(rows, *columns).div(rows**0.5)

        self.query = weight(s.width, s.heads, s.nope + s.rope)
        self.down = weight(s.width, s.latent + s.rope)
        self.up_key = weight(s.latent, s.heads, s.nope)
        self.up_value = weight(s.latent, s.heads, s.value)
        self.scale = (s.nope + s.rope) ** -0.5

    def compress(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """What the tokens x [new, width] leave in the cache; the first is at position `first`."""
        latents, rope_keys = torch.split(
            x @ self.down, [self.shape.latent, self.shape.rope], dim=-1
        )
        return latents, turn(rope_keys, torch.arange(first, first + len(x)))

    def queries(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The two parts of the queries [heads, new, nope] and [heads, new, rope]."""
        q = torch.einsum("nw,whd->hnd", x, self.query)
        nope, rope = torch.split(q, [self.shape.nope, self.shape.rope], dim=-1)
        return nope, turn(rope, torch.arange(first, first + len(x)))

    def expand(self, latents: Tensor, rope_keys: Tensor) -> tuple[Tensor, Tensor]:
        """All heads' keys [heads, tokens, nope + rope] and values [heads, tokens, value]."""
        keys = torch.einsum("tl,lhd->htd", latents, self.up_key)
        shared = rope_keys.expand(self.shape.heads, -1, -1)
        return torch.cat([keys, shared], -1), torch.einsum("tl,lhd->htd", latents, self.up_value)

    def naive(self, x: Tensor, latents: Tensor, rope_keys: Tensor) -> Tensor:
        """The definition: expand, then attend as MHA does. Returns [heads, new, value]."""
        return self.attend_expanded(x, *self.expand(latents, rope_keys))

    def attend_expanded(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention over keys and values that are expanded already, as an MHA cache holds them."""
        query = torch.cat(self.queries(x, keys.shape[1] - len(x)), -1)
        return attend(query[None], keys[None], values[None])[0]

    def absorbed(self, x: Tensor, latents: Tensor, rope_keys: Tensor) -> Tensor:
        """The same from the latents alone: no head's keys or values ever exist."""
        new, tokens = len(x), len(latents)
        nope, rope = self.queries(x, tokens - new)
        asked = torch.einsum("hnd,lhd->hnl", nope, self.up_key)
        scores = (asked.flatten(0, 1) @ latents.T + rope.flatten(0, 1) @ rope_keys.T) * self.scale
        future = torch.ones(new, tokens, dtype=torch.bool).triu(tokens - new + 1)
        scores = scores.view(-1, new, tokens).masked_fill(future, -torch.inf)
        mixed = (scores.softmax(-1).flatten(0, 1) @ latents).view(-1, new, self.shape.latent)
        return torch.einsum("hnl,lhd->hnd", mixed, self.up_value)


def decode_row(layer: LatentAttention, tokens: int, rounds: int) -> Results:
    """One token over a cache of `tokens`: the three forms agree, and what each takes."""
    x = torch.randn(tokens, layer.shape.width)
    last = x[-1:]
    latents, rope_keys = layer.compress(x, 0)
    keys, values = layer.expand(latents, rope_keys)
    truth = layer.naive(last, latents, rope_keys)
    error = (layer.absorbed(last, latents, rope_keys) - truth).abs().max().item()
    if error > 1e-4:
        raise AssertionError(
            f"the absorbed form is {error:.1e} off the naive one over {tokens} tokens"
        )
    arms = {
        "expanded every step": lambda: layer.naive(last, latents, rope_keys),
        "expanded once": lambda: layer.attend_expanded(last, keys, values),
        "absorbed": lambda: layer.absorbed(last, latents, rope_keys),
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
    if last["absorbed"]["ms"] >= last["expanded every step"]["ms"]:
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
    print(f"\none token, one layer of {results['timed_heads']} heads, fp32, one thread")
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
        axes.minorticks_off()
    times.legend(fontsize=8)
    return figure


def main() -> None:
    """Checks, measures, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
