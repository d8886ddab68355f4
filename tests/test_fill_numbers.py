"""The numbers of the docs: what fills them in, and whether they are up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from fill_numbers import NumberError, differences, filled

MEASURED: dict[str, Any] = {
    "rows": [
        {"arm": "naive", "tokens": 512, "seconds": 0.25},
        {"arm": "cached", "tokens": 512, "seconds": 0.05},
        {"arm": "cached", "tokens": 1024, "seconds": 0.0625},
    ],
    "bytes": 3 * 2**20,
    "sizes": [8, 16],
    "wasted": 0.925,
    "title": "MHA",
    "nothing": 0,
    "fine": True,
}
PATHS = {
    "m:toy:bytes:,d": "3,145,728",
    "m:toy:bytes:.1f MiB": "3.0 MiB",
    "m:toy:wasted:.1%": "92.5%",
    "m:toy:wasted:.1f %": "92.5 %",
    "m:toy:sizes[1]:d": "16",
    "m:toy:sizes.0:d": "8",
    "m:toy:sizes[-1]:d": "16",
    "m:toy:title:s": "MHA",
    "m:toy:rows[arm=cached&tokens=512].seconds:.0f ms": "50 ms",
    "m:toy:rows[arm=naive].seconds / rows[tokens=512&arm=cached].seconds:.1f": "5.0",
    "m:toy:bytes / other/report.json:bytes:.2f": "1.50",
    "m:other/report.json:bytes:d": str(2 * 2**20),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("root")
    (made / "docs" / "measurements").mkdir(parents=True)
    (made / "docs" / "measurements" / "toy.json").write_text(json.dumps(MEASURED))
    (made / "other").mkdir()
    (made / "other" / "report.json").write_text('{"bytes": 2097152}')
    (made / "README.md").write_text("It is **13.8** (13.1-15.7) times.\n")
    return made


@pytest.mark.parametrize("mark", PATHS)
def test_what_a_mark_is_filled_with(root: Path, mark: str) -> None:
    wanted = f"It is <!-- {mark} -->{PATHS[mark]}<!-- /m -->."
    assert filled(f"It is <!-- {mark} -->?<!-- /m -->.", root) == wanted


PLAIN = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=30)
SAID = st.text(st.characters(exclude_characters="<\n\r", exclude_categories=["Cs"]), max_size=9)


@given(pieces=st.lists(st.tuples(PLAIN, st.sampled_from(sorted(PATHS)), SAID)), end=PLAIN)
def test_a_filled_text_stays_as_it_is_and_the_words_around_its_numbers_too(
    root: Path, pieces: list[tuple[str, str, str]], end: str
) -> None:
    text = (
        "".join(f"{words}x<!-- {mark} -->{said}<!-- /m -->" for words, mark, said in pieces) + end
    )
    wanted = "".join(
        f"{words}x<!-- {mark} -->{PATHS[mark]}<!-- /m -->" for words, mark, _ in pieces
    ) + end  # fmt: skip
    once = filled(text, root)
    assert once == wanted
    assert filled(once, root) == once
    assert len(differences(text, once)) == sum(said != PATHS[mark] for _, mark, said in pieces)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("m:gone:bytes:d", r"no such measurement: docs/measurements/gone\.json; run make measure"),
        ("m:toy:byte:d", "no 'byte' in 'byte': there are rows, bytes"),
        ("m:toy:bytes.more:d", "no 'more' in 'bytes.more': it has no keys"),
        ("m:toy:rows[arm=cached].seconds:d", "2 entries with arm=cached"),
        ("m:toy:rows[arm=paged].seconds:d", "0 entries with arm=paged"),
        ("m:toy:sizes[7]:d", r"no entry \[7\] in a list of 2"),
        ("m:toy:bytes[0]:d", "asks for an entry of a list"),
        ("m:toy:rows:d", "'rows' is no number and no text but list"),
        ("m:toy:fine:d", "no number and no text but bool"),
        ("m:toy:wasted:d", "0.925 does not go into the format 'd'"),
        ("m:toy:bytes:d miles", "3145728 in 'miles': units of numbers are kB"),
        ("m:toy:bytes / nothing:d", "cannot be divided by 0"),
        ("m:toy:sizes[[1]:d", "cannot be read behind 'sizes'"),
    ],
)
def test_a_mark_that_leads_nowhere_is_an_error_that_names_it(
    root: Path, mark: str, message: str
) -> None:
    with pytest.raises(NumberError, match=message):
        filled(f"It is <!-- {mark} -->1<!-- /m -->.", root)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- m:toy:bytes:d -->3145728",
        "3145728<!-- /m -->",
        "<!-- m:toy:bytes:d -->\n3145728<!-- /m -->",
        "<!-- m:toy:bytes -->3145728<!-- /m -->",
    ],
)
def test_a_mark_that_is_not_whole_is_an_error(root: Path, text: str) -> None:
    with pytest.raises(NumberError, match="whole ones"):
        filled(text, root)


@pytest.mark.parametrize("before", ["", "Words.\n", "- ", "> ", "  "])
def test_a_line_that_begins_with_a_mark_is_an_error(root: Path, before: str) -> None:
    with pytest.raises(NumberError, match="would end its paragraph"):
        filled(f"{before}<!-- m:toy:bytes:d -->3145728<!-- /m --> bytes", root)


def test_a_quote_stands_in_its_page(root: Path) -> None:
    text = "about <!-- q:README.md -->13.8 (13.1-15.7)<!-- /q --> times"
    assert filled(text, root) == text
    with pytest.raises(NumberError, match=r"README\.md does not say '13\.9'"):
        filled("about <!-- q:README.md -->13.9<!-- /q --> times", root)


def test_the_docs_say_what_was_measured() -> None:
    wrong = []
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        wrong += [f"{page.name}: {said}" for said in differences(text, filled(text))]
    assert not wrong, "run python scripts/fill_numbers.py"
