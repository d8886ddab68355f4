"""docs/reading-guide.en.md: its commands print what it shows."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from kvlab import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reading-guide.en.md").read_text(encoding="utf-8")
STEPS = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_each_step_has_one_command() -> None:
    assert PAGE.count("```sh") == len(STEPS) == len(re.findall(r"^## \d", PAGE, re.MULTILINE)) == 7
    assert sum("--endpoint" in command for command, _ in STEPS) == 1


@pytest.mark.parametrize("step", [at for at in range(7) if "--endpoint" not in STEPS[at][0]])
def test_it_prints_these_lines(
    step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    command, shown = STEPS[step]
    if "--tokenizer smollm2-135m" in command:
        request.getfixturevalue("smollm2")
    for name in ("toys", "workloads"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command)
    if program == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.syspath_prepend(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert not ended.value.code
    printed = capsys.readouterr().out.splitlines()
    for line in shown.splitlines():
        # Wide tables are cut on the page.
        assert any(other.startswith(line) for other in printed), (line, printed)
