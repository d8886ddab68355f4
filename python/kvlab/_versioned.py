"""JSON files that say which of kvlab's formats they are, and in which version."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from kvlab.errors import KvlabError

__all__ = ["read_versioned"]


def read_versioned(
    path: Path, field: str, version: int, writer: str, error: type[KvlabError]
) -> dict[str, Any]:
    """Reads such a file.

    Args:
        path: The file.
        field: What names the format; its value is the version.
        version: The one that can be read.
        writer: The command that writes it, for the message.
        error: What is raised for a file that is none.

    Raises:
        KvlabError: `error`; names file and field.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: is no JSON: {reason}") from None
    if not isinstance(content, dict) or content.get(field) != version:
        raise error(f"{path}, {field}: is not {version}; `{writer}` writes such a file")
    return content
