"""A hierarchical prefix-caching KV store for LLM inference on one machine.

`import kvlab` never imports torch; what needs it lives in `kvlab.hf`, to be imported by name.
"""

from __future__ import annotations

from kvlab._core import __version__, build_info, parse_size
from kvlab.errors import (
    CapacityError,
    ConfigError,
    ForkedProcessError,
    FormatError,
    InvalidArgumentError,
    KvlabError,
    ModelUnavailableError,
    NotFoundError,
    StateError,
    StoreClosedError,
    StoreIOError,
    StoreLockedError,
    StoreTimeoutError,
    UnsupportedModelError,
    UnsupportedRequestError,
)

__all__ = [
    "CapacityError",
    "ConfigError",
    "ForkedProcessError",
    "FormatError",
    "InvalidArgumentError",
    "KvlabError",
    "ModelUnavailableError",
    "NotFoundError",
    "StateError",
    "StoreClosedError",
    "StoreIOError",
    "StoreLockedError",
    "StoreTimeoutError",
    "UnsupportedModelError",
    "UnsupportedRequestError",
    "__version__",
    "build_info",
    "parse_size",
]
