"""docs/workload-model.md says what the schema has and what `kvlab workload show` counts."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kvlab.workload import Header, WorkloadRequest, ideal_reuse, load, tokenizer
from kvlab.workload.generators import GENERATORS
from kvlab.workload.importers import FORMATS
from kvlab.workload.summary import summary

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "workload-model.md").read_text(encoding="utf-8")


def first_cells(head: str) -> list[str]:
    """The names in the first column of the table with this head."""
    table = TEXT.split(f"| {head} |", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_the_tables_have_every_field_once() -> None:
    names = [field.name for field in fields(Header)]
    assert first_cells("header field") == ["kvlab_workload", *names]
    wanted = {field.name for field in fields(WorkloadRequest)} - {"klass"} | {"class"}
    found = first_cells("request field")
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert first_cells("format") == list(FORMATS)


def test_the_example_is_a_workload(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "example.jsonl"
    path.write_text(example)
    first, second = load(path).requests
    assert first.messages[0].content == "You answer briefly."
    assert len(load(path).conversation(second)) == 4


def test_every_shape_has_its_section() -> None:
    sections = set(re.findall(r"^### (\w+)$", TEXT, re.MULTILINE))
    assert sections == set(GENERATORS)


@pytest.mark.usefixtures("smollm2")
def test_the_figures_are_those_that_show_counts() -> None:
    pytest.importorskip("transformers", reason="the 'hf' extra is not installed")
    model = tokenizer("smollm2-135m")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TEXT.splitlines()
        if line.startswith("| [")
    ]
    paths = {path.name.split(".")[0]: path for path in (ROOT / "workloads").glob("*.jsonl*")}
    assert {link[1 : link.index("]")] for link, *_ in rows} == set(paths)
    for link, *cells in rows:
        name = link[1 : link.index("]")]
        workload = load(paths[name])
        shown = summary(workload, ideal_reuse(workload, model))
        total = shown["total"]
        lengths = [f"{total[f'prompt_tokens_{key}']:,.0f}" for key in ("min", "median", "max")]
        assert cells == [
            f"{total['requests']:,}",
            f"{shown['sessions']:,}",
            " / ".join(lengths),
            gap(total),
            f"{100 * total['ideal_reuse']:.1f} %",
        ], name
        if f"### {name}\n" in TEXT:
            section = TEXT.split(f"### {name}\n", 1)[1].split("\n#", 1)[0]
            told = set(re.findall(r"([\d.]+) %", section.split("*Ideal:*")[1])) - {"100"}
            assert told <= {
                f"{100 * each['ideal_reuse']:.1f}" for each in shown["classes"].values()
            }


def gap(total: dict[str, Any]) -> str:
    return f"{total['gap_ms']['p50'] / 1000:.1f} s" if total["gap_ms"] else ""
