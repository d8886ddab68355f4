"""The command line: exit codes, `--json`, and that it stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import kvlab
from kvlab import cli
from kvlab.cli.demo import read_dtypes, read_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAVY = ("torch", "transformers", "numpy", "rich", "matplotlib")


def kvlab_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvlab", *arguments], capture_output=True, text=True, check=False
    )


def test_version_as_json() -> None:
    result = kvlab_command("version", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["version"] == kvlab.__version__


def test_version_as_a_line() -> None:
    result = kvlab_command("version")
    assert result.stdout.startswith(f"kvlab {kvlab.__version__} (")


def test_help_lists_every_command_with_its_line() -> None:
    result = kvlab_command("--help")
    assert result.returncode == 0
    for name in cli.COMMANDS:
        assert f"  {name} " in result.stdout


# Groups are tested with their commands: test_sim_cli, test_workload_cli.
@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - {"sim", "workload"}))
def test_every_command_exists_and_has_json(name: str) -> None:
    result = kvlab_command(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "--json" in result.stdout


@pytest.mark.parametrize("arguments", [["nope"], ["version", "--nope"]])
def test_wrong_usage_exits_with_2(arguments: Sequence[str]) -> None:
    result = kvlab_command(*arguments)
    assert result.returncode == 2
    assert "nope" in result.stderr
    assert not result.stdout


def test_a_kvlab_error_is_one_line_on_stderr_and_exit_1() -> None:
    result = kvlab_command("demo", "--tokens", "512,many")
    assert result.returncode == 1
    assert result.stderr == (
        "kvlab: --tokens many: give whole numbers above zero, such as 512,1024,2048\n"
    )
    assert not result.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import kvlab",
        "import kvlab.cli",
        "import kvlab.cli.demo",
        "import kvlab.cli.size",
        "import kvlab.workload.generators, kvlab.workload.importers",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    check = f"{code}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_lists_are_read_from_repeats_and_commas() -> None:
    assert read_tokens(("512, 1024", "2048")) == [512, 1024, 2048]
    assert read_dtypes(("fp32,bf16",)) == ["fp32", "bf16"]
    assert read_tokens(()) is None
    assert read_dtypes(()) is None


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "²", "ten"])
def test_a_length_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(kvlab.InvalidArgumentError, match="--tokens"):
        read_tokens((text,))


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(kvlab.InvalidArgumentError, match="fp8"):
        read_dtypes(("fp32", "fp8"))
