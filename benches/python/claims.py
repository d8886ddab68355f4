"""Claims about KV caches that are cheap to check: what fp16 and gzip save, how large a cache is, how fast a hash.

Sizes and counts do not depend on the machine. Times do: `--times` adds them, for a quiet machine. docs/claims.md has
the verdicts, from artifacts/claims/claims.json, which is this program's `--json`.

The recipe of the first claim: cast K and V to float16, `torch.save` both, gzip. It is taken apart here into what the
cast saves, what the container costs and what gzip saves of the rest; beside it what a lossless coder gets of bfloat16
when the bytes of one significance lie together.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import statistics
import tempfile
import zlib
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import kvlab
from kvlab import hf
from kvlab.demo.prompt import prompt
from kvlab.sizing import kv_size, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "smollm2-135m"
LEVEL = 9  # gzip's default in Python, which the recipe takes
LENGTHS = (128, 2_048, 16_384)
BLOCK_TOKENS = 16


def cache_of(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of a prompt, each `[layers, heads, tokens, dim]` float32."""
    with torch.inference_mode():
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    return (
        torch.stack([layer.keys[0] for layer in layers]).float(),
        torch.stack([layer.values[0] for layer in layers]).float(),
    )


def planes(tensor: torch.Tensor) -> bytes:
    """The bytes of a 16-bit tensor, the high ones together and the low ones together."""
    pairs = tensor.contiguous().view(torch.uint8).numpy().reshape(-1, 2)
    return np.ascontiguousarray(pairs.T).tobytes()


