"""The preallocated cache against transformers' own: the same bits, in caller-given memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from transformers.cache_utils import DynamicCache

from kvlab.errors import CapacityError, ConfigError, UnsupportedRequestError
from kvlab.hf.cache import KeyValue, PreallocatedCache, PreallocatedLayer
from kvlab.hf.layout import LayerShape, ModelLayout, read_layout
from tiny_models import FAMILIES, SLIDING, build, prompt

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def forward(model: Any, ids: Any, cache: Any) -> Any:
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True).logits


def allocate(model: Any, capacity: int) -> PreallocatedCache:
    layout = read_layout(model)
    return PreallocatedCache.allocate(layout.layers, capacity, layout.dtype)


def assert_same_rows(ours: Any, reference: Any) -> None:
    assert len(ours.layers) == len(reference.layers)
    for mine, other in zip(ours.layers, reference.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


def copied_prefix(source: Any, tokens: int, capacity: int) -> list[KeyValue]:
    """Fresh buffers that hold the first tokens of another cache, and junk behind them."""
    buffers = []
    for layer in source.layers:
        pair = []
        for rows in (layer.keys, layer.values):
            buffer = torch.full((1, rows.shape[1], capacity, rows.shape[3]), 7.0).to(rows.dtype)
            buffer[:, :, :tokens] = rows[:, :, :tokens]
            pair.append(buffer)
        buffers.append((pair[0], pair[1]))
    return buffers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_in_pieces_is_bit_identical_to_dynamic_cache(family: str, dtype: Any) -> None:
    model, ids = build(family, dtype=dtype), prompt(120)
    ours, reference = allocate(model, 120), DynamicCache()
    for start, end in ((0, 70), (70, 71), (71, 120)):
        piece = ids[:, start:end]
        assert torch.equal(forward(model, piece, ours), forward(model, piece, reference))
        assert ours.get_seq_length() == end
    assert_same_rows(ours, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_goes_on_from_restored_rows_like_from_a_live_cache(
    family: str, dtype: Any
) -> None:
    model, ids = build(family, dtype=dtype), prompt(90)
    live = DynamicCache()
    forward(model, ids[:, :64], live)
    restored = PreallocatedCache(copied_prefix(live, 64, 100), 64)
    settings = {
        "max_new_tokens": 10,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    expected = model.generate(ids, past_key_values=live, **settings)
    actual = model.generate(ids, past_key_values=restored, **settings)
    assert torch.equal(actual.sequences, expected.sequences)
    for mine, other in zip(actual.logits, expected.logits, strict=True):
        assert torch.equal(mine, other)
    assert restored.length == 99  # the last generated token never went through the model


@pytest.mark.parametrize("family", SLIDING)
def test_sliding_window_layers_keep_every_token_and_answer_like_one_shot(family: str) -> None:
    model, ids = build(family), prompt(150)
    with torch.no_grad():
        one_shot = model(ids, use_cache=False).logits
    cache = allocate(model, 150)
    forward(model, ids[:, :100], cache)
    resumed = forward(model, ids[:, 100:], cache)
    assert [layer.keys.shape[2] for layer in cache.layers] == [150] * len(cache.layers)
    torch.testing.assert_close(resumed, one_shot[:, 100:], rtol=1e-4, atol=1e-4)


def test_rows_are_written_into_the_memory_the_caller_gave() -> None:
    model, ids = build("llama"), prompt(20)
    shape = (1, 2, 32, 16)
    memory = [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(4)]
    cache = PreallocatedCache([(torch.from_numpy(k), torch.from_numpy(v)) for k, v in memory], 0)
    reference: Any = DynamicCache()
    forward(model, ids, cache)
    forward(model, ids, reference)
    for (key, value), layer in zip(memory, reference.layers, strict=True):
        assert np.array_equal(key[:, :, :20], layer.keys)
        assert np.array_equal(value[:, :, :20], layer.values)
        assert not key[:, :, 20:].any()
        assert not value[:, :, 20:].any()


def test_cache_grows_once_a_prompt_does_not_fit_and_waits_for_rows_before_moving_them() -> None:
    model, ids = build("llama"), prompt(100)
    layout = read_layout(model)
    reference = DynamicCache()
    forward(model, ids[:, :40], reference)
    asked: list[int] = []
    waited: list[int] = []

    def grow(tokens: int) -> list[KeyValue]:
        asked.append(tokens)
        return copied_prefix(reference, 0, 2 * tokens)

    # Rows "arrive" only when the hook is called for their layer.
    buffers = copied_prefix(reference, 0, 64)
    arriving = copied_prefix(reference, 40, 64)

    def before_layer(index: int) -> None:
        if index not in waited:
            buffers[index][0].copy_(arriving[index][0])
            buffers[index][1].copy_(arriving[index][1])
        waited.append(index)

    cache = PreallocatedCache(buffers, 40, grow=grow, before_layer=before_layer)
    assert torch.equal(forward(model, ids[:, 40:], cache), forward(model, ids[:, 40:], reference))
    assert_same_rows(cache, reference)
    assert asked == [100]
    assert cache.capacity == 200
    # Once for the update that grew, then all layers for the move, then each layer's own update.
    layers = list(range(len(layout.layers)))
    assert waited == [0, *layers, *layers[1:]]


def test_a_cache_without_growth_refuses_tokens_that_do_not_fit_and_keeps_its_rows() -> None:
    model, ids = build("llama"), prompt(50)
    cache = allocate(model, 40)
    forward(model, ids[:, :30], cache)
    before = [layer.keys.clone() for layer in cache.layers]
    with pytest.raises(CapacityError, match="50 tokens do not fit into a cache of 40"):
        forward(model, ids[:, 30:], cache)
    assert cache.length == 30
    assert all(torch.equal(a, b.keys) for a, b in zip(before, cache.layers, strict=True))
    assert cache.get_max_length() == 40


def test_growth_that_is_too_small_is_an_error_of_its_own() -> None:
    model, ids = build("llama"), prompt(50)
    cache = allocate(model, 40)
    small = PreallocatedCache(
        [layer.buffers for layer in cache.layers],
        0,
        grow=lambda tokens: copied_prefix(cache, 0, tokens - 1),
    )
    assert small.get_max_length() == -1
    with pytest.raises(CapacityError, match=r"grow\(50\)"):
        forward(model, ids, small)


def test_crop_and_continue_equals_dynamic_cache() -> None:
    model, ids = build("llama"), prompt(80)
    calls: list[int] = []
    cache, reference = allocate(model, 80), DynamicCache()
    cache.before_truncate = lambda: calls.append(cache.length)
    for used in (cache, reference):
        forward(model, ids[:, :60], used)
        used.crop(-25)
    assert calls == [60]  # asked before the rows were given up, once for all layers
    assert cache.length == 35
    piece = ids[:, 35:80]
    assert torch.equal(forward(model, piece, cache), forward(model, piece, reference))
    assert_same_rows(cache, reference)


@pytest.mark.parametrize("tokens", [1, 25, -26])
def test_crop_refuses_positive_and_oversized_values(tokens: int) -> None:
    model = build("llama")
    cache = allocate(model, 40)
    forward(model, prompt(25), cache)
    with pytest.raises(ConfigError, match="crop"):
        cache.crop(tokens)
    assert [layer.length for layer in cache.layers] == [25] * 4
    cache.crop(0)
    assert cache.length == 25


def test_reset_forgets_tokens_but_keeps_the_buffers() -> None:
    model, ids = build("llama"), prompt(30)
    cache = allocate(model, 30)
    first = forward(model, ids, cache)
    address = cache.layers[2].buffers[0].data_ptr()
    calls: list[str] = []
    cache.before_truncate = lambda: calls.append("truncate")
    cache.reset()
    assert calls == ["truncate"]
    assert cache.get_seq_length() == 0
    assert torch.equal(forward(model, ids, cache), first)
    assert cache.layers[2].buffers[0].data_ptr() == address


def test_a_hook_that_raises_aborts_the_forward_and_a_reset_makes_the_cache_usable() -> None:
    model, ids = build("llama"), prompt(30)
    cache = allocate(model, 30)
    expected = forward(model, ids, allocate(model, 30))

    def damaged(index: int) -> None:
        if index == 2:
            raise OSError("layer 2 is damaged")

    cache.before_layer = damaged
    with pytest.raises(OSError, match="layer 2"):
        forward(model, ids, cache)
    cache.before_layer = None
    cache.reset()
    assert torch.equal(forward(model, ids, cache), expected)


def test_several_sequences_are_refused() -> None:
    model = build("llama")
    with pytest.raises(UnsupportedRequestError, match="batch of 2"):
        forward(model, prompt(8).repeat(2, 1), allocate(model, 20))
    cache: Any = allocate(model, 20)
    forward(model, prompt(8), cache)
    calls: tuple[Callable[[], object], ...] = (
        lambda: cache.reorder_cache(torch.tensor([0])),
        lambda: cache.batch_repeat_interleave(2),
        lambda: cache.batch_select_indices(torch.tensor([0])),
    )
    for call in calls:
        with pytest.raises(UnsupportedRequestError, match="one sequence"):
            call()
    assert cache.length == 8


def test_a_deep_copy_has_memory_of_its_own_and_none_of_the_callbacks() -> None:
    model, ids = build("llama"), prompt(40)
    cache, reference = allocate(model, 60), DynamicCache()
    for used in (cache, reference):
        forward(model, ids[:, :30], used)
    cache.before_layer = lambda index: None
    twin = copy.deepcopy(cache)
    assert twin.before_layer is None
    forward(model, prompt(10, seed=5), twin)  # the copy goes its own way first
    piece = ids[:, 30:]
    assert torch.equal(forward(model, piece, cache), forward(model, piece, reference))
    assert_same_rows(cache, reference)


def test_a_cache_allocated_in_inference_mode_can_be_written_outside_of_it() -> None:
    model = build("llama")
    with torch.inference_mode():
        cache = allocate(model, 20)
        model(prompt(5), past_key_values=cache)
    forward(model, prompt(5, seed=1), cache)
    assert cache.length == 10


def test_no_graph_grows_through_the_buffers() -> None:
    model = build("llama")
    cache = allocate(model, 20)
    model(prompt(5), past_key_values=cache)  # gradients are on here
    assert not any(t.requires_grad for layer in cache.layers for t in layer.buffers)


@pytest.mark.parametrize(
    ("key", "value", "length", "named"),
    [
        ((2, 2, 8, 4), (1, 2, 8, 4), 0, "heads"),
        ((2, 8, 4), (1, 2, 8, 4), 0, "heads"),
        ((1, 2, 8, 4), (1, 2, 9, 4), 0, "capacity"),
        ((1, 2, 8, 4), (1, 2, 8, 4), 9, "length 9"),
        ((1, 2, 8, 4), (1, 2, 8, 4), -1, "length -1"),
    ],
)
def test_buffers_that_do_not_go_together_are_refused(
    key: Any, value: Any, length: int, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        PreallocatedLayer(torch.zeros(key), torch.zeros(value), length)


def test_layers_must_share_a_capacity_and_there_must_be_one() -> None:
    pair = torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 8, 4)
    longer = torch.zeros(1, 2, 9, 4), torch.zeros(1, 2, 9, 4)
    with pytest.raises(ConfigError, match="one capacity"):
        PreallocatedCache([pair, longer], 0)
    with pytest.raises(ConfigError, match="at least one layer"):
        PreallocatedCache([], 0)
    with pytest.raises(ConfigError, match="got 0"):
        PreallocatedCache.allocate([LayerShape(1, 1, 1, 1)], 0, torch.float32)


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("llama", LayerShape(2, 16, 2, 16)),
        ("gemma3", LayerShape(2, 16, 2, 16)),
        ("deepseek-v3", LayerShape(1, 24, 1, 8)),
    ],
)
def test_layout_is_read_off_the_live_model(family: str, shape: LayerShape) -> None:
    layout = read_layout(build(family, dtype=torch.bfloat16))
    assert layout == ModelLayout((shape,) * 4, torch.bfloat16, 2)
    assert layout.bytes_per_token == 4 * 2 * shape.elements_per_token


def test_smollm2_never_evicted_and_restored_agree_bit_for_bit(smollm2: Path) -> None:
    from kvlab.hf.load import load

    for dtype in DTYPES:
        model, _ = load(str(smollm2), dtype=dtype)
        ids = torch.randint(3, 40_000, (1, 96), generator=torch.Generator().manual_seed(3))
        live = allocate(model, 96)
        forward(model, ids[:, :80], live)
        restored = PreallocatedCache(copied_prefix(live, 80, 96), 80)
        assert torch.equal(forward(model, ids[:, 80:], restored), forward(model, ids[:, 80:], live))
        assert read_layout(model).bytes_per_token == 11_520 * dtype.itemsize
