"""Tensors as bytes: what comes back is what went in or what the codec promises; damage is never a tensor."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("lz4", reason="the 'remote' extra is not installed")
pytest.importorskip("zstandard", reason="the 'remote' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvlab.errors import (
    ConfigError,
    InvalidArgumentError,
    PrecisionOverflowError,
    TensorFormatError,
)
from kvlab.remote import Encoding, decode, decode_all, encode, encode_all

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LOSSLESS: list[Any] = ["none", "lz4", "zstd", "gzip"]
CODECS: list[Any] = [*LOSSLESS, "int8", "int4"]
LEVELS = {"int8": 127, "int4": 7}
HEADER = struct.Struct("<8sHBBBBQ")


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = False) -> Any:
    """Any numbers of any dtype, NaN and infinities too, now and then with strides."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=7))
    numbers = st.floats(width=32, allow_nan=not finite, allow_infinity=not finite)
    if finite:
        numbers = st.floats(-60_000, 60_000, width=32)
    array = draw(hnp.arrays(np.float32, shape, elements=numbers))
    tensor = torch.from_numpy(array).to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, -1) if draw(st.booleans()) else tensor


def bits(tensor: Any) -> Any:
    return tensor.contiguous().view(torch.int32 if tensor.itemsize == 4 else torch.int16)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, but that a NaN equals any other: casts may change which one it is."""
    both_nan = torch.isnan(one) & torch.isnan(other)
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and bool(((bits(one) == bits(other)) | both_nan).all())
    )


@settings(deadline=None, max_examples=40)
@given(tensor=tensors(), codec=st.sampled_from(LOSSLESS))
def test_in_its_own_dtype_a_tensor_comes_back_bit_for_bit(tensor: Any, codec: Any) -> None:
    back = decode(encode(tensor, Encoding(codec=codec)))
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(bits(back), bits(tensor))


@settings(deadline=None, max_examples=40)
@given(
    tensor=tensors(),
    precision=st.sampled_from(["float16", "bfloat16"]),
    codec=st.sampled_from(LOSSLESS),
)
def test_a_cast_is_the_casts_of_torch_and_overflow_goes_to_bfloat16(
    tensor: Any, precision: Any, codec: Any
) -> None:
    def overflows(dtype: Any) -> bool:
        return bool((torch.isinf(tensor.to(dtype)) & torch.isfinite(tensor)).any())

    asked = getattr(torch, precision)
    if not overflows(asked):
        expected = tensor.to(asked)
    elif precision == "float16" and not overflows(torch.bfloat16):
        with pytest.raises(PrecisionOverflowError, match=r"infinite in torch\.float16"):
            encode(tensor, Encoding(precision, codec, "refuse"))
        expected = tensor.to(torch.bfloat16)
    else:
        with pytest.raises(PrecisionOverflowError, match="'native'"):
            encode(tensor, Encoding(precision, codec))
        return
    assert same(decode(encode(tensor, Encoding(precision, codec))), expected.to(tensor.dtype))


@settings(deadline=None, max_examples=40)
@given(
    tensor=tensors(finite=True),
    precision=st.sampled_from(["native", "float16"]),
    codec=st.sampled_from(sorted(LEVELS)),
)
def test_integers_are_at_most_half_a_scale_off(tensor: Any, precision: Any, codec: Any) -> None:
    back = decode(encode(tensor, Encoding(precision, codec)))
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    stored = tensor if precision == "native" else tensor.to(torch.float16)
    exact = stored.double()
    scales = exact.abs().amax(-1, keepdim=True) / LEVELS[codec]
    smallest = torch.finfo(stored.dtype).smallest_normal
    # A scale is rounded to the stored dtype, and the product to the dtype that is given back.
    rounding = torch.finfo(stored.dtype).eps * scales * LEVELS[codec]
    product = torch.finfo(tensor.dtype).eps * exact.abs()
    bound = scales.clamp_min(smallest) / 2 + rounding + product
    assert bool(((back.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("codec", sorted(LEVELS))
def test_of_a_row_with_an_infinity_or_a_nan_integers_keep_nothing_but_that(codec: Any) -> None:
    tensor = torch.ones(3, 4)
    tensor[0, 1], tensor[2, 3] = torch.inf, torch.nan
    back = decode(encode(tensor, Encoding(codec=codec)))
    assert torch.isnan(back[0]).all()
    assert torch.isnan(back[2]).all()
    assert torch.equal(back[1], tensor[1])


@pytest.mark.parametrize(("codec", "most"), [("int8", 66), ("int4", 34)])
def test_integers_take_a_byte_or_half_of_one_and_a_scale_a_row(codec: Any, most: int) -> None:
    tensor = torch.randn(4, 100, 64)
    record = encode(tensor, Encoding("float16", codec))
    assert 400 * most < len(record) < 400 * most + 100


@settings(deadline=None, max_examples=40)
@given(some=st.lists(tensors(), max_size=4), codec=st.sampled_from(LOSSLESS))
def test_records_stand_one_after_the_other(some: list[Any], codec: Any) -> None:
    back = decode_all(encode_all(some, Encoding(codec=codec)))
    assert len(back) == len(some)
    assert all(map(same, back, some))
    if len(some) != 1:
        with pytest.raises(TensorFormatError, match=f"{len(some)} tensors"):
            decode(encode_all(some, Encoding(codec=codec)))


@settings(deadline=None, max_examples=80)
@given(tensor=tensors(), codec=st.sampled_from(CODECS), data=st.data())
def test_damage_is_an_error_and_never_another_tensor(
    tensor: Any, codec: Any, data: st.DataObject
) -> None:
    record = bytearray(encode(tensor, Encoding(codec=codec)))
    how = data.draw(st.sampled_from(["flip", "cut", "longer", "zeroes", "swap", "noise"]))
    at = data.draw(st.integers(0, len(record) - 1))
    damaged = record.copy()
    if how == "flip":
        damaged[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del damaged[at:]
    elif how == "longer":
        damaged += data.draw(st.binary(min_size=1, max_size=40))
    elif how == "zeroes":
        damaged[at:] = bytes(len(record) - at)
    elif how == "swap":
        damaged = damaged[at:] + damaged[:at]
    else:
        damaged = bytearray(data.draw(st.binary(max_size=200)))
    if damaged != record:
        with pytest.raises(TensorFormatError):
            decode(bytes(damaged))


@settings(deadline=None, max_examples=80)
@given(
    tensor=tensors(),
    codec=st.sampled_from(CODECS),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "given": st.integers(0, 255),
            "stored": st.integers(0, 255),
            "codec": st.integers(0, 7),
            "shape": st.lists(st.integers(0, 99) | st.integers(1 << 40, (1 << 64) - 1), max_size=9),
            "payload": st.binary(max_size=60),
        },
    ),
)
def test_a_header_that_lies_behind_a_right_checksum_ends_in_a_tensor_or_an_error(
    tensor: Any, codec: Any, fields: dict[str, Any]
) -> None:
    record = encode(tensor, Encoding(codec=codec))
    magic, version, given_at, stored, codec_at, dimensions, _ = HEADER.unpack_from(record)
    shape = fields.get("shape", struct.unpack_from(f"<{dimensions}Q", record, HEADER.size))
    payload = fields.get("payload", record[HEADER.size + 8 * dimensions + 4 :])
    given_at, stored = fields.get("given", given_at), fields.get("stored", stored)
    codec_at = fields.get("codec", codec_at)
    head = HEADER.pack(magic, version, given_at, stored, codec_at, len(shape), len(payload))
    head += struct.pack(f"<{len(shape)}Q", *shape)
    forged = head + struct.pack("<I", zlib.crc32(head + payload)) + payload
    try:
        back = decode(forged)
    except TensorFormatError:
        return
    assert list(back.shape) == list(shape)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "0 tensors"),
        (b"KVLABTSR", "too few"),
        (pickle.dumps(list(range(100))), "begin with"),
        (HEADER.pack(b"KVLABTSR", 2, 0, 0, 0, 1, 0), "version 2"),
    ],
)
def test_foreign_bytes_are_named(record: bytes, message: str) -> None:
    with pytest.raises(TensorFormatError, match=message):
        decode(record)


def test_what_torch_saves_is_foreign() -> None:
    file = io.BytesIO()
    torch.save(torch.ones(100), file)
    with pytest.raises(TensorFormatError, match="begin with"):
        decode(file.getvalue())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(()),
        torch.ones(0),
        torch.ones(3, 0, 4),
        torch.ones((1,) * 9),
        torch.ones(3, dtype=torch.int64),
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, 3).to_sparse(),
    ],
    ids=["no dimension", "empty", "empty in the middle", "nine", "int64", "float64", "sparse"],
)
def test_what_cannot_be_stored_is_refused(codec: Any, tensor: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        encode(tensor, Encoding(codec=codec))


@pytest.mark.parametrize(
    "wrong", [{"precision": "float8"}, {"codec": "brotli"}, {"on_overflow": "clip"}]
)
def test_an_unknown_setting_is_refused_with_those_that_are_known(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="use '"):
        Encoding(**wrong)


@pytest.mark.parametrize(("codec", "package"), [("lz4", "lz4.block"), ("zstd", "zstandard")])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, codec: Any, package: str
) -> None:
    record = encode(torch.ones(3), Encoding(codec=codec))
    monkeypatch.setitem(sys.modules, package, None)
    for attempt in (lambda: Encoding(codec=codec), lambda: decode(record)):
        with pytest.raises(ConfigError, match=r"pip install 'kvlab\[remote\]'"):
            attempt()


def test_a_tensor_that_needs_a_gradient_is_stored_as_it_is() -> None:
    tensor = torch.randn(2, 3, requires_grad=True)
    assert torch.equal(decode(encode(tensor, Encoding())), tensor.detach())
