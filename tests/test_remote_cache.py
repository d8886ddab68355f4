"""DistributedKVCache over a store in memory: what is found is what was cached, under the names that say so."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")
pytest.importorskip("zstandard", reason="the 'remote' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from kvlab import BlockStore
from kvlab.errors import (
    ConfigError,
    InvalidArgumentError,
    PrecisionOverflowError,
    StoreClosedError,
)
from kvlab.hf import LayerShape, ModelLayout
from kvlab.near_misses import PromptIndex
from kvlab.remote import DistributedKVCache
from kvlab.remote.keys import layer_key, prefix_key
from tiny_models import build, prompt

LAYOUT = ModelLayout((LayerShape(2, 8, 2, 8), LayerShape(1, 4, 3, 6)), torch.float32, 4)


def open_store() -> BlockStore:
    return BlockStore.open(l2="16MiB", l3=0)


def kv(tokens: int, *, seed: int = 0, layout: ModelLayout = LAYOUT) -> list[tuple[Any, Any]]:
    """K and V ``[1, heads, tokens, dim]`` of each layer."""
    generator = torch.Generator().manual_seed(seed)

    def random(heads: int, dim: int) -> Any:
        return torch.randn(1, heads, tokens, dim, generator=generator).to(layout.dtype)

    return [
        (random(shape.k_heads, shape.k_dim), random(shape.v_heads, shape.v_dim))
        for shape in layout.layers
    ]


def exact(store: BlockStore, **settings: Any) -> DistributedKVCache:
    """A cache that loses nothing."""
    chosen: dict[str, Any] = {"precision": "native", "layout": LAYOUT, **settings}
    return DistributedKVCache(store=store, **chosen)


def equal(found: Any, expected: list[tuple[Any, Any]]) -> bool:
    return found is not None and all(
        torch.equal(one, other)
        for ours, theirs in zip(found, expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("compress", [True, False, "lz4", "gzip"])
@pytest.mark.parametrize("prefix", [list(range(20)), "a system prompt"], ids=["tokens", "text"])
def test_whole_prefixes_and_layers_are_the_same_entries(prefix: Any, compress: Any) -> None:
    layers = kv(20)
    with open_store() as store:
        cache = exact(store, compress=compress)
        assert cache.get_cached_prefix(prefix) is None
        assert cache.cache_prefix(prefix, layers)
        assert equal(cache.get_cached_prefix(prefix), layers)
        assert equal([cache.get_cached_kv(prefix, layer) for layer in (0, 1)], layers)
        other = "b" if isinstance(prefix, str) else [*prefix[:-1], 99]
        assert cache.cache_kv(other, 1, *layers[1])
        assert cache.get_cached_prefix(other) is None
        assert cache.cache_kv(other, 0, *layers[0])
        # What another object on the store finds, whichever of lossless codecs it writes with.
        assert equal(exact(store, compress=False).get_cached_prefix(other), layers)
        stats = cache.stats()
        assert (stats["hits"], stats["misses"]) == (3, 2)
        assert stats["hit_rate"] == pytest.approx(0.6)
        assert stats["misses_by_reason"] == {"absent": 2, "damaged": 0, "shape": 0}
        assert (stats["writes"], stats["refused_writes"]) == (3, 0)
        tensors = sum(tensor.nbytes for pair in layers for tensor in pair)
        assert stats["written_tensor_bytes"] == stats["read_tensor_bytes"] == 2 * tensors
        assert stats["get"]["calls"] == 5
        assert 0 < stats["get"]["p50"] <= stats["get"]["p99"] <= stats["get"]["max"]


def test_float16_is_what_is_stored_by_default_and_the_dtype_given_is_what_comes_back() -> None:
    layers = kv(20)
    with open_store() as store:
        cache = DistributedKVCache(store=store, layout=LAYOUT)
        cache.cache_prefix(range(20), layers)
        rounded = [(k.half().float(), v.half().float()) for k, v in layers]
        assert equal(cache.get_cached_prefix(range(20)), rounded)
        stats = cache.stats()
        assert stats["written_bytes"] < 0.6 * stats["written_tensor_bytes"] + 400


def test_numbers_beyond_float16_go_to_bfloat16_or_are_refused() -> None:
    layers = kv(3)
    layers[1] = (layers[1][0] * 1e6, layers[1][1])
    with open_store() as store:
        strict = DistributedKVCache(store=store, layout=LAYOUT, on_overflow="refuse")
        with pytest.raises(PrecisionOverflowError):
            strict.cache_prefix(range(3), layers)
        assert store.stats()["l2"]["runs"] == 0
        lenient = DistributedKVCache(store=store, layout=LAYOUT)
        assert lenient.cache_prefix(range(3), layers)
        found = lenient.get_cached_prefix(range(3))
        assert found is not None
        assert torch.equal(found[1][0], layers[1][0].bfloat16().float())
        assert torch.equal(found[1][1], layers[1][1].half().float())


# Everything that separates caches: nothing that one wrote is found by another.
names = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["a", b"b", "layout"]),
        "salt": st.sampled_from(["a", "b"]),
        "layout": st.sampled_from([None, ModelLayout(LAYOUT.layers, torch.bfloat16, 2)]),
        "precision": st.sampled_from(["float16", "bfloat16"]),
        "compress": st.sampled_from(["int8", "int4"]),
    },
)
prefixes = st.lists(st.integers(0, 3), min_size=1, max_size=40) | st.text(min_size=1, max_size=9)


@pytest.fixture(scope="module")
def one_store() -> Iterator[BlockStore]:
    with open_store() as store:
        yield store


@settings(deadline=None, max_examples=30)
@given(one=names, other=names, prefix=prefixes, elsewhere=prefixes)
def test_caches_prefixes_and_layers_that_differ_in_anything_never_meet(
    one_store: BlockStore,
    one: dict[str, Any],
    other: dict[str, Any],
    *,
    prefix: Any,
    elsewhere: Any,
) -> None:
    one_store.clear()
    writer, reader = exact(one_store, **one), exact(one_store, **other)
    tokens = 5 if isinstance(prefix, str) else len(prefix)
    dtype = torch.bfloat16 if one.get("layout") else torch.float32
    k, v = (tensor.to(dtype) for tensor in kv(tokens)[0])
    assert writer.cache_kv(prefix, 0, k, v)
    assert (reader.get_cached_kv(prefix, 0) is not None) == (one == other)
    assert (writer.get_cached_kv(elsewhere, 0) is not None) == (elsewhere == prefix)
    assert writer.get_cached_kv(prefix, 1) is None


@given(
    tokens=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=50),
    namespace=st.binary(min_size=32, max_size=32),
)
def test_keys_are_the_chain_of_sha256(tokens: list[int], namespace: bytes) -> None:
    parent = namespace
    for start in range(0, len(tokens), 16):
        block = tokens[start : start + 16]
        parent = hashlib.sha256(parent + struct.pack(f"<{len(block)}I", *block)).digest()
    key, count = prefix_key(namespace, tokens)
    assert (key, count) == (parent, len(tokens))
    assert prefix_key(namespace, np.array([tokens], dtype=np.int64)) == (key, count)
    assert len({key, *(layer_key(key, layer) for layer in range(4))}) == 5


def test_what_disagrees_with_the_layout_is_refused_and_changes_nothing() -> None:
    (k, v), (narrow_k, narrow_v) = kv(20)
    wrong: list[tuple[Any, int, Any, Any, str]] = [
        (range(20), 0, k[0, 0], v, "give \\[heads, tokens, dim\\]"),
        (range(20), 0, torch.cat([k, k]), v, "give \\[heads, tokens, dim\\]"),
        (range(20), 0, k.half(), v, "in one dtype"),
        (range(20), 0, k.half(), v.half(), "the namespace's torch.float32"),
        (range(20), 0, k[:, :1], v, "the namespace's LayerShape"),
        (range(20), 0, narrow_k, narrow_v, "the namespace's LayerShape"),
        (range(19), 0, k, v, "K has 20 tokens, V 20 and the prefix 19"),
        ("text", 0, k, v[:, :, :19], "K has 20 tokens, V 19"),
        (range(20), 2, k, v, "layer 2 is not one of 0 to 1"),
        (range(20), -1, k, v, "layer -1"),
        ([], 0, k, v, "empty"),
        ("", 0, k, v, "empty"),
        (range(20), 0, k[:, :, :, :0], v, "LayerShape"),
    ]
    with open_store() as store:
        cache = exact(store)
        for prefix, layer, keys, values, message in wrong:
            with pytest.raises(InvalidArgumentError, match=message):
                cache.cache_kv(prefix, layer, keys, values)
        for count in (0, 1, 3):
            with pytest.raises(InvalidArgumentError, match=f"{count} layers"):
                cache.cache_prefix(range(20), ([*kv(20), (k, v)])[:count])
        with pytest.raises(InvalidArgumentError, match="layer 2"):
            cache.get_cached_kv(range(20), 2)
        with pytest.raises(InvalidArgumentError, match="3 layers"):
            cache.get_cached_prefix(range(20), 3)
        assert store.stats()["l2"]["runs"] == 0
        assert cache.stats()["writes"] == 0


def test_without_a_layout_the_first_shapes_say_what_is_expected() -> None:
    layers, others = kv(20), kv(20, layout=ModelLayout(LAYOUT.layers[:1] * 2, torch.float32, 4))
    with open_store() as store:
        first, second = exact(store, layout=None), exact(store, layout=None)
        with pytest.raises(InvalidArgumentError, match="give layers"):
            first.get_cached_prefix(range(20))
        mixed = [layers[0], (layers[1][0].half(), layers[1][1].half())]
        with pytest.raises(InvalidArgumentError, match="float32"):
            first.cache_prefix(range(20), mixed)
        # Nothing was learnt of what was refused.
        assert first.cache_prefix(range(20), layers)
        with pytest.raises(InvalidArgumentError, match="name another model"):
            first.cache_prefix(range(20), others)
        assert second.cache_prefix(range(1, 21), others)
        assert second.get_cached_prefix(range(20)) is None
        assert second.stats()["misses_by_reason"]["shape"] == 1
        third = exact(store, layout=None)
        assert equal(third.get_cached_prefix(range(20), 2), layers)
        assert third.get_cached_prefix(range(1, 21)) is None


def test_foreign_and_damaged_bytes_under_a_key_are_misses() -> None:
    (k, v), _ = kv(20)
    with open_store() as other, open_store() as store:
        writer, cache = exact(other), exact(store)
        writer.cache_kv(range(20), 0, k, v)
        name, _ = prefix_key(writer._namespace, range(20))
        good = other.get(layer_key(name, 0))
        assert good is not None
        damaged = bytearray(good)
        damaged[len(good) // 2] ^= 1
        first_only = good[: len(good) // 2]
        for at, bad in enumerate((b"foreign", bytes(damaged), first_only, good + good)):
            prefix = range(at, at + 20)
            name, _ = prefix_key(cache._namespace, prefix)
            store.put(layer_key(name, 0), bad)
            assert cache.get_cached_kv(prefix, 0) is None
        # The right bytes of another prefix's length.
        name, _ = prefix_key(cache._namespace, range(7))
        store.put(layer_key(name, 0), good)
        assert cache.get_cached_kv(range(7), 0) is None
        assert cache.stats()["misses_by_reason"] == {"absent": 0, "damaged": 4, "shape": 1}


@pytest.mark.parametrize("ttl", [0, -1, 1 << 40, "soon"])
def test_a_time_to_live_that_cannot_be_is_refused(ttl: Any) -> None:
    with open_store() as store, pytest.raises(InvalidArgumentError):
        DistributedKVCache(store=store, ttl_seconds=ttl)


def test_a_store_and_a_server_at_once_are_refused() -> None:
    with open_store() as store, pytest.raises(ConfigError, match="a store and a server"):
        DistributedKVCache("localhost", store=store)


def test_a_store_of_the_callers_stays_open_and_a_closed_one_is_an_error() -> None:
    layers = kv(20)
    store = open_store()
    with exact(store) as cache:
        cache.cache_prefix(range(20), layers)
        cache.flush()
    assert equal(exact(store).get_cached_prefix(range(20)), layers)
    assert cache.health() is None
    store.close()
    assert cache.stats()["writes"] == 1
    for call in (
        lambda: cache.cache_prefix(range(20), layers),
        lambda: cache.get_cached_prefix(range(20)),
    ):
        with pytest.raises(StoreClosedError):
            call()


def test_prefixes_that_were_written_are_known_for_near_misses() -> None:
    with open_store() as store:
        cache = exact(store, prompts=PromptIndex())
        cache.cache_prefix(range(100), kv(100))
        cache.cache_prefix("text is not tokens", kv(3))
        (miss,) = cache.near_misses([*range(50), 7, *range(51, 100)])
        assert (miss.shared_prefix, miss.lost_tokens) == (50, 49)
        with pytest.raises(ConfigError, match="prompts=PromptIndex"):
            exact(store).near_misses(range(100))


def test_a_model_goes_on_from_what_it_finds_as_from_what_it_computed() -> None:
    model, ids = build("llama"), prompt(60)
    computed: Any = DynamicCache()
    with torch.inference_mode():
        model(ids[:, :50], past_key_values=computed)
    with open_store() as store:
        cache = DistributedKVCache.for_model(model, store=store, precision="native")
        cache.cache_prefix(ids[:, :50], [(each.keys, each.values) for each in computed.layers])
        # Another object, as on another machine; and another model.
        again = DistributedKVCache.for_model(model, store=store, precision="native")
        other = DistributedKVCache.for_model(
            build("llama", seed=1), store=store, precision="native"
        )
        assert other.get_cached_prefix(ids[:, :50]) is None
        found = again.get_cached_prefix(ids[:, :50])
        assert found is not None
        restored = DynamicCache(found)
        with torch.inference_mode():
            logits = [
                model(ids[:, 50:], past_key_values=past).logits for past in (computed, restored)
            ]
        assert torch.equal(*logits)
