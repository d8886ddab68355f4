"""RoPE re-rotation: a cached key moves to another position without its token being computed again.

RoPE (rope.py) turns queries and keys by their positions. Turning by p and then by q - p is turning by q,
so a key that was cached at p is, turned once more, the key of the same token at q. Values are not turned.

That is exact for what the token itself contributes, and for a chunk that is moved as a whole: its
tokens keep their distances, and a score depends on nothing else. It does not bring in what the chunk
would have seen in front of it at its new place: that is blend.py.

    python toys/rotation.py [--quick] [--json] [--out rotation.svg]
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from common import Results, arguments, conclude, need, panels

need("torch", "transformers")

import torch
from rope import rotate
from transformers import DynamicCache

from kvlab.hf import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

CHUNK = 96
SHIFTS = (1, 8, 64, 512, 2048, 8000)  # the model knows 8,192 positions
MOVES = (1, 4, 16, 64, 256)


def kv_of(cache: Any) -> tuple[Tensor, Tensor]:
    """K and V `[layers, heads, tokens, dim]` of a cache of transformers with one sequence."""
    keys = torch.cat([layer.keys for layer in cache.layers])
    return keys, torch.cat([layer.values for layer in cache.layers])


def kv_at(model: Any, ids: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """K and V of `ids [tokens]` alone, the first one at position `first`."""
    cache = DynamicCache(config=model.config)
    places = torch.arange(first, first + len(ids))[None]
    model.model(ids[None], position_ids=places, past_key_values=cache)
    return kv_of(cache)


def difference(rows: Tensor, truth: Tensor) -> float:
    """The length of the difference by the length of the truth, over all layers, heads and tokens."""
    return float((rows.double() - truth.double()).norm() / truth.double().norm())


def moved_often(keys: Tensor, times: int, frequencies: Tensor) -> float:
    """What rounding does to keys that are moved on by one position, `times` times."""
    truth = rotate(keys.float(), times, frequencies)
    for _ in range(times):
        keys = rotate(keys, 1, frequencies)
    return difference(keys, truth)


@torch.inference_mode()
def measure(*, quick: bool = False) -> Results:
    """Moves a chunk's keys from position 0 and compares them with the keys that the model computes there."""
    model: Any
    model, tokenizer = load("smollm2-135m")
    text = resources.files("kvlab.demo").joinpath("prompts", "agent_prefix.md").read_text()
    ids = torch.tensor(tokenizer(text)["input_ids"][:CHUNK])
    frequencies = model.model.rotary_emb.inv_freq
    keys, values = kv_at(model, ids, 0)
    shifts: list[Results] = []
    for shift in SHIFTS[::2] if quick else SHIFTS:
        there, values_there = kv_at(model, ids, shift)
        moved = rotate(keys, shift, frequencies)
        row: Results = {
            "shift": shift,
            "turned": difference(moved, there),
            "left_alone": difference(keys, there),
            "values": difference(values, values_there),
        }
        shifts.append(row)
        if row["turned"] > 1e-3 or row["values"] > 1e-3:
            message = (
                f"keys turned by {shift}, or values, are not those that the model computes: {row}"
            )
            raise AssertionError(message)
    moves = [
        {
            "times": times,
            "float32": moved_often(keys, times, frequencies),
            "bfloat16": moved_often(keys.bfloat16(), times, frequencies),
        }
        for times in (MOVES[::2] if quick else MOVES)
    ]
    if moves[-1]["bfloat16"] < 2 * moves[0]["bfloat16"]:
        message = f"rounding was expected to add up with every move in bfloat16: {moves}"
        raise AssertionError(message)
    return {"chunk_tokens": CHUNK, "layers": len(keys), "shifts": shifts, "moves": moves}


def tell(results: Results) -> None:
    """Prints both tables."""
    print(f"a chunk of {results['chunk_tokens']} tokens, computed at position 0, moved; all layers")
    print("difference from what the model computes there, by its size:")
    print("   moved by   keys turned   keys left alone    values")
    for row in results["shifts"]:
        print(
            f"{row['shift']:11}{row['turned']:14.1e}{row['left_alone']:18.2f}{row['values']:10.1e}"
        )
    print("\nmoved by 1 so many times, against once by the sum:")
    print("      times       float32      bfloat16")
    for row in results["moves"]:
        print(f"{row['times']:11}{row['float32']:14.1e}{row['bfloat16']:14.1e}")
    print("so: turn what was stored by the whole distance; do not store what was turned")


def draw(results: Results) -> Figure:
    """The difference over the distance, and over the number of moves."""
    figure, (left, right) = panels(2)
    distances = [row["shift"] for row in results["shifts"]]
    for name, label in (("left_alone", "left alone"), ("turned", "turned")):
        left.plot(distances, [row[name] for row in results["shifts"]], "o-", label=f"keys {label}")
    left.set(xscale="log", yscale="log", xlabel="positions moved", title="A chunk moved as a whole")
    left.set(ylabel="difference from keys computed there")
    times = [row["times"] for row in results["moves"]]
    for name in ("bfloat16", "float32"):
        right.plot(times, [row[name] for row in results["moves"]], "o-", label=name)
    right.set(xscale="log", yscale="log", xlabel="times moved", title="Moved again and again")
    left.legend()
    right.legend()
    return figure


def main() -> None:
    """Moves keys."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
