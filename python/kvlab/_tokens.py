"""Token ids as callers have them, as one row of uint32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def token_ids(tokens: Any) -> NDArray[np.uint32]:
    """Read the ids of a prompt.

    Args:
        tokens: ``[tokens]`` or ``[1, tokens]``: a list of ints, an array or a CPU tensor of integers, each 0 to
            2**32 - 1; at least one.

    Returns:
        ``[tokens]``, in memory of its own.

    Raises:
        InvalidArgumentError: Anything else.
    """
    try:
        ids = np.asarray(tokens)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the prompt is no row of token ids: {error}") from error
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.size == 0:
        raise InvalidArgumentError("the prompt is empty; give at least one token id")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"the prompt is an array of {ids.dtype} of shape {ids.shape}; give one row of integer token ids"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= 1 << 32:
        raise InvalidArgumentError(
            f"{low if low < 0 else high} is no token id; give ids of 0 to 4294967295"
        )
    return np.array(ids, dtype=np.uint32)
