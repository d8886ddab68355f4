"""Policies of one's own from Python files: the page that tells of them, and what can be wrong with one."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from kvlab import cli
from kvlab.sim.page import expand_workload, simulate
from kvlab.sim.policy_file import HOOKS, PolicyFile
from kvlab.sim.scenarios import scenario

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-policy.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def ran(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def crossroads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's example as the file that it is, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    path = tmp_path / "crossroads.py"
    path.write_text(example, encoding="utf-8")
    return path


def test_the_page_runs_as_it_stands(crossroads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(crossroads), run_name="__main__")
    said = capsys.readouterr().out
    assert said.count("crossroads") == 2
    assert said.count("(simulated)") == 6
    commands = [shlex.split(line)[1:] for line in blocks("sh")[0].splitlines()]
    assert [command[1] for command in commands] == ["run", "sweep", "compare"]
    for command in commands:
        assert ran(command) == 0, capsys.readouterr().err
    assert "crossroads" in capsys.readouterr().out
    text = PAGE.read_text(encoding="utf-8")
    assert len(HOOKS) == 8
    assert all(f"`{hook}(" in text for hook in HOOKS)


def test_a_file_gives_what_its_class_gives(
    crossroads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = PolicyFile(f"{crossroads}:Crossroads")
    scene = scenario("medium")
    row = simulate(expand_workload("rag_burst", scene), scene, made())
    own = ["run", "--mode", "page", "--policy", "crossroads.py:Crossroads", "--json"]
    assert ran(["sim", *own, "--workload", "rag_burst", "--scenario", "medium"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"], found["misses"]) == ("crossroads", row.misses)
    few = ["--option", "requests=5", "--option", "passages_a_request=2"]
    assert ran(["sim", *own, "--workload", "rag_reordered", *few, "--capacity-blocks", "50%"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"] > 0
    # Each run of a sweep has a policy of its own, whatever the number of threads.
    sweep = ["sim", "sweep", "--mode", "page", "--policies", "crossroads.py:Crossroads", "--seeds", "1,2,3",
             "--scenarios", "medium", "--workloads", "rag_burst", "--json", "--workers"]  # fmt: skip
    texts = []
    for workers in ("1", "3"):
        assert ran([*sweep, workers]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert str(crossroads.parent) not in texts[0]


HEAD = "from kvlab.sim import PolicyBase\nclass P(PolicyBase):\n"
WRONG = {
    "missing file": ("elsewhere.py:P", "", "there is no file elsewhere.py"),
    "no class named": ("own.py", HEAD + "    pass", "name its class, as FILE.py:CLASS; policies in it: P"),
    "no such class": ("own.py:Q", HEAD + "    pass", "own.py has no class Q; policies in it: P"),
    "no policy": ("own.py:Q", "class Q: pass", "Q is no subclass of kvlab.sim.PolicyBase; policies in it: none"),
    "no Python": ("own.py:P", "class P(:", r"running the file raised SyntaxError"),
    "fails when run": ("own.py:P", "x = 1\n1 / 0", r"running the file raised ZeroDivisionError.*\(line 2\)"),
    "wants arguments": ("own.py:P", HEAD + "    def __init__(self, k): pass",
                        r"P\(\) raised TypeError.*without arguments"),
    "hook raises": ("own.py:P", HEAD + "    def on_miss(self, c, p):\n        raise KeyError(p.id)",
                    r"policy own.py:P: on_miss raised KeyError: \d+ \(line 4\)"),
    "score raises": ("own.py:P", HEAD + "    def score_page(self, c, p, t): return p.age",
                     r"score_page raised AttributeError: .*age"),
    "other parameters": ("own.py:P", HEAD + "    def on_access(self): pass",
                         r"other parameters.*on_access\(\) takes 1"),
    "no candidate": ("own.py:P", HEAD + "    def select_eviction_candidate(self, *a): pass",
                     "select_eviction_candidate gave no page"),
    "no numbers": ("own.py:P", HEAD + "    def maybe_prefetch(self, *a): pass", "maybe_prefetch gave no numbers"),
    "no such page": ("own.py:P", HEAD + "    def maybe_prefetch(self, *a): return [999]", "wants page 999 prefetched"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_with_one_is_one_line(
    command: str,
    wrong: tuple[str, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy, content, message = wrong
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(content, encoding="utf-8")
    chosen = {
        "run": ["--workload", "rag_burst", "--scenario", "small_fp16_prefetch", "--policy", policy],
        "sweep": ["--workloads", "rag_burst", "--scenarios", "small_fp16_prefetch", "--policies", policy],
    }  # fmt: skip
    assert ran(["sim", command, "--mode", "page", *chosen[command]]) == 1
    said = capsys.readouterr()
    (line,) = [text for text in said.err.splitlines() if re.match("kvlab: .*(policy|page 999)", text)
               and not text.startswith("kvlab: replaying")]  # fmt: skip
    assert re.search(message, line), line
    assert not said.out


def test_only_page_mode_takes_one_and_names_are_given_once(
    crossroads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"{crossroads.name}:Crossroads"
    for command in (
        ["run", "--workload", "rag_reordered", "--policy", own],
        ["sweep", "--workload", "rag_reordered", "--policies", own],
        ["advise", "--workload", "rag_reordered", "--memory", "1GiB", "--policies", own],
    ):
        assert ran(["sim", *command]) == 1
        assert "runs in --mode page, not prefix" in capsys.readouterr().err
    assert ran(["sim", "sweep", "--mode", "page", "--policies", f"{own},{own}"]) == 1
    assert "two policies are called crossroads" in capsys.readouterr().err
