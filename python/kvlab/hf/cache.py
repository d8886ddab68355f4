"""A transformers cache whose layers live in memory allocated beforehand.

``DynamicLayer.update`` concatenates, so every step of generation copies the whole prefix. The
layers here copy only the new rows into a buffer with room to spare and hand out views of it.
That is faster, bit-identical, and it lets a restore write straight into the memory the model
computes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from kvlab.errors import CapacityError, ConfigError, UnsupportedRequestError
from kvlab.hf.layout import LayerShape

KeyValue = tuple[Tensor, Tensor]
"""One layer's buffers: K ``[1, k_heads, capacity, k_dim]``, V ``[1, v_heads, capacity, v_dim]``."""


class PreallocatedLayer(DynamicLayer):
    """One layer: two preallocated buffers of which the first ``length`` rows are valid.

    ``keys`` and ``values`` are always views of exactly the valid rows, for code that reads them
    as it reads a ``DynamicLayer``. No gradient flows through the buffers.
    """

    keys: Tensor  # never None here: there is no lazy initialisation
    values: Tensor

    def __init__(self, key: Tensor, value: Tensor, length: int) -> None:
        """Wrap buffers that the caller owns.

        Args:
            key: ``[1, k_heads, capacity, k_dim]``.
            value: ``[1, v_heads, capacity, v_dim]``, same capacity, dtype and device.
            length: Valid rows at the start of both, in tokens.

        Raises:
            ConfigError: The shapes, dtypes or the length do not go together.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        if key.ndim != 4 or value.ndim != 4 or key.shape[0] != 1 or value.shape[0] != 1:
            raise ConfigError(
                "cache buffers must be [1, heads, capacity, dim]; got K "
                f"{tuple(key.shape)} and V {tuple(value.shape)}"
            )
        if key.shape[2] != value.shape[2] or key.dtype != value.dtype:
            raise ConfigError(
                "K and V buffers must agree in capacity and dtype; got "
                f"{key.shape[2]} tokens of {key.dtype} and {value.shape[2]} of {value.dtype}"
            )
        if not 0 <= length <= key.shape[2]:
            raise ConfigError(f"length {length} is not within 0..{key.shape[2]} (the capacity)")
        self.dtype, self.device = key.dtype, key.device
        self.is_initialized = True
        self._key, self._value = key, value
        self.growable = False
        self._set_length(length)

    @property
    def length(self) -> int:
        """Valid tokens."""
        return self._length

    @property
    def capacity(self) -> int:
        """Tokens the buffers have room for."""
        return int(self._key.shape[2])

    @property
    def buffers(self) -> KeyValue:
        """The whole K and V buffers, valid rows and headroom."""
        return self._key, self._value

    def _set_length(self, length: int) -> None:
        self._length = length
        self.keys = self._key.narrow(2, 0, length)
        self.values = self._value.narrow(2, 0, length)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeyValue:
        """Append rows in place.

        Args:
            key_states: ``[1, k_heads, new, k_dim]``.
            value_states: ``[1, v_heads, new, v_dim]``.
            *args: Ignored, as in ``DynamicLayer``.
            **kwargs: Ignored, as in ``DynamicLayer``.

        Returns:
            Views of all valid keys and values, the new rows included.

        Raises:
            UnsupportedRequestError: The batch is not 1.
            CapacityError: The rows do not fit; growing is up to the cache, which knows all layers.
        """
        if key_states.shape[0] != 1:
            raise UnsupportedRequestError(
                f"a preallocated cache holds one sequence, got a batch of {key_states.shape[0]}"
            )
        start, end = self._length, self._length + key_states.shape[2]
        if end > self.capacity:
            raise CapacityError(
                f"{end} tokens do not fit into a cache of {self.capacity} tokens; "
                "allocate it with room for the prompt and all new tokens"
            )
        # Detached: a graph through a buffer that is written again would grow with every step.
        self._key.narrow(2, start, end - start).copy_(key_states.detach())
        self._value.narrow(2, start, end - start).copy_(value_states.detach())
        self._set_length(end)
        return self.keys, self.values

    def move_to(self, key: Tensor, value: Tensor) -> None:
        """Copy the valid rows into larger buffers and go on there."""
        length = self._length
        key.narrow(2, 0, length).copy_(self.keys)
        value.narrow(2, 0, length).copy_(self.values)
        self._key, self._value = key, value
        self._set_length(length)

    def get_seq_length(self) -> int:
        """Return the number of valid tokens."""
        return self._length

    def get_max_length(self) -> int:
        """Return -1 (unbounded) where the buffers can grow, else their capacity in tokens."""
        return -1 if self.growable else self.capacity

    def crop(self, tokens_to_remove: int) -> None:
        """Drop tokens from the end; the buffers stay.

        Args:
            tokens_to_remove: Zero or negative, as in transformers 5: ``-n`` drops n tokens.

        Raises:
            ConfigError: The value is positive, or drops more tokens than there are.
        """
        if tokens_to_remove > 0 or -tokens_to_remove > self._length:
            raise ConfigError(
                f"crop({tokens_to_remove}) on {self._length} cached tokens: give the number of "
                "tokens to drop as a negative value, at most the cached length"
            )
        self._set_length(self._length + tokens_to_remove)

    def reset(self) -> None:
        """Forget all tokens; the buffers stay, and their bytes are not cleared."""
        self._set_length(0)

    def reorder_cache(self, beam_idx: Tensor) -> NoReturn:
        """Refuse: beams are several sequences."""
        self._refuse_batch("beam search")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refuse: the buffers hold one sequence."""
        self._refuse_batch(f"repeating it {repeats} times")

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        """Refuse: the buffers hold one sequence."""
        self._refuse_batch("selecting from a batch")

    def _refuse_batch(self, what: str) -> NoReturn:
        raise UnsupportedRequestError(
            f"{what} is not possible on a preallocated cache, which holds one sequence; "
            "use transformers' DynamicCache for this request"
        )


