"""The commands on a store's directory, through the real command line, on a store of a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from click.testing import CliRunner, Result
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_support import attach, damage_last_record, hits, open_store
from kvlab import KvlabError, hf, inspect_store
from kvlab.cli import app
from kvlab.cli.inspect import render
from kvlab.errors import FormatError, InvalidArgumentError, StoreIOError, StoreLockedError
from tiny_models import build

WORDS = ["?", *(f"w{index}" for index in range(200))]
TEXT = " ".join(f"w{index * 7 % 200}" for index in range(100))
"""100 tokens: 6 blocks can be reused."""


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of words."""
    path = tmp_path_factory.mktemp("model")
    build("llama").save_pretrained(path)
    made = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[0])
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=made, unk_token=WORDS[0]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def made(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store of two namespaces, and their names: nobody's and that of the salt."""
    path = tmp_path_factory.mktemp("made") / "store"
    model, tokenizer = hf.load(str(model_directory), dtype="float32")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    names = []
    with open_store(path) as store:
        for salt in ("", "mine"):
            with attach(model, store, salt=salt) as session:
                session.prefill(ids)
                for _ in range(3):
                    store.evict()
                    session.prefill(ids, keep=False)
                names.append(session.namespace.hex())
        store.flush()
    return path, names


@pytest.fixture
def store(made: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made[0], tmp_path / "store"))


@pytest.fixture
def names(made: tuple[Path, list[str]]) -> list[str]:
    return made[1]


