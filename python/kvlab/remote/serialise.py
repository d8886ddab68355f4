"""Tensors as bytes that say what they are, for stores that other machines read. Never pickle.

A record is a header, a CRC-32 and a payload, little-endian:

    magic "KVLABTSR", version u16, dtype given u8, dtype stored u8, codec u8, dimensions u8,
    payload bytes u64, a u64 for each dimension, CRC-32 u32 of all before it and of the payload

The way to a payload is: a cast to the dtype that is stored, then one codec. `lz4`, `zstd` and `gzip` lose nothing:
they compress the numbers' bytes sorted by significance, all first bytes before all second ones, as the shuffle filter
of HDF5 and Blosc does, since the bytes with the exponents are alike. `int8` and `int4` store symmetric integers with
one scale for each row of the last dimension, which of keys and values `[..., heads, tokens, dim]` is one for each token
and head: the mathematics of `kvlab.KvCodec`.
"""

from __future__ import annotations

import gzip
import importlib
import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from kvlab.errors import (
    ConfigError,
    InvalidArgumentError,
    PrecisionOverflowError,
    TensorFormatError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Buffer

    Bytes: TypeAlias = NDArray[np.uint8]

Precision: TypeAlias = Literal["native", "float16", "bfloat16"]
Codec: TypeAlias = Literal["none", "lz4", "zstd", "gzip", "int8", "int4"]
Overflow: TypeAlias = Literal["bfloat16", "refuse"]

_MAGIC = b"KVLABTSR"
_VERSION = 1
_HEADER = struct.Struct("<8sHBBBBQ")
_CHECKSUM = struct.Struct("<I")
_MOST_DIMENSIONS = 8
_MOST_BYTES = 4 << 30
"""No record may ask a reader for more memory than that: the largest block of a store."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CODECS: tuple[Codec, ...] = get_args(Codec)
_LEVELS = {"int8": 127, "int4": 7}
_PACKAGES = {"lz4": "lz4.block", "zstd": "zstandard"}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How tensors are stored.

    Attributes:
        precision: The dtype that is stored: ``"native"`` for the tensor's own, or a cast to
            ``"float16"`` or ``"bfloat16"``. A tensor comes back in its own dtype.
        codec: What then becomes of the bytes: ``"none"``; ``"lz4"``, ``"zstd"`` or ``"gzip"``, which lose
            nothing; ``"int8"`` or ``"int4"``, after which a number is at most half a scale off. A
            scale is the largest magnitude of its row of the last dimension over 127 or 7, in the dtype
            that is stored and at least its smallest normal number. Of a row with an infinity or a NaN
            every number becomes NaN.
        on_overflow: What to do if a finite number is infinite in float16 (beyond 65,504, as keys of some
            models are): store this tensor as ``"bfloat16"``, or ``"refuse"``.

    Raises:
        ConfigError: A value that is not known, or a codec whose package is missing.
    """

    precision: Precision = "native"
    codec: Codec = "none"
    on_overflow: Overflow = "bfloat16"

    def __post_init__(self) -> None:
        """Check the names, and that what they need is installed."""
        for name, known in (("precision", Precision), ("codec", Codec), ("on_overflow", Overflow)):
            value, choices = getattr(self, name), get_args(known)
            if value not in choices:
                raise ConfigError(f"{name} = {value!r}: use {', '.join(map(repr, choices))}")
        if self.codec in _PACKAGES:
            _package(self.codec)


def encode(tensor: Tensor, encoding: Encoding) -> bytes:
    """Write a tensor as one record.

    Args:
        tensor: float32, float16 or bfloat16, 1 to 8 dimensions, none of them empty; any strides.
        encoding: How.

    Returns:
        The record. `decode` gives the tensor back on the CPU, in its own dtype: bit for bit with
        precision ``"native"`` and a codec that loses nothing, infinities and NaN included.

    Raises:
        InvalidArgumentError: Another dtype, no or too many dimensions, an empty one, or more than 4 GiB.
        PrecisionOverflowError: A finite number does not fit the precision, and that is to be refused or
            bfloat16 does not have it either.
    """
    _check(tensor)
    plain = tensor.detach().cpu().contiguous()
    stored = _cast(plain, encoding)
    codec = encoding.codec
    if codec in _LEVELS:
        payload = _quantise(stored, codec)
    elif codec == "none":
        payload = _bytes_of(stored).tobytes()
    else:
        payload = _compress(codec, _shuffled(_bytes_of(stored), stored.itemsize))
    shape = tuple(plain.shape)
    head = _HEADER.pack(
        _MAGIC,
        _VERSION,
        _DTYPES.index(plain.dtype),
        _DTYPES.index(stored.dtype),
        _CODECS.index(codec),
        len(shape),
        len(payload),
    ) + struct.pack(f"<{len(shape)}Q", *shape)
    return b"".join((head, _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(head))), payload))


