"""scripts/brief.py and the page that it keeps."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from bench_support import request, workload
from kvlab import cli
from kvlab.workload.schema import dump

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def brief() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "brief.py"))


def test_the_page_says_what_the_reports_say(brief: dict[str, Any]) -> None:
    page = brief["PAGE"].read_text(encoding="utf-8")
    assert brief["renewed"](page) == page, "run python scripts/brief.py"


def test_a_table_of_reports(brief: dict[str, Any], tmp_path: Path) -> None:
    requests = []
    for at, name in enumerate(("long", "short", "long", "short")):
        text = f"{name} " * 100 + str(at)
        requests.append(request(f"r{at}", text=text, klass=name, session=str(at)))
    dump(workload(*requests), tmp_path / "w.jsonl")
    for more in (("--modes", "baseline,nvme"), ("--mode", "prefix_reuse")):
        out = tmp_path / "made.json"
        with pytest.raises(SystemExit) as ended:
            cli.main(
                ["bench", "--workload", str(tmp_path / "w.jsonl"), "--report", str(out), *more]
            )
        assert not ended.value.code
    (tmp_path / "other.json").write_text("{}")
    head, _, *rows = brief["table"]("estimated", tmp_path).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[3:6] == ["`baseline`", "`prefix_reuse`", "`nvme`"]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[:3] for row in cells] == [
        ["made", "long", "2"], ["made", "short", "2"], ["made", "*all*", "4"]
    ]  # fmt: skip
    for row in cells:
        assert row[5].endswith(" x)"), row
        assert row[7].endswith(" %"), row
    assert brief["table"]("measured", tmp_path) == brief["NONE_YET"]


def test_a_page_without_marks_is_refused(brief: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="measured: begin"):
        brief["renewed"]("no marks")