def plain(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor as they lie."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def saved(keys: torch.Tensor, values: torch.Tensor) -> bytes:
    """Both as `torch.save` writes them."""
    file = io.BytesIO()
    torch.save({"k": keys, "v": values}, file)
    return file.getvalue()


def compression(model: Any, texts: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Bytes of each arm, over what the same KV takes in float32."""
    rows = []
    for name, ids in texts.items():
        keys, values = cache_of(model, ids)
        both = (keys, values)
        raw = sum(each.nbytes for each in both)
        half = [each.to(torch.float16) for each in both]
        brain = [each.to(torch.bfloat16) for each in both]
        recipe = gzip.compress(saved(*half), LEVEL)
        arms = {
            "float32": raw,
            "float32, gzip": sum(len(gzip.compress(plain(each), LEVEL)) for each in both),
            "float16": sum(each.nbytes for each in half),
            "float16, saved": len(saved(*half)),
            "float16, saved, gzip": len(recipe),
            "bfloat16": sum(each.nbytes for each in brain),
            "bfloat16, gzip": sum(len(gzip.compress(plain(each), LEVEL)) for each in brain),
            "bfloat16, byte planes, zlib": sum(
                len(zlib.compress(planes(each), LEVEL)) for each in brain
            ),
        }
        rows.append(
            {
                "text": name,
                "tokens": ids.shape[1],
                "bytes": arms,
                "saved": {arm: 1 - size / raw for arm, size in arms.items()},
                "gzip_saves_of_float16": 1 - len(recipe) / arms["float16, saved"],
                "largest_key": float(keys.abs().max()),
                "largest_value": float(values.abs().max()),
            }
        )
    return rows


def sizes() -> list[dict[str, Any]]:
    """The cache of one sequence of 32,768 tokens in 16 bits, for shapes of 32 layers."""
    return [
        {
            "model": name,
            "layers": shape_of(name).layers,
            "kv_heads": shape_of(name).kv_heads,
            "bytes": kv_size(shape_of(name), seq_len=32_768).kv_bytes,
        }
        for name in ("llama-2-7b", "llama-3.1-8b")
    ]


def name_text(text: str) -> str:
    """What a cache of whole prefixes calls them."""
    return sha256(text.encode()).hexdigest()


def hashing(rounds: int, tokenizer: Any, story: torch.Tensor) -> list[dict[str, Any]]:
    """Microseconds to name a prompt, in turns: one hash of text or ids, a chain over blocks, kvlab's own look-up."""
    layout = kvlab.KvLayout([(1, 64, 1, 64)], element_bytes=4, block_tokens=BLOCK_TOKENS)
    rows = []
    with (
        tempfile.TemporaryDirectory() as directory,
        kvlab.Store.open(directory, l1="64MiB", l2="16MiB", l3="64MiB") as store,
    ):
        cache = store.prefix_cache(layout)
        for tokens in LENGTHS:
            ids = story[0, :tokens].numpy()
            if len(ids) < tokens:
                raise ValueError(f"the text has {len(ids)} tokens, not {tokens}")
            text = tokenizer.decode(ids)
            packed = ids.astype("<u4").tobytes()
            size = BLOCK_TOKENS * 4

            def chain(packed: bytes = packed, size: int = size) -> None:
                key = bytes(32)
                for at in range(0, len(packed), size):
                    key = sha256(key + packed[at : at + size]).digest()

            def look_up(ids: Any = ids) -> None:
                cache.begin(ids, bytes(32)).close()

            arms: dict[str, Callable[[], object]] = {
                "one SHA-256 of the text": partial(name_text, text),
                "one SHA-256 of the ids": partial(sha256, packed),
                "a chain over blocks in Python": chain,
                "kvlab: look up a cold prompt": look_up,
            }
            taken: dict[str, list[float]] = {name: [] for name in arms}
            for round_ in range(rounds + 1):
                for name, arm in arms.items():
                    began = perf_counter()
                    arm()
                    if round_:  # the first warms up
                        taken[name].append((perf_counter() - began) * 1e6)
            rows += [
                {
                    "arm": name,
                    "tokens": tokens,
                    "median_us": statistics.median(times),
                    "min_us": min(times),
                    "max_us": max(times),
                    "median_us_per_block": statistics.median(times) * BLOCK_TOKENS / tokens,
                }
                for name, times in taken.items()
            ]
    return rows


def tell(results: dict[str, Any]) -> None:
    """The same for people."""
    for row in results["compression"]:
        print(f"{row['text']}, {row['tokens']:,} tokens: bytes, and what is saved of float32")
        for arm, size in row["bytes"].items():
            print(f"  {arm:30}{size:12,}{row['saved'][arm]:8.1%}")
        print(f"  gzip saves {row['gzip_saves_of_float16']:.1%} of what torch.save wrote; ", end="")
        print(f"largest |K| {row['largest_key']:.1f}, |V| {row['largest_value']:.1f}\n")
    print("32,768 tokens in 16 bits")
    for row in results["sizes"]:
        print(f"  {row['model']:14}{row['kv_heads']:3} KV heads {row['bytes'] / 2**30:6.1f} GiB")
    for row in results.get("hashing", []):
        print(f"  {row['arm']:31}{row['tokens']:7,} tokens {row['median_us']:9.1f} us ", end="")
        print(
            f"({row['min_us']:.1f}-{row['max_us']:.1f}), {row['median_us_per_block']:.2f} a block"
        )


def main() -> None:
    """Measures and tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_024, help="of each prompt")
    parser.add_argument("--times", action="store_true", help="time hashing, too")
    parser.add_argument("--rounds", type=int, default=50, help="of the times")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    model, tokenizer = hf.load(MODEL)
    novel = Path(__file__).resolve().parents[2] / "toys" / "texts" / "pride-and-prejudice.txt"
    story = tokenizer(novel.read_text(encoding="utf-8")[:100_000], return_tensors="pt")["input_ids"]
    texts = {
        "an agent's instructions": prompt(tokenizer, options.tokens, 1)[:, : options.tokens],
        "a novel": story[:, : options.tokens],
    }
    results: dict[str, Any] = {
        "model": MODEL,
        "compression": compression(model, texts),
        "sizes": sizes(),
    }
    if options.times:
        results["hashing"] = hashing(options.rounds, tokenizer, story)
    results["environment"] = {
        "kvlab": kvlab.build_info(),
        "torch": torch.__version__,
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        tell(results)


if __name__ == "__main__":
    main()
