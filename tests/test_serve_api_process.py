"""`kvlab serve` as a process, with the real model: killed, started again, ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")
httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")
openai = pytest.importorskip("openai", reason="the 'test' extra is not installed")

from click.testing import CliRunner

from kvlab import (
    ConfigError,
    FormatError,
    KvlabError,
    ModelUnavailableError,
    StoreLockedError,
    inspect_store,
)
from kvlab.cli import app
from kvlab.models import SMOLLM2
from serve_api_support import until

SYSTEM = "You answer in one word. " + "These are the rules of the house. " * 20
GREEDY: dict[str, Any] = {"model": SMOLLM2, "temperature": 0}
SIZES = ["--l1", "128MiB", "--l2", "128MiB", "--l3", "512MiB"]


class Process:
    """A server process.

    Attributes:
        started: What it printed when it was ready.
    """

    def __init__(self, store: Path, errors: Path) -> None:
        command = [sys.executable, "-m", "kvlab", "serve", "--json", "--port", "0", *SIZES]
        command += ["--model", SMOLLM2, "--store", str(store), "--drain", "60"]
        with errors.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        line = self._stdout.readline()
        assert line, errors.read_text()
        self.started: dict[str, Any] = json.loads(line)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(120)

    def kill(self) -> None:
        self._process.kill()
        self.wait()
        self._stdout.close()


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    return tmp_path / "stderr"


def ask(url: str, question: str) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return client.chat.completions.create(messages=turns(question), max_tokens=6, **GREEDY)


def turns(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def by_source(answer: Any) -> dict[str, int]:
    found: dict[str, int] = answer.usage.prompt_tokens_details.cached_tokens_by_source
    return found


@pytest.mark.usefixtures("smollm2")
def test_a_server_that_was_killed_answers_from_disk_and_then_ends_cleanly(
    tmp_path: Path, errors: Path
) -> None:
    store = tmp_path / "store"
    first = Process(store, errors)
    try:
        assert first.started["recovery"]["runs"] == 0
        assert first.started["mode"] == "nvme"
        before = ask(first.started["url"], "What is red?")
        assert sum(by_source(before).values()) == 0
        until_written(first.started["url"], before.usage.prompt_tokens // 16)
    finally:
        first.kill()

    second = Process(store, errors)
    try:
        url = second.started["url"]
        recovery = second.started["recovery"]
        assert not recovery["clean"]
        assert recovery["blocks"] > 0
        after = ask(url, "What is red?")
        assert by_source(after)["l3"] > 0
        assert sum(by_source(after).values()) == by_source(after)["l3"]
        assert after.choices[0].message.content == before.choices[0].message.content
        check_the_store_is_taken(second, store)
        check_the_port_is_taken(int(url.rpartition(":")[2]), tmp_path)
        check_a_stream_is_finished_at_the_end(second, url)
    finally:
        second.kill()
    index = inspect_store(store)["index"]
    assert index is not None
    assert index["clean"]


def until_written(url: str, blocks: int) -> None:
    """Waits until the disk has what was computed."""

    def written() -> bool:
        tiers = {tier["tier"]: tier for tier in httpx.get(f"{url}/live/snapshot").json()["tiers"]}
        return bool(tiers["l3"]["blocks"] >= blocks)

    until(written)


def check_the_store_is_taken(server: Process, store: Path) -> None:
    with pytest.raises(StoreLockedError, match=str(server.started["pid"])) as caught:
        run("--store", str(store), "--port", "0")
    assert str(store) in str(caught.value)


def check_the_port_is_taken(port: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--port") as caught:
        run("--store", str(tmp_path / "other"), "--port", str(port))
    assert str(port) in str(caught.value)


def check_a_stream_is_finished_at_the_end(server: Process, url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            messages=turns("What is blue?"), max_tokens=8, stream=True, **GREEDY
        )
        pieces = [next(stream)]
        server.signal(signal.SIGTERM)
        pieces += stream
    assert pieces[-1].choices[0].finish_reason is not None
    assert server.wait() == 0


def run(*options: str) -> None:
    """`kvlab serve` in this process; it is expected to fail."""
    result = CliRunner().invoke(app, ["serve", *options], standalone_mode=False)
    assert result.exception is not None
    raise result.exception


@pytest.mark.usefixtures("smollm2")
@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        (["--model", "./no-such-model"], ModelUnavailableError, "no-such-model"),
        (["--store", "{file}"], KvlabError, "{file}"),
        (["--store", "{other}"], FormatError, "{other}"),
        (["--ttl", "soon"], KvlabError, "soon"),
        (["--policy", "luck"], ConfigError, "luck"),
        (["--api-keys", "{missing}"], ConfigError, "{missing}"),
        (["--host", "192.0.2.1"], ConfigError, "192.0.2.1"),
        (["--l1", "much"], KvlabError, "much"),
        (["--chunk-tokens", "100"], ConfigError, "100"),
    ],
)
def test_what_stands_in_the_way_is_named(
    tmp_path: Path, options: list[str], error: type[KvlabError], told: str
) -> None:
    names = {name: str(tmp_path / name) for name in ("file", "other", "missing")}
    (tmp_path / "file").write_text("not a directory")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_text("somebody's")
    defaults = ["--port", "0", "--store", str(tmp_path / "store")]
    if "--store" in options:
        defaults = defaults[:2]
    with pytest.raises(error) as caught:
        run(*defaults, *(option.format(**names) for option in options))
    assert told.format(**names) in str(caught.value)
    assert (tmp_path / "other" / "photo.jpg").read_text() == "somebody's"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom kvlab.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "finally: print([name for name in ('torch', 'fastapi', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
