"""docs/code-walkthrough.md: what it names stands in the file that it links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "code-walkthrough.md"
NAMED = re.compile(r"\]\((\.\./[^)]+\.(?:py|rs))\)\s+(`\w+`(?:,\s+`\w+`)*)")


def named() -> list[tuple[str, str]]:
    found = NAMED.findall(PAGE.read_text(encoding="utf-8"))
    return [(file, name) for file, names in found for name in re.findall(r"\w+", names)]


def test_there_is_something_to_check() -> None:
    assert len(named()) > 50


@pytest.mark.parametrize(("file", "name"), named())
def test_it_is_there(file: str, name: str) -> None:
    text = (PAGE.parent / file).read_text(encoding="utf-8")
    assert re.search(rf"\b(?:def|class|fn|struct|trait) {name}\b", text), f"{file} has no {name}"
