"""`kvlab course` as a learner uses it: what there is, what is done, checkpoints, toys."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_solutions import RIGHT, WRONG
from kvlab import FormatError, StoreIOError, cli
from kvlab.course import progress
from kvlab.course.syllabus import Checkpoint, Reading, load

ROOT = Path(__file__).resolve().parent.parent
COURSE = load()
IDS = [item.id for item in COURSE.items]
NEEDS_TORCH = {"0.1.A", "0.1.B", "0.1.C", "0.2.A", "1.2.A", "2.2.A"}
CHECKS = [each.id for each in COURSE.checkpoints() if each.check is not None]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state" / "course.json"
    monkeypatch.setenv("KVLAB_COURSE_STATE", str(path))
    return path


@pytest.fixture
def course(state: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `kvlab course ...` in this process: exit code, stdout, stderr."""
    del state

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["course", *map(str, arguments)])
        code = ended.value.code
        captured = capsys.readouterr()
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return run


def as_json(course: Run, *arguments: object, code: int = 0) -> Any:
    ended, out, err = course(*arguments, "--json")
    assert ended == code, err
    return json.loads(out)


# ---- the syllabus


def test_every_module_has_something_to_read_write_build_and_show() -> None:
    names = [module.id for module in COURSE.modules]
    assert names == ["0.1", "0.2", "0.3", "1.1", "1.2", "1.3", "2.1", "2.2", "2.3"]
    assert len(set(IDS)) == len(IDS)
    for module in COURSE.modules:
        assert module.objectives
        assert module.readings
        assert module.essay.points
        assert module.builds
        assert any(each.check or each.toy for each in module.checkpoints)


def test_each_checkpoint_is_a_check_a_toy_or_a_question_and_its_check_is_there() -> None:
    for each in COURSE.checkpoints():
        assert [each.check, each.toy, each.answer].count(None) == 2, each.id
        assert (each.mine is None) == (each.interface is None), each.id
        if each.check is not None:
            file, function = each.check.split(".")
            module = importlib.import_module(f"kvlab.course.checks.{file}")
            assert callable(getattr(module, function)), each.check
        if each.toy is not None:
            assert each.toy in {toy for module in COURSE.modules for toy in module.toys}


def test_three_bricks_lead_to_code_that_is_there() -> None:
    assert [brick.id for brick in COURSE.bricks] == ["1.1.B1", "2.1.B1", "2.2.B1"]
    for brick in COURSE.bricks:
        assert brick.code
        assert all((ROOT / file).is_file() for file in brick.code), brick.code


def test_readings_are_pinned_by_a_year_or_a_version() -> None:
    for item in COURSE.items:
        if isinstance(item, Reading):
            assert re.search(r"\b(19|20)\d\d\b|\d+\.\d+|this version", item.where), item
            assert (item.url is None) != (item.file is None), item
            assert item.file is None or (ROOT / item.file).is_file()


def test_the_page_of_the_docs_is_what_the_syllabus_says() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "course.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- what is done


def test_a_learner_ticks_looks_and_takes_back(course: Run, state: Path) -> None:
    code, out, _ = course()
    assert code == 0
    assert all(f"[ ] {name}" in out for name in IDS)
    assert f"0 of {len(IDS)} resident, {len(IDS)} cold (0%)" in out

    assert as_json(course, "done", "0.1.A", "0.1.R1", "2.2.E")["changed"] == [
        "0.1.A",
        "0.1.R1",
        "2.2.E",
    ]
    code, out, _ = course("done", "0.1.A")
    assert (code, "0.1.A: done already" in out) == (0, True)
    _, out, _ = course()
    assert "[x] 0.1.A" in out
    listed = as_json(course)
    assert listed["done"] == 3
    assert listed["resident"] == 3 / len(IDS)
    assert [layer["done"] for layer in listed["layers"]] == [2, 0, 1]
    assert listed["layers"][0]["modules"][0]["done"] == 2
    assert listed["state"] == str(state)

    assert as_json(course, "undo", "0.1.A", "0.1.A")["changed"] == ["0.1.A"]
    assert as_json(course)["done"] == 2
    assert sorted(json.loads(state.read_text())["done"]) == ["0.1.R1", "2.2.E"]


