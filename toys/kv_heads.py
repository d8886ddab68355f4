"""Key-value heads: MHA, GQA and MQA are one attention, and the cache shrinks with its heads.

Every query head asks a question of its own, but not every one needs keys and values of its own. With H
query heads and G key-value heads, H/G query heads share one key and one value per token:

    G = H      multi-head attention (MHA)      Vaswani et al. 2017, arXiv:1706.03762
    1 < G < H  grouped-query attention (GQA)   Ainslie et al. 2023, arXiv:2305.13245
    G = 1      multi-query attention (MQA)     Shazeer 2019, arXiv:1911.02150

Only keys and values are cached, so the cache holds 2 * layers * G * head_dim numbers a token: H does not
occur. The multiplications stay the same (every query head still meets every token), the bytes read for
them do not: where decoding waits for memory it becomes faster, until the multiplications are what it waits for.

The attention is grouped_attention.py; what it costs is here.

    python toys/kv_heads.py [--quick] [--json] [--out kv_heads.svg]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import Results, arguments, conclude, need, panels

need("torch")

import torch
from grouped_attention import Attention, attend, bytes_per_token
from timing import thread_ms
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

HEADS, HEAD_DIM = 32, 128  # an 8B model's attention, one layer of it
# Published configurations: layers, query heads, key-value heads, head dimension.
MODELS = {
    "Llama-2-7B (MHA)": (32, 32, 32, 128),
    "Llama-3.1-8B (GQA)": (32, 32, 8, 128),
    "Qwen2.5-7B (GQA)": (28, 28, 4, 128),
    "SmolLM2-135M (GQA)": (30, 9, 3, 64),
    "Falcon-7B (MQA)": (32, 71, 1, 64),
}


@torch.inference_mode()
def decode_times(tokens: int, rounds: int) -> list[Results]:
    """One decoded token's attention in one layer, by key-value heads; as it is, and with K and V repeated first."""
    query = torch.randn(1, HEADS, 1, HEAD_DIM)
    rows = []
    caches = {
        heads: (torch.randn(1, heads, tokens, HEAD_DIM), torch.randn(1, heads, tokens, HEAD_DIM))
        for heads in (32, 16, 8, 4, 2, 1)
    }

    def repeated(kv: Tensor) -> Tensor:
        share = HEADS // kv.shape[1]
        return kv if share == 1 else kv.repeat_interleave(share, 1)

    arms: dict[str, Callable[[], object]] = {}
    for heads, kv in caches.items():
        arms[f"{heads} grouped"] = lambda kv=kv: attend(query, *kv)  # type: ignore[misc]
        arms[f"{heads} repeated"] = lambda kv=kv: attend(query, *map(repeated, kv))  # type: ignore[misc]
    times = thread_ms(arms, rounds, least_ms=10)
    for heads in caches:
        read = bytes_per_token(1, heads, HEAD_DIM, element=4) * tokens
        grouped = times[f"{heads} grouped"]
        rows.append(
            {
                "n_kv_heads": heads,
                "cache_mb": read / 1e6,
                "grouped_ms": grouped,
                "repeated_ms": times[f"{heads} repeated"],
                "grouped_gb_per_s": read / grouped / 1e6,
            }
        )
    return rows


@torch.inference_mode()
def largest_error() -> float:
    """Ours against torch's own, for MHA, GQA and MQA; and token by token through the cache against all at once."""
    worst = 0.0
    for heads, new, tokens in [(h, n, 96) for h in (12, 4, 1) for n in (96, 1)]:
        query = torch.randn(2, 12, new, 64)
        key, value = torch.randn(2, 2, heads, tokens, 64)
        theirs = functional.scaled_dot_product_attention(
            query, key, value, is_causal=new > 1, enable_gqa=True
        )
        worst = max(worst, (attend(query, key, value) - theirs).abs().max().item())
    for heads in (12, 4, 1):
        layer, x = Attention(768, 12, heads), torch.randn(1, 32, 768)
        whole = layer(x)
        layer.cached = layer.cached[..., :0, :]
        stepped = torch.cat([layer(x[:, at : at + 1]) for at in range(32)], dim=1)
        worst = max(worst, (stepped - whole).abs().max().item())
    return worst


def measure(*, quick: bool = False) -> Results:
    """The check against torch, the sizes, and the times at one length."""
    torch.manual_seed(0)
    error = largest_error()
    if error > 1e-5:
        raise AssertionError(f"our attention is {error:.1e} off torch's, more than 1e-5")
    tokens = 2048 if quick else 8192
    models = [
        {
            "model": name,
            "n_heads": heads,
            "n_kv_heads": kv,
            "bytes_per_token": size,
            "mha_bytes": mha,
        }
        for name, (layers, heads, kv, dim) in MODELS.items()
        for size, mha in [(bytes_per_token(layers, kv, dim), bytes_per_token(layers, heads, dim))]
    ]
    times = decode_times(tokens, 3 if quick else 11)
    many, one = times[0]["grouped_ms"], times[-1]["grouped_ms"]
    if not quick and one >= many:
        raise AssertionError(f"1 key-value head took {one:.2f} ms, {HEADS} took {many:.2f} ms")
    return {"largest_error": error, "models": models, "tokens": tokens, "times": times}


def tell(results: Results) -> None:
    """Two tables: what models keep, and what a decoded token waits for."""
    print(f"equal to torch's attention within {results['largest_error']:.1e}\n")
    print("model                query heads   kv heads   bytes/token (16 bit)   as MHA")
    for row in results["models"]:
        print(f"{row['model']:20}{row['n_heads']:12}{row['n_kv_heads']:11}", end="")
        print(f"{row['bytes_per_token']:23,}{row['mha_bytes']:9,}")
    print(
        f"\none token over {results['tokens']:,} cached, {HEADS} query heads, one layer, fp32, one thread"
    )
    print("kv heads   cache MB   ms   read GB/s   ms if K and V are repeated for each query head")
    for row in results["times"]:
        print(f"{row['n_kv_heads']:8}{row['cache_mb']:11.1f}{row['grouped_ms']:7.2f}", end="")
        print(f"{row['grouped_gb_per_s']:8.1f}{row['repeated_ms']:12.2f}")


def draw(results: Results) -> Figure:
    """Bytes a token by model, and time a token by key-value heads."""
    figure, (sizes, times) = panels(2)
    names = [row["model"] for row in results["models"]]
    for key, label, colour in (
        ("mha_bytes", "if every query head had its own", "0.85"),
        ("bytes_per_token", "as it is", "C0"),
    ):
        sizes.barh(names, [row[key] / 1024 for row in results["models"]], label=label, color=colour)
    sizes.invert_yaxis()
    sizes.set(xlabel="KV cache, KiB per token (16 bit)", title="What a token costs in the cache")
    sizes.legend(loc="lower right", fontsize=8)
    heads = [row["n_kv_heads"] for row in results["times"]]
    for key, label in (("repeated_ms", "K and V repeated first"), ("grouped_ms", "grouped")):
        times.plot(heads, [row[key] for row in results["times"]], "o-", label=label)
    times.set_xscale("log", base=2)
    times.set_xticks(heads, [str(each) for each in heads])
    times.set(
        xlabel=f"key-value heads ({HEADS} query heads)",
        ylabel="ms per token and layer",
        yscale="log",
        title=f"Decode attention over {results['tokens']:,} tokens",
    )
    times.legend()
    return figure


def main() -> None:
    """Checks, measures, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