def run(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> str:
    """What a command says."""
    result = invoke(*arguments, stdin=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def as_json(*arguments: str | Path, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code))


def files(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_inspect_says_what_is_there_and_changes_nothing(store: Path, names: list[str]) -> None:
    before = files(store)
    found = as_json("inspect", store)
    assert {each["namespace"] for each in found["namespaces"]} == set(names)
    for each in found["namespaces"]:
        assert (each["blocks"], each["block_tokens"], each["layers"]) == (6, 16, 4)
        assert (each["codec"], each["expired_runs"]) == ("exact", 0)
    assert found["holder"] is None
    assert files(store) == before


def test_inspect_is_read_by_people(store: Path, names: list[str]) -> None:
    found = inspect_store(store)
    for namespace in found["namespaces"]:
        namespace.setdefault("hits", 3)
    text = render(found, with_segments=True)
    for name in names:
        assert name[:12] in text
    assert "12 blocks" in text
    assert "closed cleanly" in text
    assert "not open" in text
    assert Path(found["segments"][0]["file"]).name in text


def test_verify_finds_damage_and_gc_removes_it(store: Path) -> None:
    assert as_json("verify", store)["sound"]
    assert "all as written" in run("verify", store)
    damage_last_record(store)
    found = as_json("verify", store, code=1)
    assert not found["sound"]
    assert len(found["damaged"]) == 1
    text = run("verify", store, code=1)
    assert "DAMAGED" in text
    assert "kvlab gc" in text
    assert as_json("gc", store)["damaged_runs"] == 1
    assert as_json("verify", store)["records"] == 1
    assert "1 runs stay" in run("gc", store)


def test_a_store_without_its_index_is_inspected_and_mended(store: Path) -> None:
    shutil.rmtree(store / "index")
    found = as_json("inspect", store)
    assert sum(each["blocks"] for each in found["namespaces"]) == 12
    run("gc", store)
    assert as_json("inspect", store)["index"]["rows"] == 2


def test_gc_evicts_down_to_a_capacity(store: Path) -> None:
    before = as_json("inspect", store)
    done = as_json("gc", store, "--capacity", "1MiB", "--no-check")
    assert done["runs"] + done["evicted_runs"] == 2
    assert done["damaged_runs"] == 0
    with pytest.raises(KvlabError, match="much"):
        run("gc", store, "--capacity", "much")
    assert sum(each["runs"] for each in before["namespaces"]) == 2


def test_clear_deletes_a_namespace_or_all_when_told_so(store: Path, names: list[str]) -> None:
    before = files(store)
    # Nobody is there to be asked.
    for extra in ((), ("--json",)):
        with pytest.raises(InvalidArgumentError, match="--yes"):
            run("clear", store, *extra)
    assert files(store) == before
    assert as_json("clear", store, "--namespace", names[0][:10], "--yes") == {
        "namespace": names[0],
        "runs": 1,
    }
    assert [each["namespace"] for each in as_json("inspect", store)["namespaces"]] == [names[1]]
    assert run("clear", store, "--yes") == "1 runs deleted\n"
    assert as_json("inspect", store)["namespaces"] == []


@pytest.mark.parametrize("start", ["zz", ""])
def test_a_namespace_that_is_not_one_is_refused(store: Path, names: list[str], start: str) -> None:
    commands: list[list[str | Path]] = [
        ["clear", store, "--yes"],
        ["export", store, store.parent / "out.kv"],
    ]
    for command in commands:
        with pytest.raises(InvalidArgumentError) as caught:
            run(*command, "--namespace", start)
        assert all(name[:12] in str(caught.value) for name in names)
    assert not (store.parent / "out.kv").exists()


def test_an_export_is_imported_and_then_served(
    store: Path, names: list[str], model_directory: Path, tmp_path: Path
) -> None:
    file, target = tmp_path / "out.kv", tmp_path / "target"
    done = as_json("export", store, file, "--namespace", names[1])
    assert (done["namespace"], done["runs"], done["blocks"]) == (names[1], 1, 6)
    assert (done["damaged"], done["unreachable"]) == (0, 0)
    assert file.stat().st_mode & 0o077 == 0
    imported = as_json("import", target, file)
    assert imported["namespace"] == names[1]
    assert (imported["runs"], imported["present"], imported["complete"]) == (1, 0, True)
    assert "0 runs stored, 1 were there" in run("import", target, file)
    model, tokenizer = hf.load(str(model_directory), dtype="float32")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with open_store(target) as opened, attach(model, opened, salt="mine") as session:
        assert hits(session.prefill(ids, keep=False).report) == (0, 0, 96)


def test_a_damaged_run_is_left_out_of_an_export(store: Path, names: list[str]) -> None:
    damage_last_record(store)
    file = store.parent / "out.kv"
    damaged = as_json("export", store, file, "--namespace", names[1])
    assert (damaged["runs"], damaged["damaged"]) == (0, 1)
    assert "left out: 1 damaged" in run(
        "export", store, store.parent / "b.kv", "--namespace", names[1]
    )


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other"
    file.write_bytes(b"something else" * 100)
    with pytest.raises(KvlabError, match="other"):
        run("import", tmp_path / "store", file)
    with pytest.raises(StoreIOError, match="missing"):
        run("import", tmp_path / "new", tmp_path / "missing")
    assert not (tmp_path / "new").exists()


def test_a_store_that_is_open_may_be_looked_at_but_not_changed(
    store: Path, names: list[str], model_directory: Path
) -> None:
    with open_store(store):
        assert as_json("inspect", store)["holder"] is not None
        assert as_json("verify", store)["sound"]
        run("export", store, store.parent / "out.kv", "--namespace", names[0])
        commands: list[list[str | Path]] = [
            ["gc", store],
            ["clear", store, "--yes"],
            ["import", store, store.parent / "out.kv"],
            ["explain", store, "--prompt", "w1", "--model", model_directory],
        ]
        for command in commands:
            with pytest.raises(StoreLockedError, match="in use"):
                run(*command)


@pytest.mark.parametrize(
    "command", [["inspect"], ["verify"], ["gc"], ["clear", "--yes"], ["explain", "--prompt", "w1"]]
)
def test_a_directory_without_a_store_is_refused_and_not_made_one(
    command: list[str], tmp_path: Path, model_directory: Path
) -> None:
    extra: list[str | Path] = ["--model", model_directory] if command[0] == "explain" else []
    with pytest.raises(FormatError, match="not a kvlab store"):
        run(command[0], tmp_path, *command[1:], *extra)
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvlab", "inspect", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("kvlab: ")
    assert done.stderr.count("\n") == 1


def test_explain_says_what_is_cached_where_it_parts_and_what_a_restore_costs(
    store: Path, names: list[str], model_directory: Path, tmp_path: Path
) -> None:
    ask: list[str | Path] = ["explain", store, "--model", model_directory]
    words = TEXT.split()
    found = as_json(*ask, "--prompt", TEXT)
    assert found["namespace"] == names[0]
    assert (found["prompt_tokens"], found["matched_tokens"]) == (100, 96)
    assert found["divergence"] is None
    assert found["tiers"] == {"l3": {"tokens": 96, "bytes": 96 * 1024}}
    assert found["elsewhere"] == [{"namespace": names[1], "tokens": 96}]
    # The store was made with three reads and more forwards: enough to know both costs.
    forecast = found["forecast"]
    assert forecast["restore_ms"] > 0
    # Of a model as small as this, a hundred tokens more may not take longer than the machine's noise.
    assert forecast["compute_ms"] >= 0
    assert forecast["restored_tokens"] in range(0, 97, 16)
    # The same with the token that differs named, by a file to compare with.
    known, asked = tmp_path / "known.txt", tmp_path / "asked.txt"
    known.write_text(TEXT)
    asked.write_text(" ".join([*words[:40], "w1", "w2", *words[42:]]))
    text = run(*ask, "--prompt-file", asked, "--against", known)
    assert "32 of 100 tokens are cached; token 40 is the first that is not" in text
    assert "goes on with 'w1 w2" in text
    # Of several, the closest tells the token; each says what it shares out of reach.
    far = tmp_path / "far.txt"
    far.write_text(" ".join(["w3", *words]))
    both = as_json(*ask, "--prompt-file", asked, "--against", far, "--against", known)
    assert (both["divergence"]["first"], both["divergence"]["last"]) == (40, 40)
    near = {Path(miss["label"]).name: miss for miss in both["near_misses"]}
    assert (near["known.txt"]["shared_prefix"], near["known.txt"]["lost_tokens"]) == (40, 58)
    assert (near["far.txt"]["shared_prefix"], near["far.txt"]["lost_tokens"]) == (0, 98)
    assert "known.txt: tokens 40 to 41 differ, and 58 tokens behind are the same again" in text
    assert "restore='auto': " in text
    assert "predicted: " in text
    mine = as_json(*ask, "--prompt", TEXT, "--salt", "mine")
    assert (mine["namespace"], mine["matched_tokens"]) == (names[1], 96)
    assert as_json(*ask, "--prompt", "w1 w2")["forecast"]["restored_tokens"] == 0


def test_explain_takes_one_prompt(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="either"):
        run("explain", store)
    with pytest.raises(InvalidArgumentError, match="either"):
        run("explain", store, "--prompt", "a", "--prompt-file", "b")
    broken = tmp_path / "broken"
    broken.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InvalidArgumentError, match="broken"):
        run("explain", store, "--prompt-file", broken)
