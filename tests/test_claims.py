"""The arms of benches/python/claims.py: what each takes, and that the coders lose nothing."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
import tiny_models

sys.path.insert(0, str(Path(__file__).parent.parent / "benches" / "python"))

import claims


def test_the_cast_saves_half_and_the_container_nothing() -> None:
    model, ids = tiny_models.build("llama"), tiny_models.prompt(64)
    [row] = claims.compression(model, {"a text": ids})
    raw, took = row["bytes"]["float32"], row["bytes"]
    keys, values = claims.cache_of(model, ids)
    assert raw == keys.nbytes + values.nbytes
    assert took["float16"] == took["bfloat16"] == raw // 2
    assert took["float16, saved"] > took["float16"]
    # The weights are random: their KV is close to noise, and gzip finds little.
    assert row["saved"]["float16, saved, gzip"] < 0.7
    assert row["tokens"] == 64
    assert row["largest_key"] == float(keys.abs().max())


def test_byte_planes_hold_every_byte() -> None:
    tensor = torch.randn(3, 5).to(torch.bfloat16)
    shuffled = zlib.decompress(zlib.compress(claims.planes(tensor)))
    half = len(shuffled) // 2
    together = bytes(
        byte for pair in zip(shuffled[:half], shuffled[half:], strict=True) for byte in pair
    )
    assert together == claims.plain(tensor)


def test_the_figure_of_16_gb_needs_a_kv_head_for_each_query_head() -> None:
    every, shared = claims.sizes()
    assert every["layers"] == shared["layers"] == 32
    assert (every["kv_heads"], every["bytes"]) == (32, 16 * 2**30)
    assert (shared["kv_heads"], shared["bytes"]) == (8, 4 * 2**30)


def test_every_way_to_name_a_prompt_is_timed() -> None:
    rows = claims.hashing(2, _Bytes(), torch.arange(20_000).reshape(1, -1) % 256)
    assert {row["tokens"] for row in rows} == set(claims.LENGTHS)
    assert len(rows) == 4 * len(claims.LENGTHS)
    assert all(0 < row["min_us"] <= row["median_us"] <= row["max_us"] for row in rows)


class _Bytes:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(each) for each in ids)