@pytest.mark.parametrize("verb", ["done", "undo"])
@pytest.mark.parametrize(
    ("name", "near"),
    [("0.1.Z", "0.1.R1, 0.1.R2"), ("1.1", "1.1.R1"), ("2.2.b", "2.2.B"), ("%", "as 0.1.R1 is")],
)
def test_an_unknown_item_changes_nothing_and_names_near_ones(
    course: Run, state: Path, verb: str, name: str, near: str
) -> None:
    course("done", "0.1.R1")
    before = state.read_bytes()
    code, out, err = course(verb, "0.1.R1", "0.1.R2", name)
    assert (code, out) == (1, "")
    assert repr(name) in err
    assert near in err
    assert state.read_bytes() == before


def test_unknown_modules_name_the_modules(course: Run) -> None:
    for command in (["show", "0.9"], ["run", "0.9"], ["check", "0.9"]):
        code, _, err = course(*command)
        assert code == 1
        assert "0.1" in err


def test_a_module_is_shown_with_its_folds_closed_until_asked(course: Run) -> None:
    course("done", "2.2.A")
    code, out, _ = course("show", "2.2")
    assert code == 0
    assert "[x] 2.2.A" in out
    assert "docs/essays" not in out
    _, opened, _ = course("show", "2.2", "--answers")
    assert "docs/essays/07-hierarchy.md" in opened
    assert as_json(course, "show", "2.2")["contents"][-1]["id"] == "2.2.D"


