"""`DistributedKVCache`: keys and values of prompts by prefix and layer, shared by machines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from kvlab._core import BlockStore, parse_ttl
from kvlab.errors import (
    ConfigError,
    InvalidArgumentError,
    StoreClosedError,
    TensorFormatError,
)
from kvlab.hf.fingerprint import fingerprint
from kvlab.hf.layout import read_layout
from kvlab.remote.keys import layer_key, namespace_of, prefix_key
from kvlab.remote.serialise import Encoding, decode_all, encode_all
from kvlab.remote.shapes import Shapes
from kvlab.remote.stats import DistributedStats, Meter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from torch import Tensor
    from transformers import PreTrainedModel

    from kvlab._types import RemoteHealth
    from kvlab.hf.layout import ModelLayout
    from kvlab.near_misses import Decoder, NearMiss, PromptIndex
    from kvlab.remote.serialise import Codec, Overflow, Precision
    from kvlab.remote.stats import Miss

    KeyValue = tuple[Tensor, Tensor]


class DistributedKVCache:
    """Keys and values by prefix and layer, on a Redis or Valkey server that many machines share.

    A thin front over `kvlab.BlockStore`: its memory comes first, its L4 is the server, and all that is promised of
    them holds. Writes go to the server behind the caller, what is damaged is a miss, and a server that is slow or
    gone makes a miss within the time-out, never an error. A prefix is found as a whole or not at all; for the longest
    cached prefix of a prompt, attach a model to a `kvlab.Store` with the same server.

    `cache_prefix` and `get_cached_prefix` do for all layers what `cache_kv` and `get_cached_kv` do for one, on the same
    entries. They are faster: one lookup asks for all layers, so that the server is waited for two times instead of two
    times for each layer, the answers come over the network side by side, and the prefix is hashed once.

    A prefix is a list of token ids (or an array or tensor of them), or a str, which is hashed as its UTF-8 bytes. Keys
    are the SHA-256 chain over it under a namespace, a digest of model, layout, salt and of what the encoding loses; so
    caches that differ in one of these never meet. Safe from many threads.

    Args:
        redis_host: Where the server is.
        redis_port: Its port.
        precision: The dtype that is stored; see `Encoding`. What comes back is in the dtype that was given.
        compress: True for ``"zstd"``, False for ``"none"``, or the name of a codec; see `Encoding`.
        ttl_seconds: After how long it is forgotten: an int of seconds or e.g. ``"7d"``.
        on_overflow: What to do about numbers that the precision does not have; see `Encoding`.
        model: What the keys and values depend on: a model's name and revision, or the bytes of its
            `kvlab.hf.fingerprint`. `for_model` fills in this and the layout.
        layout: The model's, from `kvlab.hf.read_layout`. Without one, the first keys and values of
            each layer that pass through this object say what is expected of the next ones.
        salt: Caches under different salts never share anything.
        memory: Bytes of this process's memory that are asked before the server; 0 for none.
        store: Use this store, which stays the caller's, instead of opening one on the server.
        prompts: Remembers the prefixes, if they are token ids, that are written here; for `near_misses`.

    Raises:
        ConfigError: A setting that is not known, or a codec whose package is missing; a store and a server at once.
        InvalidArgumentError: A size or time that cannot be.
    """

    def __init__(
        self,
        redis_host: str | None = None,
        redis_port: int | None = None,
        *,
        precision: Precision = "float16",
        compress: bool | Codec = True,
        ttl_seconds: int | str = 86_400,
        on_overflow: Overflow = "bfloat16",
        model: str | bytes = "",
        layout: ModelLayout | None = None,
        salt: str = "",
        memory: int | str = "256MiB",
        store: BlockStore | None = None,
        prompts: PromptIndex | None = None,
    ) -> None:
        codec: Codec = compress if isinstance(compress, str) else ("zstd" if compress else "none")
        self._encoding = Encoding(precision, codec, on_overflow)
        self._namespace = namespace_of(model, layout, salt, self._encoding)
        self._ttl = parse_ttl(ttl_seconds)
        self._shapes = Shapes(layout)
        self._meter = Meter()
        self._prompts = prompts
        self._owned = store is None
        if store is None:
            url = (
                f"redis://{redis_host or 'localhost'}:{6379 if redis_port is None else redis_port}"
            )
            store = BlockStore.open(l2=memory, remote=url, remote_ttl=self._ttl)
        elif redis_host is not None or redis_port is not None:
            raise ConfigError(
                "a store and a server were given; open the store with remote=URL, or leave it out"
            )
        self._store = store

    @classmethod
    def for_model(cls, model: PreTrainedModel, **settings: Any) -> Self:
        """Make one whose namespace is a transformers model: its weights, settings and layout.

        Args:
            model: A decoder-only model on the CPU that `kvlab.hf.check_model` takes. Its weights are hashed.
            **settings: The others.

        Raises:
            UnsupportedModelError: It does not cache one row of keys and values a token.
        """
        layout = read_layout(model)
        return cls(model=fingerprint(model, layout, chunk_tokens=0), layout=layout, **settings)

    def cache_kv(self, prefix: Any, layer: int, k: Tensor, v: Tensor) -> bool:
        """Keep a layer's keys and values of a prefix; what is there already stays as it is.

        Args:
            prefix: Token ids or a str.
            layer: From 0.
            k: ``[heads, tokens, dim]`` or ``[1, heads, tokens, dim]``: float32, float16 or bfloat16.
            v: As k, of as many tokens; heads and dim may be others.

        Returns:
            Whether the store took it.

        Raises:
            InvalidArgumentError: Shapes or dtypes that disagree with the namespace, the prefix or each other.
            PrecisionOverflowError: Numbers that the precision does not have, and that is to be refused.
            StoreClosedError: The store is closed.
        """
        return self._put(prefix, {layer: (k, v)})

    def get_cached_kv(self, prefix: Any, layer: int) -> KeyValue | None:
        """Find a layer's keys and values of a prefix.

        Returns:
            K and V on the CPU, of the shape and dtype that were given; None for a miss.

        Raises:
            InvalidArgumentError: An empty prefix, or a layer that there cannot be.
            StoreClosedError: The store is closed.
        """
        self._shapes.check_layer(layer)
        found = self._get(prefix, [layer])
        return None if found is None else found[0]

    def cache_prefix(self, prefix: Any, layers: Sequence[KeyValue]) -> bool:
        """Keep the keys and values of all layers of a prefix; all are checked before one is stored.

        Args:
            prefix: Token ids or a str.
            layers: K and V of each layer, from the first to the last; see `cache_kv`.

        Returns:
            Whether the store took all of them.

        Raises:
            InvalidArgumentError: As for `cache_kv`, or another number of layers than the namespace has.
            PrecisionOverflowError: As for `cache_kv`.
            StoreClosedError: The store is closed.
        """
        self._shapes.check_count(len(layers))
        return self._put(prefix, dict(enumerate(layers)), whole=True)

    def get_cached_prefix(self, prefix: Any, layers: int | None = None) -> list[KeyValue] | None:
        """Find the keys and values of all layers of a prefix.

        Args:
            prefix: Token ids or a str.
            layers: How many there are; needed only without a layout, before a whole prefix was written or found.

        Returns:
            K and V of each layer; None if one of them is missing.

        Raises:
            InvalidArgumentError: An empty prefix, or a number of layers that is not known or disagrees.
            StoreClosedError: The store is closed.
        """
        count = self._shapes.layers if layers is None else layers
        if count is None:
            raise InvalidArgumentError(
                "how many layers the prefix has is not known; give layers, or make the cache with a layout"
            )
        self._shapes.check_count(count)
        found = self._get(prefix, range(count))
        if found is not None:
            self._shapes.layers = count
        return found

    def near_misses(
        self, prompt: Any, *, limit: int = 3, tokenizer: Decoder | None = None
    ) -> list[NearMiss]:
        """Find prefixes written here that share much with a prompt and part from it; see `PromptIndex.near_misses`.

        Raises:
            ConfigError: The cache was made without ``prompts``.
            InvalidArgumentError: No row of token ids.
        """
        if self._prompts is None:
            raise ConfigError(
                "no prompts are remembered; make the cache with prompts=PromptIndex()"
            )
        return self._prompts.near_misses(prompt, limit=limit, tokenizer=tokenizer)

    def health(self) -> RemoteHealth | None:
        """Ask the servers for a sign of life and their memory, for at most the time-out; None without any.

        The cache works without them, with what is in this process.

        Raises:
            StoreClosedError: The store is closed.
        """
        return self._store.remote_health()

    def stats(self) -> DistributedStats:
        """Hits, misses, bytes and latencies of this object, what its store says, and `health`."""
        try:
            health = self._store.remote_health()
        except StoreClosedError:
            health = None  # the counts are still there
        return self._meter.stats(self._store.stats(), health)

    def flush(self, timeout: float = 60.0) -> None:
        """Wait until what was written is on the server, or was given up.

        Raises:
            StoreTimeoutError: It took longer than ``timeout`` seconds.
            StoreClosedError: The store is closed.
        """
        self._store.flush(timeout)

    def close(self) -> None:
        """Finish writing and close the store, unless it is the caller's; a second call does nothing."""
        if self._owned:
            self._store.close()

    def __enter__(self) -> Self:
        """Use as a context manager to close at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _put(self, prefix: Any, layers: dict[int, KeyValue], *, whole: bool = False) -> bool:
        began = time.perf_counter()
        name, tokens = prefix_key(self._namespace, prefix)
        shapes = self._shapes.with_layers(layers, tokens)
        if whole:
            shapes.layers = len(layers)
        entries = {
            layer_key(name, layer): encode_all(pair, self._encoding)
            for layer, pair in layers.items()
        }
        taken = [self._store.put(key, data, ttl=self._ttl) for key, data in entries.items()]
        self._shapes = shapes
        self._meter.wrote(
            time.perf_counter() - began,
            sum(map(len, entries.values())),
            _tensor_bytes(layers.values()),
            taken=all(taken),
        )
        if self._prompts is not None and tokens is not None:
            self._prompts.add(prefix)
        return all(taken)

    def _get(self, prefix: Any, layers: Sequence[int]) -> list[KeyValue] | None:
        began = time.perf_counter()
        name, tokens = prefix_key(self._namespace, prefix)
        entries = self._store.get_many([layer_key(name, layer) for layer in layers])
        found = self._read(entries, layers, tokens)
        seconds = time.perf_counter() - began
        if isinstance(found, str):
            self._meter.miss(seconds, found)
            return None
        stored = sum(len(entry) for entry in entries if entry is not None)
        self._meter.hit(seconds, stored, _tensor_bytes(found))
        return found

    def _read(
        self, entries: Sequence[bytes | None], layers: Sequence[int], tokens: int | None
    ) -> list[KeyValue] | Miss:
        """The keys and values in entries, or why there are none."""
        found: dict[int, KeyValue] = {}
        for layer, entry in zip(layers, entries, strict=True):
            if entry is None:
                return "absent"
            try:
                tensors = decode_all(entry)
            except TensorFormatError:
                return "damaged"
            if len(tensors) != 2:
                return "damaged"
            found[layer] = (tensors[0], tensors[1])
        try:
            self._shapes = self._shapes.with_layers(found, tokens)
        except InvalidArgumentError:
            return "shape"
        return list(found.values())


def _tensor_bytes(pairs: Any) -> int:
    return sum(tensor.nbytes for pair in pairs for tensor in pair)
