"""API keys, and the cache salts that keep those who hold them apart."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

from kvlab.errors import ConfigError
from kvlab.serve.api.errors import AUTHENTICATION, ApiError

MIN_KEY = 8
SEPARATOR = "/"


class KeyRing:
    """Keys with the salt of each. Only digests of the keys are kept.

    Args:
        salts: A salt for each key. Keys with one salt share their cache.

    Raises:
        ConfigError: no key, one that is too short, or a salt that is empty or has a `/`.
    """

    def __init__(self, salts: Mapping[str, str]) -> None:
        if not salts:
            raise ConfigError("there is no API key; give at least one, or no list of keys")
        for number, (key, salt) in enumerate(salts.items(), 1):
            if len(key) < MIN_KEY:
                raise ConfigError(f"API key {number} has fewer than {MIN_KEY} characters")
            if not salt or SEPARATOR in salt:
                message = f"the salt {salt!r} of API key {number} must not be empty or have a '/'"
                raise ConfigError(message)
        self._salts = {_digest(key): salt for key, salt in salts.items()}

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._salts)

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Reads a file of keys: one a line, `KEY SALT`, blank lines and lines with `#` left out.

        Raises:
            ConfigError: the file cannot be read, or a line is none of these; the message names the
                line and never the key.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API keys in {path} cannot be read: {error}") from error
        salts: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2:
                raise ConfigError(f"{path}, line {number}: write KEY SALT, with one space between")
            if words[0] in salts:
                raise ConfigError(f"{path}, line {number}: the key is there twice")
            salts[words[0]] = words[1]
        try:
            return cls(salts)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def tenant(self, authorization: str | None) -> str:
        """The salt of whoever sends this `Authorization` header.

        Args:
            authorization: `Bearer KEY`, or `Basic` with the key as the password, which browsers send.

        Raises:
            ApiError: 401, for no key and for an unknown one alike.
        """
        key = _key_of(authorization or "")
        salt = None if key is None else self._salts.get(_digest(key))
        if salt is None:
            problem = "no API key was sent" if key is None else "the API key is not known"
            raise ApiError(
                401,
                f"{problem}: send one as 'Authorization: Bearer KEY'",
                kind=AUTHENTICATION,
                code="invalid_api_key",
                # Alone: Chromium reads one challenge a line, and asks nobody for a password behind another one.
                headers={"WWW-Authenticate": 'Basic realm="kvlab", charset="UTF-8"'},
            )
        return salt


def combined(tenant: str, cache_salt: str) -> str:
    """The salt of a request: no two pairs give the same, since no tenant has a `/`.

    Args:
        tenant: The salt of the key; empty on a server without keys.
        cache_salt: The request's own.
    """
    return f"{tenant}{SEPARATOR}{cache_salt}" if tenant or cache_salt else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key_of(authorization: str) -> str | None:
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic":
        try:
            _, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return password or None
    return None
