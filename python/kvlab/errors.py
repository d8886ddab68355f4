"""Errors that only the Python side can raise.

They extend the tree that the native module defines, so ``except kvlab.KvlabError`` catches
every error kvlab raises on purpose, whichever side it came from.
"""

from __future__ import annotations

from kvlab._core import KvlabError


class ModelUnavailableError(KvlabError):
    """A model was named that is neither on this machine nor obtainable from it."""


class UnsupportedModelError(KvlabError):
    """A model keeps state that cannot be cut at a token, so no prefix of it can be reused."""


class UnsupportedRequestError(KvlabError):
    """A request asks for something the prefix cache cannot serve without changing the answer."""
