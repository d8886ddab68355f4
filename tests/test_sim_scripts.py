"""The scripts that are named as kv-hierarchy-lab's: its flags go to `kvlab sim`."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from kvlab.sim.page_trace import read_page_trace

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert not ended.value.code


def test_benchmarks_and_their_plots(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")
    few = ("--scenarios", "medium", "--workloads", "rag_burst", "--policies", "lru")
    run(monkeypatch, "run_benchmarks.py", "--output-dir", "made", *few)
    (row,) = json.loads((script / "made/results.json").read_text())["rows"]["rows"]
    assert "rag_burst" in row
    flags = ("--results", "made/results.json", "--out-dir", "again/plots")
    run(monkeypatch, "plot_results.py", *flags)
    made, again = (
        {path.name: path.read_bytes() for path in (script / name / "plots").iterdir()}
        for name in ("made", "again")
    )
    assert made
    assert made == again


def test_the_ablation(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("--grid", "weight=0", "--scenarios", "tight", "--workloads", "rag_burst:length=60")
    run(monkeypatch, "run_regret_ablation.py", "--output-dir", "out", *few, "--seeds", "7")
    results = json.loads((script / "out/results.json").read_text())
    assert len(results["rows"]["rows"]) == 3


def test_a_trace_has_its_usual_sizes(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "generate_trace.py")
    usual = read_page_trace(script / "chat_continuation.jsonl")
    assert (len(usual.trace), len(usual.pages)) == (128, 64)
    run(
        monkeypatch,
        "generate_trace.py",
        "--workload",
        "periodic_reuse",
        "--length",
        "5",
        "--quant",
        "int4",
    )
    other = read_page_trace(script / "periodic_reuse.jsonl")
    assert (len(other.trace), other.pages[0].scheme) == (5, "int4")


@pytest.mark.parametrize(
    "name", ["run_benchmarks", "plot_results", "run_regret_ablation", "generate_trace"]
)
def test_a_script_is_a_few_lines(name: str) -> None:
    assert len((SCRIPTS / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 15
