"""docs/policy-lab.md: its commands, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kvlab import cli
from kvlab.cli.sim import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "policy-lab.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [line[1:] for line in lines if line[:2] == ["kvlab", "sim"]]


def test_every_command_is_told_of() -> None:
    assert {command[1] for command in commands()} == set(COMMANDS)


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for command in commands():
        if command[1] == "calibrate":  # needs a model; tested with a tiny one
            continue
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        assert ended.value.code == 0, (command, capsys.readouterr().err)
        assert capsys.readouterr().out
