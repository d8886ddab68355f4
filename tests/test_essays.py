"""The essays and the write-up: their length, figures and sources, and what they say in words about numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ESSAYS = sorted((ROOT / "docs" / "essays").glob("[0-9]*.md"))
CAPSTONE = ROOT / "docs" / "capstone.md"
NOT_READ = re.compile(r"<!--.*?-->|^```.*?^```|(?<=\])\([^)]*\)", re.DOTALL | re.MULTILINE)


def words(text: str) -> int:
    """As a reader counts them: no marks, no addresses, no diagrams, no rules of tables."""
    return len(re.findall(r"\w[\w'.,/-]*", NOT_READ.sub("", text)))


def pictures(page: Path) -> list[Path]:
    found = re.findall(r"!\[[^\]]+\]\(([^)]+\.svg)\)", page.read_text(encoding="utf-8"))
    return [(page.parent / target).resolve() for target in found]


def test_there_are_eight_and_the_list_has_them_all() -> None:
    assert [page.name[:2] for page in ESSAYS] == [f"{number:02}" for number in range(1, 9)]
    listed = (ROOT / "docs" / "essays" / "README.md").read_text(encoding="utf-8")
    for page in ESSAYS:
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert f"[{title}]({page.name})" in listed


@pytest.mark.parametrize("page", ESSAYS, ids=lambda page: page.stem)
def test_an_essay_is_short_has_a_figure_made_here_and_links_its_sources(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert 500 <= words(text) <= 900
    made = {ROOT / "docs" / "figures", ROOT / "docs"}
    assert pictures(page)
    assert all(picture.parent in made and picture.is_file() for picture in pictures(page))
    assert "https://" in text.partition("## Sources")[2] or "Linked above" in text
    assert "TODO" not in text


def test_the_write_up_is_of_a_length_that_is_read_to_the_end() -> None:
    assert 1500 <= words(CAPSTONE.read_text(encoding="utf-8")) <= 2500
    assert all(picture.is_file() for picture in pictures(CAPSTONE))