@given(st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from(IDS), max_size=5)), max_size=12))
@settings(max_examples=15, deadline=None)
def test_the_state_is_the_set_that_was_ticked(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, list[str]]]
) -> None:
    path = tmp_path_factory.mktemp("state") / "course.json"
    expected: set[str] = set()
    for add, names in steps:
        with progress.changing(path) as has:
            changed = has.mark(names) if add else has.unmark(names)
        assert set(changed) == (set(names) - expected if add else set(names) & expected)
        expected = expected | set(names) if add else expected - set(names)
        assert set(progress.read(path).done) == expected
    has = progress.read(path)
    for part in (COURSE.items, COURSE.layers[0].items, COURSE.modules[4].items):
        standing = progress.standing(part, has.done)
        assert standing.done == len({item.id for item in part} & expected)
        assert (standing.bar().count(".") == 0) == (standing.done == standing.items)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(
    st.binary(max_size=60)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"kvlab_course": _JSON, "done": _JSON}).map(
        lambda v: json.dumps(v).encode()
    )
)
@settings(max_examples=50, deadline=None)
def test_a_file_is_read_or_refused_with_a_remedy_and_never_replaced(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("state") / "course.json"
    path.write_bytes(content)
    try:
        done = progress.read(path).done
    except FormatError:
        with (
            pytest.raises(FormatError, match="KVLAB_COURSE_STATE") as refused,
            progress.changing(path) as has,
        ):
            has.mark(["0.1.A"])
        assert str(path) in str(refused.value)
        assert path.read_bytes() == content
    else:
        assert done == json.loads(content)["done"]


def test_a_damaged_or_newer_state_is_told_by_every_command(course: Run, state: Path) -> None:
    state.parent.mkdir()
    for content, said in (("{", "is damaged"), ('{"kvlab_course": 2}', "newer kvlab")):
        state.write_text(content)
        for command in ([], ["done", "0.1.A"], ["undo", "0.1.A"], ["page"], ["show", "0.1"]):
            code, out, err = course(*command)
            assert (code, out) == (1, ""), command
            assert said in err
        assert state.read_text() == content


def test_items_of_other_versions_are_kept_and_not_counted(course: Run, state: Path) -> None:
    state.parent.mkdir()
    when = "2026-01-31T12:00:00+00:00"
    state.write_text(json.dumps({"kvlab_course": 1, "done": {"9.9.A": when, "0.1.A": when}}))
    listed = as_json(course)
    assert listed["done"] == 1
    assert listed["of_other_versions"] == ["9.9.A"]
    course("undo", "0.1.A")
    assert json.loads(state.read_text())["done"] == {"9.9.A": when}


def test_a_failed_write_leaves_what_was_there(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.changing() as has:
        has.mark(["0.1.A"])
    before, names = state.read_bytes(), sorted(state.parent.iterdir())

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kvlab.course.progress.os.fsync", full)
    with pytest.raises(StoreIOError, match="No space left"), progress.changing() as has:
        has.mark(["0.1.B"])
    assert state.read_bytes() == before
    assert sorted(state.parent.iterdir()) == names


def test_a_state_that_cannot_be_written_is_told(course: Run, state: Path) -> None:
    state.parent.write_text("a file where the directory should be")
    code, _, err = course("done", "0.1.A")
    assert code == 1
    assert "KVLAB_COURSE_STATE" in err


def test_changes_at_the_same_time_are_all_kept(state: Path) -> None:
    def mark(name: str) -> None:
        with progress.changing() as has:
            has.mark([name])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(mark, IDS))
    assert set(progress.read(state).done) == set(IDS)


def test_where_the_state_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KVLAB_COURSE_STATE", raising=False)
    default = tmp_path / ".local" / "state" / "kvlab" / "course.json"
    for value in (None, "", "relative/path"):
        if value is None:
            monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_STATE_HOME", value)
        assert progress.state_path() == default
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert progress.state_path() == tmp_path / "xdg" / "kvlab" / "course.json"
    monkeypatch.setenv("KVLAB_COURSE_STATE", str(tmp_path / "own.json"))
    assert progress.state_path() == tmp_path / "own.json"


# ---- checkpoints


@pytest.mark.parametrize("name", [each for each in CHECKS if each not in NEEDS_TORCH])
def test_a_checkpoint_passes(course: Run, state: Path, name: str) -> None:
    found = as_json(course, "check", name)
    assert (found["passed"], found["failed"]) == (1, 0)
    assert found["checkpoints"][0]["said"]
    assert not state.exists()  # the references are not the learner's


@pytest.mark.parametrize("name", sorted(NEEDS_TORCH))
def test_a_checkpoint_passes_that_needs_torch(course: Run, name: str) -> None:
    pytest.importorskip("torch", reason="the 'hf' extra is not installed")
    pytest.importorskip("transformers", reason="the 'hf' extra is not installed")
    found = as_json(course, "check", name)
    assert found["passed"] == 1, found


def test_without_torch_a_checkpoint_says_what_it_needs(
    course: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = as_json(course, "check", "1.2", code=1)
    assert [each["result"] for each in found["checkpoints"]] == ["not run", "passed"]
    assert "kvlab[hf]" in found["checkpoints"][0]["said"]


def test_the_course_and_its_plain_checks_import_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from kvlab.cli import main\n"
        "for command in (['course'], ['course', 'check', '1.1'], ['course', 'page', '--out', 'x.html']):\n"
        "    try: main(command)\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 passed" in done.stdout


def checkpoints_of(function: str) -> list[Checkpoint]:
    return [each for each in COURSE.checkpoints() if each.mine_name == function]


def test_solutions_are_there_for_every_function_of_the_learners_own() -> None:
    asked = {each.mine_name for each in COURSE.checkpoints() if each.mine is not None}
    assert set(RIGHT) == asked
    assert {function for function, _, _ in WRONG} == asked


@pytest.mark.parametrize("function", RIGHT)
def test_a_right_solution_passes_and_is_done(
    course: Run, state: Path, tmp_path: Path, function: str
) -> None:
    code = RIGHT[function]
    if "torch" in code:
        pytest.importorskip("torch", reason="the 'hf' extra is not installed")
    file = tmp_path / "my_own.py"
    file.write_text(code)
    names = [each.id for each in checkpoints_of(function)]
    module = names[0].rpartition(".")[0]
    found = as_json(course, "check", module, "--mine", file)
    assert found["failed"] == 0, found
    assert found["marked"] == names
    others = [each.id for each in COURSE.checkpoints(module) if each.mine is not None]
    assert found["absent"] == [name for name in others if name not in names]
    assert sorted(progress.read(state).done) == names
    assert {each["mine"] for each in found["checkpoints"]} == {function}


@pytest.mark.parametrize("solution", WRONG, ids=lambda each: each[0])
def test_a_wrong_solution_fails_with_the_reason(
    course: Run, state: Path, tmp_path: Path, solution: tuple[str, str, str]
) -> None:
    function, said, code = solution
    if "torch" in code or function == "generate":
        pytest.importorskip("torch", reason="the 'hf' extra is not installed")
    file = tmp_path / "my_own.py"
    file.write_text(code)
    module = checkpoints_of(function)[0].id.rpartition(".")[0]
    found = as_json(course, "check", module, "--mine", file, code=1)
    failed = [each["said"] for each in found["checkpoints"] if each["result"] == "failed"]
    assert failed
    assert any(re.search(said, each) for each in failed), failed
    assert set(progress.read(state).done) == set(found["marked"])


def test_a_file_of_the_learners_that_is_not_usable_is_told(course: Run, tmp_path: Path) -> None:
    file = tmp_path / "my_own.py"
    code, _, err = course("check", "0.1", "--mine", file)
    assert (code, "there is no such file" in err) == (1, True)
    for content, said in (
        ("def attention(q, k v): ...", "SyntaxError"),
        ("\n\n1 / 0", r"ZeroDivisionError: division by zero \(line 3\)"),
        ("import sys; sys.exit('enough')", "SystemExit: enough"),
        ("x = 1", r"looked for one of attention\(q, k, v\), multi_head"),
    ):
        file.write_text(content)
        code, _, err = course("check", "0.1", "--mine", file)
        assert code == 1
        assert re.search(said, err), err
    code, _, err = course("check", "1.1.B", "--mine", file)
    assert (code, "not about code of yours" in err) == (1, True)


def test_a_question_is_not_run(course: Run) -> None:
    code, _, err = course("check", "1.1.C")
    assert code == 1
    assert "kvlab course show 1.1 --answers" in err


# ---- toys


def test_the_toys_of_a_module_run(course: Run, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    found = as_json(course, "run", "1.1", "--quick", "--out", out)
    assert found["failed"] == []
    assert "paged" in found["toys"]["fragmentation"]
    code, _, err = course("run", "1.1", "--quick", "--out", out)
    assert code == 0, err


def checkout_with(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "python" / "kvlab").mkdir(parents=True)
    (tmp_path / "toys").mkdir()
    for name, content in {"common": "", **files}.items():
        (tmp_path / "toys" / f"{name}.py").write_text(content)
    return tmp_path


def test_a_toy_that_fails_is_told(
    course: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "raise AssertionError('a window was as good')"
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(checkout_with(tmp_path / "checkout", sinks=bad))
    found = as_json(course, "run", "1.3", "--out", tmp_path / "out", code=1)
    assert found["failed"] == ["sinks"]
    checked = as_json(course, "check", "1.3.B", code=1)["checkpoints"][0]
    assert checked["result"] == "failed"
    assert "a window was as good" in checked["said"]
    for said in ("this toy needs torch: ...", "kvlab.errors.ModelUnavailableError: ..."):
        Path("toys/sinks.py").write_text(f"import sys; sys.exit({said!r})")
        checked = as_json(course, "check", "1.3.B", code=1)["checkpoints"][0]
        assert (checked["result"], checked["said"]) == ("not run", said)
    Path("toys/sinks.py").write_text("print('{}')")
    assert as_json(course, "check", "1.3.B")["passed"] == 1


def test_without_a_checkout_the_toys_are_said_to_be_missing(
    course: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kvlab.__file__", str(tmp_path / "lib" / "a" / "kvlab" / "x.py"))
    code, _, err = course("run", "1.1", "--out", tmp_path / "out")
    assert code == 1
    assert "pip install -e ." in err
    assert not (tmp_path / "out").exists()
    found = as_json(course, "check", "1.3", code=1)
    assert [each["result"] for each in found["checkpoints"]] == ["passed", "not run"]


def test_every_command_has_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvlab", "course", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--json" in done.stdout
    from kvlab.cli.course import COMMANDS

    for name in COMMANDS:
        assert name in done.stdout
        module = importlib.import_module(f"kvlab.cli.course_{name}")
        command = getattr(module, f"course_{name}")
        assert any(option.name == "as_json" for option in command.params)
