"""The policy lab's report in a real browser: nothing from elsewhere, no complaint, both schemes, a phone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser import DESK, PHONE
from kvlab import cli

if TYPE_CHECKING:
    from browser import Browser

pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")

TRACES = Path(__file__).parent / "fixtures" / "traces"
WEKA = ("--trace", str(TRACES / "weka.jsonl"), "--format", "weka")
RUNS = {
    "requests": ("sweep", *WEKA, "--policies", "lru,sieve,gdsf", "--capacities", "5%,20%,inf"),
    "pages": ("sweep", "--mode", "page", "--scenarios", "small_fp16_prefetch,cxl_like_fp16",
              "--workloads", "rag_burst,prefetch_friendly", "--policies", "lru,predictive"),
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    with pytest.raises(SystemExit) as ended:
        cli.main(["sim", *RUNS[request.param], "--out", str(out)])
    assert not ended.value.code
    return out / "report.html"


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (PHONE, True)], ids=["desk", "phone"])
def test_the_report_is_whole_and_readable(
    report: Path, browser: Browser, size: tuple[int, int], dark: bool
) -> None:
    browser.open(report.as_uri(), size=size, dark=dark)
    assert browser.requests() == [report.as_uri()]
    assert browser.complaints() == []
    assert browser.overflow() == []
    luminous = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert luminous == ("rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)")
    contrasts = browser.contrast(
        "h1", "h2", "p", "li", "th", "td", "figcaption", "pre", ".tag", "svg text"
    )
    assert contrasts
    assert {name: round(least, 1) for name, least in contrasts.items() if least < 4.5} == {}


def test_table_and_drawings_are_complete(report: Path, browser: Browser) -> None:
    browser.open(report.as_uri())
    with (report.parent / "summary.csv").open(newline="", encoding="utf-8") as file:
        summary = list(csv.DictReader(file))
    assert browser.run("return document.querySelectorAll('tbody tr').length") == len(summary)
    drawings = browser.run(
        "return [...document.querySelectorAll('figure svg')].map((s) => s.getAttribute('aria-label'))"
    )
    assert len(drawings) == len(list((report.parent / "plots").iterdir()))
    assert all(drawings)
    # The drawings lie in one document: no id stands twice, and what one refers to is there.
    twice, lost = browser.run(
        """
        const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
        const used = [...document.querySelectorAll("use")].map((node) => node.getAttribute("xlink:href").slice(1));
        const clips = [...document.querySelectorAll("[clip-path]")]
          .map((node) => node.getAttribute("clip-path").slice(5, -1));
        return [ids.filter((id, at) => ids.indexOf(id) !== at),
                [...used, ...clips].filter((name) => !ids.includes(name))];
        """
    )
    assert (twice, lost) == ([], [])