class PreallocatedCache(DynamicCache):
    """A cache of `PreallocatedLayer`, for ``model(...)`` and ``model.generate(full_input_ids)``.

    All layers keep every token, sliding-window ones too: the model's masks apply the window, and
    a layer that dropped tokens could not be cut at an arbitrary token any more.

    Attributes:
        grow: Called with the tokens needed, returns buffers at least that large for every layer.
            The cache copies the valid rows over and drops its references to the old buffers.
        before_layer: Called with the layer index before that layer is read or written, possibly
            several times a layer; a restore uses it to wait until the layer's bytes are there.
            What it raises aborts the forward. Once it returns True it is dropped: no layer has
            to be waited for any more.
        before_truncate: Called before rows are given up by ``crop`` or ``reset``, so that a
            reader of them can finish first.
    """

    layers: list[PreallocatedLayer]  # type: ignore[assignment]  # one kind of layer only

    def __init__(
        self,
        buffers: Sequence[KeyValue],
        length: int,
        *,
        grow: Callable[[int], list[KeyValue]] | None = None,
        before_layer: Callable[[int], bool | None] | None = None,
        before_truncate: Callable[[], None] | None = None,
    ) -> None:
        """Build a cache over buffers that the caller owns; nothing is copied.

        Args:
            buffers: K and V of every layer, see `KeyValue`; one capacity for all.
            length: Tokens valid in every layer.
            grow: See the class.
            before_layer: See the class.
            before_truncate: See the class.

        Raises:
            ConfigError: No layers, or shapes, dtypes or lengths that do not go together.
        """
        layers = [PreallocatedLayer(key, value, length) for key, value in buffers]
        if not layers or len({(layer.capacity, layer.dtype) for layer in layers}) != 1:
            raise ConfigError(
                "a cache needs at least one layer, all of one capacity and dtype; got "
                f"{sorted({(layer.capacity, str(layer.dtype)) for layer in layers})}"
            )
        # Not DynamicCache.__init__: it would build layers of its own, lazily or from a config.
        Cache.__init__(self, layers=[*layers])
        self.grow = grow
        self.before_layer = before_layer
        self.before_truncate = before_truncate
        # A flag only: layers that pointed back at their cache would keep its memory until a garbage collection.
        for layer in layers:
            layer.growable = grow is not None

    @classmethod
    def allocate(
        cls, shapes: Sequence[LayerShape], capacity: int, dtype: torch.dtype
    ) -> PreallocatedCache:
        """Build an empty cache in plain torch memory.

        Args:
            shapes: One per layer, e.g. ``read_layout(model).layers``.
            capacity: Tokens; the cache does not grow.
            dtype: The model's dtype.

        Returns:
            A cache of length 0. Its memory is written once, so that no page fault falls into a
            timed forward.

        Raises:
            ConfigError: The capacity is not positive, or there are no layers.
        """
        if capacity <= 0:
            raise ConfigError(f"capacity must be at least 1 token, got {capacity}")
        # Tensors made in inference mode could not be written outside of it later.
        with torch.inference_mode(False):
            buffers = [
                (
                    torch.zeros(1, shape.k_heads, capacity, shape.k_dim, dtype=dtype),
                    torch.zeros(1, shape.v_heads, capacity, shape.v_dim, dtype=dtype),
                )
                for shape in shapes
            ]
        return cls(buffers, 0)

    @property
    def length(self) -> int:
        """Valid tokens (between forwards, the same in every layer)."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        """Tokens the buffers have room for."""
        return self.layers[0].capacity

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> KeyValue:
        """Append one layer's new rows; see `PreallocatedLayer.update`."""
        self._await_layer(layer_idx)
        layer = self.layers[layer_idx]
        end = layer.length + key_states.shape[2]
        if end > layer.capacity and self.grow is not None:
            self._grow_to(end, self.grow)
        return layer.update(key_states, value_states)

    def _await_layer(self, index: int) -> None:
        if self.before_layer is not None and self.before_layer(index):
            self.before_layer = None

    def crop(self, tokens_to_remove: int) -> None:
        """Drop tokens from the end of every layer; see `PreallocatedLayer.crop`."""
        if tokens_to_remove != 0 and self.before_truncate is not None:
            self.before_truncate()
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget all tokens; see `PreallocatedLayer.reset`."""
        if self.before_truncate is not None:
            self.before_truncate()
        super().reset()  # type: ignore[no-untyped-call]

    def _grow_to(self, tokens: int, grow: Callable[[int], list[KeyValue]]) -> None:
        larger = grow(tokens)
        if len(larger) != len(self.layers) or any(key.shape[2] < tokens for key, _ in larger):
            raise CapacityError(
                f"grow({tokens}) returned buffers for {len(larger)} of {len(self.layers)} layers "
                f"or smaller than {tokens} tokens"
            )
        for index, (layer, (key, value)) in enumerate(zip(self.layers, larger, strict=True)):
            self._await_layer(index)  # rows that have not arrived yet would be copied as junk
            layer.move_to(key, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> PreallocatedCache:
        """Copy the rows into memory of the copy's own, without the callbacks of the owner.

        Copying a cache to go on from one prompt several times is transformers' documented
        recipe, and a default deep copy would drag the store behind the callbacks along.
        """
        with torch.inference_mode(False):
            for index in range(len(self.layers)):
                self._await_layer(index)
            buffers = [
                (layer.buffers[0].clone(), layer.buffers[1].clone()) for layer in self.layers
            ]
        return PreallocatedCache(buffers, self.length)
