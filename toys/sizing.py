"""Sizing: where the KV cache of an 8B model outgrows the model itself.

Every token leaves a key and a value in every layer: 2 * layers * KV heads * head dimension elements.
For Llama-3.1-8B in bfloat16 that is 128 KiB a token, against 16 GB of weights that all requests
share. The weights are paid once; the cache is paid by batch times length, and at some product of
the two it is the larger part. Its heads are shared by four query heads each (grouped queries, GQA);
with a KV head for every query head the product would be a quarter of it.

The sizes are those of `kvlab size --model llama-3.1-8b --batch 16 --seq-len 8192`.
Source of the shape: Grattafiori et al., "The Llama 3 Herd of Models", 2024
(https://arxiv.org/abs/2407.21783).

    python toys/sizing.py [--quick] [--json] [--out sizing.svg]
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, panels

from kvlab.sizing import ModelShape, kv_size, shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = "llama-3.1-8b"
QUERY_HEADS = 32  # with as many KV heads it would be multi-head attention
LONGEST = 131_072  # tokens: what the model is made for


def crossover(shape: ModelShape, batch: int) -> int:
    """The shortest length at which `batch` sequences' cache is larger than the weights."""
    length = kv_size(shape, batch=batch).crossover_seq_len
    if length is None:
        raise AssertionError(f"{shape} has no number of parameters")
    for tokens, larger in ((length, True), (length - 1, False)):
        size = kv_size(shape, batch=batch, seq_len=max(1, tokens))
        if size.weight_bytes is None or (size.kv_bytes > size.weight_bytes) != larger:
            raise AssertionError(f"batch {batch}: {tokens} tokens are not at the crossover: {size}")
    return length


def measure(*, quick: bool = False) -> Results:
    """Sizes over a grid of lengths and batches, and the crossover for each batch."""
    shape = shape_of(MODEL)
    shared = replace(shape, kv_heads=QUERY_HEADS)
    batches = [1, 8, 64] if quick else [1, 4, 16, 64, 256]
    lengths = [LONGEST >> step for step in reversed(range(9))]
    one = kv_size(shape)
    return {
        "model": MODEL,
        "kv_bytes_per_token": one.kv_bytes_per_token,
        "weight_bytes": one.weight_bytes,
        "crossover_tokens": one.crossover_tokens,
        "lengths": lengths,
        "batches": batches,
        "kv_bytes": [
            [kv_size(shape, batch=batch, seq_len=length).kv_bytes for length in lengths]
            for batch in batches
        ],
        "crossover": [crossover(shape, batch) for batch in batches],
        "crossover_without_gqa": [crossover(shared, batch) for batch in batches],
    }


def tell(results: Results) -> None:
    """Prints the sizes and the crossovers."""
    gib = 2**30
    print(
        f"{results['model']}, bfloat16: {results['kv_bytes_per_token'] / 2**10:.0f} KiB a token, ",
        end="",
    )
    print(f"weights of {results['weight_bytes'] / gib:.1f} GiB; ", end="")
    print(f"the cache is larger from {results['crossover_tokens']:,} tokens in all\n")
    print("KV cache in GiB; * is more than the weights\n")
    chosen = results["lengths"][::2]
    print("batch" + "".join(f"{length:>9,} " for length in chosen) + "   crossover   without GQA")
    for row, batch in enumerate(results["batches"]):
        print(f"{batch:5}", end="")
        for size in results["kv_bytes"][row][::2]:
            print(f"{size / gib:9.1f}" + ("*" if size > results["weight_bytes"] else " "), end="")
        print(f"{results['crossover'][row]:12,}{results['crossover_without_gqa'][row]:14,}")


def draw(results: Results) -> Figure:
    """Size against length for each batch, and the border between the two regions."""
    figure, (left, right) = panels(2)
    gib = 2**30
    batches, lengths = results["batches"], results["lengths"]
    for batch, sizes in zip(batches, results["kv_bytes"], strict=True):
        left.plot(lengths, [size / gib for size in sizes], "o-", ms=3, label=f"batch {batch}")
    left.axhline(results["weight_bytes"] / gib, color="black", linestyle="--")
    left.annotate("weights", (lengths[0], results["weight_bytes"] / gib * 0.6))
    left.set(title="KV cache of Llama-3.1-8B", xlabel="tokens of each sequence", ylabel="GiB")
    right.plot(batches, results["crossover"], "o-", label="8 KV heads (GQA)")
    right.plot(batches, results["crossover_without_gqa"], "s--", label="32 KV heads")
    right.fill_between(batches, results["crossover"], 2 * LONGEST, alpha=0.12)
    right.annotate("cache larger", (0.62, 0.8), xycoords="axes fraction")
    right.annotate("weights larger", (0.06, 0.36), xycoords="axes fraction")
    right.axhline(LONGEST, color="gray", linestyle=":")
    right.annotate("the model's longest", (batches[-1], LONGEST * 1.1), ha="right", color="gray")
    right.set(
        title="Where it outgrows the weights", xlabel="batch", ylabel="tokens of each sequence"
    )
    right.set_ylim(min(results["crossover_without_gqa"]) / 2, 2 * LONGEST)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    left.legend(loc="lower right", fontsize=8)
    right.legend(loc="lower left", fontsize=8)
    left.set_xticks(lengths[::2], [f"{length:,}" for length in lengths[::2]])
    right.set_xticks(batches, [str(batch) for batch in batches])
    return figure


def main() -> None:
    """Sizes, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
