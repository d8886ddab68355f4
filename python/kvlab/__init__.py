"""A hierarchical prefix-caching KV store for LLM inference on one machine.

`import kvlab` never imports torch; what needs it lives in `kvlab.hf`, to be imported by name.
"""

from __future__ import annotations

from kvlab._core import (
    BlockStore,
    KvLayout,
    PagedAllocator,
    PrefixCache,
    RadixCache,
    Store,
    __version__,
    build_info,
    export_namespace,
    inspect_store,
    parse_size,
    verify_store,
)
from kvlab.errors import (
    CapacityError,
    ConfigError,
    ForkedProcessError,
    FormatError,
    InvalidArgumentError,
    KvlabError,
    ModelUnavailableError,
    NotFoundError,
    ReadOnlyStoreError,
    StateError,
    StoreClosedError,
    StoreIOError,
    StoreLockedError,
    StoreTimeoutError,
    TraceFormatError,
    UnsafeDirectoryError,
    UnsupportedModelError,
    UnsupportedRequestError,
)

__all__ = [
    "BlockStore",
    "CapacityError",
    "ConfigError",
    "ForkedProcessError",
    "FormatError",
    "InvalidArgumentError",
    "KvLayout",
    "KvlabError",
    "ModelUnavailableError",
    "NotFoundError",
    "PagedAllocator",
    "PrefixCache",
    "RadixCache",
    "ReadOnlyStoreError",
    "StateError",
    "Store",
    "StoreClosedError",
    "StoreIOError",
    "StoreLockedError",
    "StoreTimeoutError",
    "TraceFormatError",
    "UnsafeDirectoryError",
    "UnsupportedModelError",
    "UnsupportedRequestError",
    "__version__",
    "build_info",
    "export_namespace",
    "inspect_store",
    "parse_size",
    "verify_store",
]