def encode_all(tensors: Iterable[Tensor], encoding: Encoding) -> bytes:
    """Write tensors as records one after the other; see `encode`."""
    return b"".join(encode(tensor, encoding) for tensor in tensors)


def decode(data: Buffer) -> Tensor:
    """Read one record.

    Args:
        data: What `encode` wrote; nothing more.

    Returns:
        The tensor, on the CPU, in memory of its own.

    Raises:
        TensorFormatError: The bytes are no such record, are cut short, or are damaged.
        ConfigError: The package of the codec that they were written with is missing.
    """
    tensors = decode_all(data)
    if len(tensors) != 1:
        raise TensorFormatError(f"{len(tensors)} tensors stand where one should")
    return tensors[0]


def decode_all(data: Buffer) -> list[Tensor]:
    """Read what `encode_all` wrote; no bytes are no tensors. Raises as `decode`."""
    view = memoryview(data).cast("B")
    tensors = []
    while len(view):
        tensor, size = _decode_first(view)
        tensors.append(tensor)
        view = view[size:]
    return tensors


def _check(tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
        raise InvalidArgumentError(
            f"a tensor of {tensor.dtype}, {tensor.layout} cannot be stored; give a dense one of "
            "float32, float16 or bfloat16"
        )
    shape = tuple(tensor.shape)
    if not 1 <= len(shape) <= _MOST_DIMENSIONS or 0 in shape:
        raise InvalidArgumentError(
            f"a tensor of shape {shape} cannot be stored; give 1 to {_MOST_DIMENSIONS} dimensions, none empty"
        )
    if tensor.nbytes > _MOST_BYTES:
        raise InvalidArgumentError(
            f"a tensor of {tensor.nbytes} bytes cannot be stored; split it into parts of at most {_MOST_BYTES}"
        )


def _cast(tensor: Tensor, encoding: Encoding) -> Tensor:
    if encoding.precision == "native":
        return tensor
    wanted = [getattr(torch, encoding.precision)]
    if encoding.on_overflow == "bfloat16" and torch.bfloat16 not in wanted:
        wanted.append(torch.bfloat16)
    for dtype in wanted:
        if tensor.dtype == dtype:
            return tensor  # every number of it fits
        cast = tensor.to(dtype)
        infinite = torch.isinf(cast)
        if not infinite.any() or bool(torch.isinf(tensor[infinite]).all()):
            return cast
    finite = tensor[torch.isfinite(tensor)]
    raise PrecisionOverflowError(
        f"a magnitude of {finite.abs().max().item():.6g} is infinite in {wanted[-1]}; store with "
        f"precision 'native'" + (" or 'bfloat16'" if wanted[-1] == torch.float16 else "")
    )


def _bytes_of(tensor: Tensor) -> Bytes:
    found: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return found


def _tensor_of(data: Bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor with these bytes, in memory of its own."""
    tensor = torch.empty(shape, dtype=dtype)
    _bytes_of(tensor)[:] = data
    return tensor


def _shuffled(data: Bytes, itemsize: int) -> Bytes:
    return np.ascontiguousarray(data.reshape(-1, itemsize).T).reshape(-1)


def _unshuffled(data: Bytes, itemsize: int) -> Bytes:
    numbers = np.empty((len(data) // itemsize, itemsize), dtype=np.uint8)
    # Column by column is five times as fast as to copy the transpose.
    for place, column in enumerate(data.reshape(itemsize, -1)):
        numbers[:, place] = column
    return numbers.reshape(-1)


def _quantise(rows: Tensor, codec: Codec) -> bytes:
    """Scales in the dtype of the rows, then the integers; two of int4 share a byte, the first in its low half."""
    levels = _LEVELS[codec]
    numbers = rows.float()
    # A scale is a normal number: below, its rounding would be larger than what it scales.
    smallest = torch.finfo(rows.dtype).smallest_normal
    scales = (numbers.abs().amax(-1, keepdim=True) / levels).clamp_min(smallest).to(rows.dtype)
    broken = ~torch.isfinite(scales)
    scales = scales.masked_fill(broken, torch.nan)
    steps = (numbers / scales.float()).round().clamp(-levels, levels)
    integers = steps.masked_fill(broken, 0).to(torch.int8)
    if codec == "int4":
        nibbles = torch.nn.functional.pad(integers, (0, rows.shape[-1] % 2)) + 8
        packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
        integers = packed
    return _bytes_of(scales).tobytes() + _bytes_of(integers.contiguous()).tobytes()


def _dequantise(
    data: Bytes, codec: Codec, stored: torch.dtype, given: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    rows, width = shape[:-1], shape[-1]
    split = math.prod(rows) * stored.itemsize
    scales = _tensor_of(data[:split], stored, (*rows, 1)).float()
    if codec == "int8":
        integers = _tensor_of(data[split:], torch.int8, shape)
    else:
        packed = _tensor_of(data[split:], torch.uint8, (*rows, (width + 1) // 2))
        nibbles = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)[..., :width]
        integers = nibbles.to(torch.int8) - 8
    return (integers * scales).to(given)


def _stored_bytes(codec: Codec, stored: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of that shape before compression."""
    rows, width = math.prod(shape[:-1]), shape[-1]
    if codec == "int8":
        return rows * (stored.itemsize + width)
    if codec == "int4":
        return rows * (stored.itemsize + (width + 1) // 2)
    return rows * width * stored.itemsize


def _decode_first(view: memoryview) -> tuple[Tensor, int]:
    """The first record's tensor, and the bytes of the record."""
    if len(view) < _HEADER.size:
        raise TensorFormatError(f"{len(view)} bytes are too few for the header of a tensor")
    magic, version, given_at, stored_at, codec_at, dimensions, size = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise TensorFormatError(f"the bytes begin with {bytes(magic)!r}, a tensor with {_MAGIC!r}")
    if version != _VERSION:
        raise TensorFormatError(f"a tensor of version {version}; this kvlab reads {_VERSION}")
    head = _HEADER.size + 8 * dimensions
    start = head + _CHECKSUM.size
    if len(view) < start + size:
        raise TensorFormatError(f"a tensor of {start + size} bytes was cut to {len(view)}")
    payload = view[start : start + size]
    (checksum,) = _CHECKSUM.unpack_from(view, head)
    if checksum != zlib.crc32(payload, zlib.crc32(view[:head])):
        raise TensorFormatError("the checksum of a tensor is wrong: its bytes are damaged")
    shape = struct.unpack_from(f"<{dimensions}Q", view, _HEADER.size)
    known = max(given_at, stored_at) < len(_DTYPES) and codec_at < len(_CODECS)
    if not known or not 1 <= dimensions <= _MOST_DIMENSIONS or 0 in shape:
        raise TensorFormatError(
            f"a tensor of dtypes {given_at} and {stored_at}, codec {codec_at} and shape {shape} is not known"
        )
    given, stored, codec = _DTYPES[given_at], _DTYPES[stored_at], _CODECS[codec_at]
    expected = _stored_bytes(codec, stored, shape)
    if max(expected, math.prod(shape) * given.itemsize) > _MOST_BYTES:
        raise TensorFormatError(f"a tensor of shape {shape} is larger than {_MOST_BYTES} bytes")
    compressed = codec in ("lz4", "zstd", "gzip")
    plain = _decompress(codec, payload, expected) if compressed else payload
    if len(plain) != expected:
        raise TensorFormatError(f"a tensor of {expected} bytes has {len(plain)}")
    data = np.frombuffer(plain, dtype=np.uint8)
    if codec in _LEVELS:
        tensor = _dequantise(data, codec, stored, given, shape)
    else:
        ordered = _unshuffled(data, stored.itemsize) if compressed else data
        tensor = _tensor_of(ordered, stored, shape).to(given)
    return tensor, start + size


def _package(codec: Codec) -> Any:
    name = _PACKAGES[codec]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"codec {codec!r} needs the package {name.split('.')[0]}: pip install 'kvlab[remote]', or use gzip"
        ) from error


def _compress(codec: Codec, data: Bytes) -> bytes:
    """The fastest level of each: keys and values have little that a longer search would find."""
    compressed: bytes
    if codec == "lz4":
        compressed = _package(codec).compress(data, store_size=False)
    elif codec == "zstd":
        compressed = _package(codec).ZstdCompressor(level=1).compress(data)
    else:
        compressed = gzip.compress(data.data, compresslevel=1, mtime=0)
    return compressed


def _decompress(codec: Codec, payload: memoryview, expected: int) -> bytes:
    """The bytes again; a payload that claims to have more than expected is not unpacked further."""

    def broken(why: object) -> TensorFormatError:
        return TensorFormatError(f"{codec} cannot read the bytes of a tensor: {why}")

    plain: bytes
    if codec == "lz4":
        lz4 = _package(codec)
        try:
            plain = lz4.decompress(payload, uncompressed_size=expected)
        except lz4.LZ4BlockError as error:
            raise broken(error) from error
    elif codec == "zstd":
        zstandard = _package(codec)
        try:
            size = zstandard.get_frame_parameters(payload).content_size
            if size != expected:
                raise broken(f"{size} bytes instead of {expected}")
            plain = zstandard.ZstdDecompressor().decompress(payload, max_output_size=expected)
        except zstandard.ZstdError as error:
            raise broken(error) from error
    else:
        reader = zlib.decompressobj(wbits=31)
        try:
            plain = reader.decompress(payload, expected + 1)
        except zlib.error as error:
            raise broken(error) from error
    return plain
