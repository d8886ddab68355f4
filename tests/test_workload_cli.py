"""`kvlab workload` through its command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvlab import cli
from kvlab.cli.workload import COMMANDS
from kvlab.workload import dumps, load
from kvlab.workload.generators import GENERATORS, generate

FILES = Path(__file__).parent / "fixtures" / "workloads"
COMMITTED = Path(__file__).parent.parent / "workloads"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `kvlab ...` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        code = ended.value.code
        captured = capsys.readouterr()
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return call


def as_json(run: Run, *arguments: object) -> Any:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_the_group_lists_its_commands_and_each_has_json(run: Run) -> None:
    _, out, _ = run("workload", "--help")
    for name in COMMANDS:
        assert f"  {name} " in out
        assert "--json" in run("workload", name, "--help")[1]


def test_generate_writes_what_the_library_makes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    options = ["--seed", 5, "--option", "plans=2", "--option", "steps=3"]
    made = as_json(run, "workload", "generate", "planner", "--out", path, *options)
    assert made["requests"] == 6
    assert made["sessions"] == 2
    assert path.read_text() == dumps(generate("planner", seed=5, plans=2, steps=3))
    listed = as_json(run, "workload", "generate", "--list")
    assert {name: each["options"] for name, each in listed.items()} == {
        name: dict(each.options) for name, each in GENERATORS.items()
    }
    assert "plans=6" in run("workload", "generate", "--list")[1]


def test_generate_says_what_it_can_not_do(run: Run, tmp_path: Path) -> None:
    for arguments, problem in (
        ([], "no generator: give one of"),
        (["nothing"], "generator = nothing: use one of: "),
        (["rag", "--option", "x"], "--option x: write it as key=value"),
        (["rag", "--option", "passages=many"], "--option passages=many: give a number"),
        (["rag", "--out", tmp_path / "no" / "x.jsonl"], "No such file or directory"),
    ):
        code, out, err = run("workload", "generate", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("kvlab: ")
        assert problem in err


def test_show_tells_classes_gaps_and_ideal_reuse(run: Run, tmp_path: Path) -> None:
    plot = tmp_path / "p.svg"
    path = COMMITTED / "session.jsonl"
    shown = as_json(run, "workload", "show", path, "--plot", plot)
    assert shown["total"]["requests"] == len(load(path).requests)
    assert set(shown["classes"]) == {"human", "tool"}
    assert 0.8 < shown["total"]["ideal_reuse"] < 0.9
    assert shown["classes"]["tool"]["gap_ms"]["p50"] < 5_000
    assert "an ideal cache reuses" in plot.read_text()
    _, out, _ = run("workload", "show", path)
    assert f"{shown['total']['ideal_reuse']:.1%}" in out
    again = tmp_path / "again.svg"
    run("workload", "show", path, "--plot", again)
    assert again.read_bytes() == plot.read_bytes()


def test_show_tells_forks_and_answers_that_are_assumed(run: Run, tmp_path: Path) -> None:
    assert as_json(run, "workload", "show", COMMITTED / "fanout.jsonl")["forks"] == 15
    path = tmp_path / "w.jsonl"
    ask = {"class": "c", "session": "s", "messages": [{"role": "user", "content": "x"}]}
    rows = [
        {"kvlab_workload": 1, "name": "w"},
        {**ask, "id": "1", "max_tokens": 9},
        {**ask, "id": "2", "max_tokens": 9, "after": "1", "append": True},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert as_json(run, "workload", "show", path)["assumed_answers"] == 1
    assert "note: 1 answers are in later prompts" in run("workload", "show", path)[1]


def test_import_show_and_trace_lead_to_the_policy_lab(run: Run, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.jsonl", tmp_path / "t.jsonl"
    source = FILES / "swe_agent.jsonl"
    made = as_json(run, "workload", "import", "transcripts", source, "--out", path)
    assert made["sessions"] == 3
    assert any("results of tools" in note for note in made["notes"])
    shown = as_json(run, "workload", "show", path)
    written = as_json(run, "workload", "trace", path, "--out", trace)
    replayed = as_json(run, *shlex.split(written["replay"])[1:])
    assert replayed["hit_tokens"] == shown["total"]["ideal_reused_tokens"]
    assert replayed["unique_blocks"] == written["unique_blocks"]


def test_validate_names_file_line_and_field(run: Run, tmp_path: Path) -> None:
    path = COMMITTED / "fanout.jsonl"
    assert as_json(run, "workload", "validate", path)["valid"] is True
    lines = path.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text(
        "\n".join([*lines[:4], lines[4].replace('"max_tokens":96', '"max_tokens":0')])
    )
    code, out, err = run("workload", "validate", broken)
    assert (code, out) == (1, "")
    assert f"{broken}, line 5, max_tokens: is 0, expected at least 1" in err
    assert "No such file" in run("workload", "validate", tmp_path / "none")[2]
    code, _, err = run("workload", "show", path, "--tokenizer", "./nothing")
    assert code == 1
    assert "nothing" in err
