"""Messages of chat, as files and logs have them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvlab.sim.formats.rows import Row

__all__ = ["body", "content", "is_call", "time_ms"]

_TIMES = ("timestamp", "created", "created_at", "time")


def body(row: Row) -> Row:
    """What was sent: the row itself, or its `body` as in batch files."""
    return row.row("body", row.value("body")) if "body" in row else row


def time_ms(row: Row) -> float | None:
    """When a row was sent, in milliseconds; None if it does not say."""
    name = next((name for name in _TIMES if name in row), None)
    if name is None:
        return None
    seconds = row.number(name)
    if not math.isfinite(seconds * 1000):
        raise row.error(name, f"is {seconds}, too many seconds")
    return seconds * 1000


def is_call(message: Row) -> bool:
    """Whether a model was called for this message: it is the assistant's, and no demonstration."""
    demonstration = "is_demo" in message and bool(message.value("is_demo"))
    return message.text("role") == "assistant" and not demonstration


def content(message: Row) -> list[str]:
    """What a message says, in pieces: its name, its calls of tools, its text."""
    pieces = []
    if "name" in message:
        pieces.append(message.text("name"))
    if "tool_calls" in message:
        pieces.append(json.dumps(message.value("tool_calls"), sort_keys=True))
    if "content" in message:
        text = message.value("content")
        pieces.append(text if isinstance(text, str) else _parts(message, text))
    return pieces


def _parts(message: Row, parts: Any) -> str:
    """Content in parts, of which only text and the names of the others count."""
    if not isinstance(parts, list):
        raise message.error("content", "is neither text nor a list of parts")
    whole = json.dumps(parts, sort_keys=True)
    texts = [part.text("text") if "text" in part else whole for part in message.rows("content")]
    return "\n".join(texts)
