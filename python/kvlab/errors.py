"""The exceptions of kvlab: one small tree under `KvlabError`.

This is the only place where they are defined; the Rust core raises its own from here. Every
message names the offending value and what to do about it. Where a built-in exception says the same
thing it is a second base, so that `except ValueError` or `except OSError` works as expected.

Damaged bytes on a lower tier are no exception: they are a miss, counted with its reason.
"""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "ConfigError",
    "EndpointError",
    "EngineClosingError",
    "ForkedProcessError",
    "FormatError",
    "GenerationError",
    "InvalidArgumentError",
    "KvlabError",
    "ModelUnavailableError",
    "NotFoundError",
    "PromptTooLongError",
    "QueueFullError",
    "ReadOnlyStoreError",
    "RemoteError",
    "StateError",
    "StoreClosedError",
    "StoreIOError",
    "StoreLockedError",
    "StoreTimeoutError",
    "TraceFormatError",
    "UnsafeDirectoryError",
    "UnsupportedModelError",
    "UnsupportedRequestError",
]


class KvlabError(Exception):
    """Anything that kvlab refuses or cannot do."""

    def __str__(self) -> str:
        # The second bases print differently: KeyError quotes, OSError puts the number first.
        message = self.args[-1] if self.args else ""
        return str(message)


class InvalidArgumentError(KvlabError, ValueError):
    """An argument that can never be right: wrong size or dtype, empty, out of range."""


class ConfigError(KvlabError, ValueError):
    """A setting that cannot be used: unknown policy, unreadable size, unwritable directory."""


class CapacityError(KvlabError):
    """The configured memory has run out. Nothing was changed.

    Evict, free sequences, or configure more.
    """


class NotFoundError(KvlabError, KeyError):
    """A sequence or block that is not live: it was freed or never handed out."""


class StateError(KvlabError):
    """A call that the object's state does not allow, such as unlocking twice."""


class StoreClosedError(StateError):
    """The store was closed."""


class ReadOnlyStoreError(StateError):
    """A change to a store that was opened with ``read_only``."""


class ForkedProcessError(StateError):
    """A forked child used what its parent had opened. Open it in the child."""


class StoreLockedError(KvlabError):
    """Another process holds the cache directory; the message names it."""


class UnsafeDirectoryError(KvlabError):
    """A cache directory that others can put files into; the message says why and what to do."""


class FormatError(KvlabError):
    """A directory or file that is not what kvlab wrote there, or of a format that this version does not read."""


class TraceFormatError(KvlabError, ValueError):
    """A trace or workload that is not what its format says; names file, line and field."""


class StoreIOError(KvlabError, OSError):
    """The operating system refused an open, create or lock; `errno` is its number if it has one."""


class StoreTimeoutError(KvlabError, TimeoutError):
    """A wait that ended before what it waited for."""


class RemoteError(KvlabError, OSError):
    """A server of the shared tier (L4) did not do what it was asked; names the server and what to do.

    Raised only where a server itself was asked for something. A restore that it fails is a miss.
    """


class EndpointError(KvlabError):
    """A server that is down, slow, refuses a request, or answers what is not to be understood.

    Attributes:
        kind: `connect`, `timeout`, `status`, `garbage` or `broken`, for counting.
    """

    def __init__(self, message: str, *, kind: str = "broken") -> None:
        super().__init__(message)
        self.kind = kind


class ModelUnavailableError(KvlabError):
    """A model was named that is neither on this machine nor obtainable from it."""


class UnsupportedModelError(KvlabError):
    """A model keeps state that cannot be cut at a token, so no prefix of it can be reused."""


class UnsupportedRequestError(KvlabError):
    """A request that the prefix cache cannot serve without changing the answer."""


class PromptTooLongError(InvalidArgumentError):
    """A prompt that leaves no room for an answer within the model's context."""


class QueueFullError(KvlabError):
    """As many requests wait as may. Try again later."""


class EngineClosingError(StateError):
    """A request for an engine that is closing or closed."""


class GenerationError(KvlabError):
    """The model failed on a request; the message is what it said. Other requests go on."""
