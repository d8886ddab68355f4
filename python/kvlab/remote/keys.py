"""Names of cached keys and values: the SHA-256 chain over a prefix, under a namespace, for a layer.

The chain is that of `kvlab.PrefixCache` and of SGLang's storage keys: `SHA-256(parent || token ids as uint32
little-endian)`, block by block, the first parent being the namespace. Here the last block may be partial: a name stands
for a whole prefix.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from kvlab._core import KvLayout
from kvlab._tokens import token_ids
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvlab.hf.layout import ModelLayout
    from kvlab.remote.serialise import Encoding

_BLOCK_BYTES = 64
"""16 token ids."""
_LOSSY = ("int8", "int4")


def namespace_of(
    model: str | bytes, layout: ModelLayout | None, salt: str, encoding: Encoding
) -> bytes:
    """32 bytes that stand for all that the cached bytes depend on, the tokens and the layer left out.

    Of the encoding that is what loses something: what lz4 wrote, a cache with zstd reads.
    """
    lossy = encoding.codec if encoding.codec in _LOSSY else ""
    fields = {
        "model": model.encode() if isinstance(model, str) else model,
        "layout": b"" if layout is None else described(layout),
        "salt": salt.encode(),
        "precision": f"{encoding.precision} {encoding.on_overflow} {lossy}".encode(),
    }
    return _digest(
        b"kvlab distributed v1",
        (part for name, value in fields.items() for part in (name.encode(), value)),
    )


def described(layout: ModelLayout) -> bytes:
    """The bytes that tell a model's layout from any other."""
    layers = [(shape.k_heads, shape.k_dim, shape.v_heads, shape.v_dim) for shape in layout.layers]
    blocks = KvLayout(layers, element_bytes=layout.element_bytes)
    return blocks.describe() + str(layout.dtype).encode()


def prefix_key(namespace: bytes, prefix: Any) -> tuple[bytes, int | None]:
    """The name of a prefix.

    Args:
        namespace: 32 bytes.
        prefix: Token ids, or a str, which stands for its UTF-8 bytes. The two never share a name.

    Returns:
        32 bytes, and the number of tokens; None for a str.

    Raises:
        InvalidArgumentError: It is empty, or no row of token ids.
    """
    if isinstance(prefix, str):
        if not prefix:
            raise InvalidArgumentError("the prefix is an empty str; give its text or its token ids")
        return _chain(_digest(namespace, [b"text"]), prefix.encode()), None
    ids = token_ids(prefix)
    return _chain(namespace, ids.astype("<u4").tobytes()), len(ids)


def layer_key(prefix: bytes, layer: int) -> bytes:
    """The name of a layer of a prefix."""
    return _digest(prefix, [b"layer", layer.to_bytes(4, "little")])


def _chain(parent: bytes, data: bytes) -> bytes:
    for start in range(0, len(data), _BLOCK_BYTES):
        parent = hashlib.sha256(parent + data[start : start + _BLOCK_BYTES]).digest()
    return parent


def _digest(begin: bytes, parts: Iterable[bytes]) -> bytes:
    """A digest of parts, each behind its length, so that no two lists read the same."""
    digest = hashlib.sha256(begin)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
