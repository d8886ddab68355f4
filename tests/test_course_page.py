"""The page of the course in a real browser: ticking, counting, keeping."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browser import DESK, PHONE, Browser
from kvlab import cli
from kvlab.course.page import page
from kvlab.course.syllabus import load

ROOT = Path(__file__).resolve().parent.parent
COURSE = load()
IDS = [item.id for item in COURSE.items]
WHEN = "2026-01-31T12:00:00+00:00"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "course.html"


def write(file: Path, *done: str) -> str:
    text = page(COURSE, dict.fromkeys(done, WHEN), ".")
    file.write_text(text, encoding="utf-8")
    return file.as_uri()


def ticked(browser: Browser) -> list[str]:
    script = "return [...document.querySelectorAll('[data-item]:checked')].map((box) => box.id)"
    return sorted(browser.run(script))


def tick(browser: Browser, name: str) -> None:
    browser.run("document.getElementById(arguments[0]).click()", name)


def counts(browser: Browser) -> dict[str, str]:
    script = """
return Object.fromEntries([...document.querySelectorAll("[data-part]")].map(
  (part) => [part.dataset.part, part.querySelector(".count").textContent]))
"""
    return dict(browser.run(script))


def told(browser: Browser) -> str:
    shown = "const t = document.getElementById('told'); return t.hidden ? '' : t.innerText"
    return str(browser.run(shown))


def expected(done: set[str]) -> dict[str, str]:
    parts = ["", *(f"{layer.id}." for layer in COURSE.layers)]
    parts += [f"{module.id}." for module in COURSE.modules]
    found = {}
    for part in parts:
        names = {name for name in IDS if name.startswith(part)}
        found[part] = f"{len(names & done)} of {len(names)} resident, {len(names - done)} cold"
    return found


def test_ticks_are_counted_and_kept_over_a_reload(browser: Browser, file: Path) -> None:
    url = write(file, "0.1.R1", "2.3.E")
    browser.open(url)
    browser.run("localStorage.clear()")
    browser.open(url)
    assert ticked(browser) == ["0.1.R1", "2.3.E"]
    assert counts(browser) == expected({"0.1.R1", "2.3.E"})
    assert told(browser) == ""

    tick(browser, "0.1.A")
    tick(browser, "2.2.B1")
    tick(browser, "2.3.E")
    now = {"0.1.R1", "0.1.A", "2.2.B1"}
    for _ in range(2):
        assert ticked(browser) == sorted(now)
        assert counts(browser) == expected(now)
        assert "kvlab course done 0.1.A 2.2.B1\nkvlab course undo 2.3.E" in told(browser)
        width = browser.run("return document.querySelector('.bar i').style.width")
        assert float(width.removesuffix("%")) == pytest.approx(100 * len(now) / len(IDS), abs=0.01)
        browser.open(url)

    # The state has caught up with two of them: nothing is left to tell but the third, and a new one shows.
    browser.open(write(file, "0.1.R1", "0.1.A", "2.3.E", "1.1.A"))
    assert ticked(browser) == sorted(now | {"1.1.A"})
    tick(browser, "2.2.B1")
    assert "kvlab course undo 2.3.E" in told(browser)
    assert "done" not in told(browser).splitlines()[-1]

    for name in IDS:
        if name not in ticked(browser):
            tick(browser, name)
    assert counts(browser) == expected(set(IDS))
    assert browser.run("return document.querySelector('.bar i').style.width") == "100%"
    assert not browser.complaints()
    assert browser.requests() == [url] * len(browser.requests())


def test_references_are_behind_folds_and_every_item_has_a_label(
    browser: Browser, file: Path
) -> None:
    browser.open(write(file))
    links: list[Any] = browser.run(
        'return [...document.querySelectorAll(\'a[href*="docs/essays"], a[href*="capstone.md"]\')]'
        ".map((a) => [a.getAttribute('href'), a.checkVisibility()])"
    )
    assert len(links) == 9
    assert not any(visible for _, visible in links)
    browser.run("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert browser.run(
        "return [...document.querySelectorAll('a[href*=\"docs/essays\"]')].every((a) => a.checkVisibility())"
    )
    unlabelled = "return [...document.querySelectorAll('[data-item]')].filter((b) => !b.labels.length).length"
    assert browser.run(unlabelled) == 0
    assert browser.run("return document.querySelectorAll('[data-item]').length") == len(IDS)
    assert browser.run("return document.querySelectorAll('.items .tag').length") == 3


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_it_is_readable_on_a_phone_and_in_the_dark(
    browser: Browser, file: Path, size: tuple[int, int], dark: bool
) -> None:
    browser.open(write(file, *IDS[::3]), size=size, dark=dark)
    browser.run("for (const fold of document.querySelectorAll('details')) fold.open = true")
    tick(browser, IDS[1])
    assert browser.overflow() == []
    ratios = browser.contrast("p", "label", "li", "a", "summary", ".count", ".tag", "h3", ".moved")
    assert min(ratios.values()) >= 4.5, ratios
    assert not browser.complaints()


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"link", "img", "iframe"}
        for name, value in attrs:
            assert name != "src"
            if name == "href":
                self.found.append(str(value))


@pytest.mark.parametrize("inside", [True, False])
def test_the_command_writes_one_file_whose_links_lead_into_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    monkeypatch.setenv("KVLAB_COURSE_STATE", str(tmp_path / "state.json"))
    out = tmp_path / "deep" / "course.html"
    if not inside:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("kvlab.__file__", str(tmp_path / "lib" / "a" / "kvlab" / "x.py"))
    else:
        monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        cli.main(["course", "page", "--out", str(out)])
    assert not ended.value.code
    parser = _Addresses()
    parser.feed(out.read_text(encoding="utf-8"))
    files = [each for each in parser.found if not each.startswith(("https://", "#"))]
    assert len(parser.found) > 30
    if not inside:
        assert not files
        return
    named = {os.path.normpath(out.parent / each) for each in files}
    for build in (item for module in COURSE.modules for item in module.builds):
        assert all(str(ROOT / code) in named for code in build.code)
