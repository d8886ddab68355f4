"""docs/coming-from.md: every command of its tables, run as it stands but for sizes."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")
httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")

from bench_support import request, workload
from kvlab import cli
from kvlab.models import SMOLLM2
from kvlab.serve.run import listen, open_service
from kvlab.workload.schema import dump
from serve_api_support import Running, make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvlab.serve.options import ServeOptions
    from kvlab.serve.run import Started

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coming-from.md"
OURS = ("kvlab ", "curl ", "python scripts/", "sh scripts/")
ADDRESS = "http://127.0.0.1:8000"

SMALL = ["--l1", "32MiB", "--l2", "16MiB", "--l3", "256MiB"]
PAGES = ["--scenarios", "medium", "--workloads", "rag_burst:length=60"]
SHORTENED = {
    "serve": [*SMALL, "--port", "0"],
    "bench --backend local": SMALL,
    "sim sweep": [*PAGES, "--policies", "lru"],
    "run_benchmarks.py": [*PAGES, "--policies", "lru"],
    "sim ablate": [*PAGES, "--grid", "weight=0", "--seeds", "7"],
    "run_regret_ablation.py": [*PAGES, "--grid", "weight=0", "--seeds", "7"],
}
"""What is put behind commands that have these words; of an option that is given twice the later one counts."""


def commands() -> list[str]:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    return [span for span in spans if span.startswith(OURS) and " " in span and "-" in span]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the commands read."""
    place = tmp_path_factory.mktemp("coming_from")
    make_model(place / "model")
    (place / "scripts").symlink_to(ROOT / "scripts")
    turns = []
    for name in ("a", "b", "c"):
        text = "These are the rules. " * 12 + name
        turns += [request(f"{name}0", text=text, session=name, reply="fine")]
        turns += [request(f"{name}1", after=f"{name}0", append=True, session=name, turn=1)]
    dump(workload(*turns), place / "X.jsonl")
    (place / "KEYS").write_text("sk-12345678 one\n")
    stored = {
        "type": "BlockStored",
        "block_hashes": [1, 2],
        "parent_block_hash": None,
        "token_ids": list(range(32)),
        "block_size": 16,
    }
    (place / "events.jsonl").write_text(json.dumps({"ts": 1.0, "events": [stored]}) + "\n")
    return place


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """Of a server that `scripts/run_server.sh` started, as the page says."""
    row = "sh scripts/run_server.sh smollm2-135m"
    assert row in commands()
    command = [*shlex.split(row), "--name", SMOLLM2, "--json", *SHORTENED["serve"]]
    command[2] = str(place / "model")
    settings = {"PYTHON": sys.executable, "KVLAB_CACHE": str(place / "served")}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place, env=os.environ | settings, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            line = process.stdout.readline()
            assert line, (place / "log").read_text()
            yield json.loads(line)["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    assert code == 0


def serve_for_a_moment(options: ServeOptions, announce: Callable[[Started], None]) -> None:
    """`kvlab.serve.run.run` without its signals: one request, and the end."""
    del announce
    with open_service(options) as service:
        server = Running(service, listen(options.host, options.port))
        try:
            server.wait_ready()
            sent = {"model": options.served_name, "prompt": "Hello, what can you do?"}
            key = {"Authorization": "Bearer sk-12345678"}
            url = f"{server.url}/v1/completions"
            answer = httpx.post(url, json=sent | {"max_tokens": 2}, headers=key, timeout=60)
            assert answer.status_code == 200, answer.text
        finally:
            server.end()


def curl(words: list[str]) -> None:
    """The few options of curl that the page has."""
    url, headers, body = "", {}, None
    for word in (rest := iter(words)):
        match word:
            case "-s":
                pass
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                body = next(rest)
            case _:
                url = word
    method = "GET" if body is None else "POST"
    answer = httpx.request(method, url, headers=headers, content=body, timeout=60)
    assert answer.status_code == 200, answer.text


def run(text: str, place: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(text.replace(ADDRESS, address))
    model = str(place / "model")
    tiny = [model if word == SMOLLM2 else word for word in words]
    for what, more in SHORTENED.items():
        if all(part in tiny or f"scripts/{part}" in tiny for part in what.split()):
            tiny += more
    if "local" in words:  # which takes the real model unless another one is named
        tiny += ["--model", model]
    # The server calls the model by its name, others find it by its path.
    arguments = tiny if "--endpoint" not in words else words
    match words[0]:
        case "curl":
            curl(words[1:])
        case "kvlab":
            with pytest.raises(SystemExit) as ended:
                cli.main(arguments[1:])
            assert not ended.value.code
        case "sh":
            assert address  # it runs already
        case "python":
            monkeypatch.setattr(sys, "argv", arguments[1:])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(arguments[1], run_name="__main__")
            assert not ended.value.code
        case other:
            pytest.fail(f"nothing runs {other}")


def test_every_row_runs(
    place: Path,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("KVLAB_CACHE", str(place / "cache"))
    monkeypatch.setattr("kvlab.serve.run.run", serve_for_a_moment)
    for text in commands():
        capsys.readouterr()
        print(text)  # so that a failure names it
        run(text, place, address, monkeypatch)
    for made in ("A", "B", "C", "D-baseline", "D-nvme", "L", "V"):
        content: dict[str, Any] = json.loads((place / f"{made}.json").read_text())
        assert content["failed"] == content["skipped"] == 0, made


def test_every_script_of_theirs_is_told_of() -> None:
    told = {name for text in commands() for name in re.findall(r"scripts/(\w+\.\w+)", text)}
    theirs = {
        path.name
        for path in (ROOT / "scripts").glob("*.py")
        if path.read_text().startswith('"""kv-')
    }
    assert told == theirs | {"run_server.sh"}
    assert len(theirs) == 7
