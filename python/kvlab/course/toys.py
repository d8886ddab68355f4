"""Where the toys are, and running them. They stand at the top of the repository, not in the wheel."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import kvlab
from kvlab.errors import InvalidArgumentError

__all__ = ["Run", "checkout", "run", "toy"]


@dataclass(frozen=True)
class Run:
    """How a toy ended.

    Attributes:
        code: Its exit code.
        out: What it printed, where that was taken.
        err: What it said on stderr, likewise.
    """

    code: int
    out: str
    err: str


def checkout() -> Path | None:
    """The top of the repository: around the current directory, or where an editable install came from."""
    here = Path.cwd()
    installed = Path(kvlab.__file__).resolve().parents[2]
    for directory in (here, *here.parents, installed):
        if (directory / "toys" / "common.py").is_file() and (
            directory / "python" / "kvlab"
        ).is_dir():
            return directory
    return None


def toy(name: str) -> Path:
    """The file of a toy.

    Raises:
        InvalidArgumentError: there is no checkout of kvlab here, or it has no such toy.
    """
    top = checkout()
    if top is None:
        message = (
            f"no toys/{name}.py: the toys are in kvlab's repository, not in the package; go into a checkout of it, "
            "or install kvlab from one (pip install -e .)"
        )
        raise InvalidArgumentError(message)
    path = top / "toys" / f"{name}.py"
    if not path.is_file():
        message = f"{path} is not there: this checkout is of another version than kvlab {kvlab.__version__}"
        raise InvalidArgumentError(message)
    return path


def run(name: str, directory: Path, *, quick: bool, as_json: bool, take: bool) -> Run:
    """Runs a toy to its end, in a directory into which it draws.

    Args:
        name: Of the toy.
        directory: Must exist.
        quick: Fewer and smaller cases.
        as_json: Let it print JSON; then it draws nothing.
        take: Keep what it prints instead of letting it through.

    Raises:
        InvalidArgumentError: the toy is not there.
    """
    command = [sys.executable, str(toy(name)), *["--quick"] * quick, *["--json"] * as_json]
    done = subprocess.run(command, cwd=directory, capture_output=take, text=True, check=False)
    return Run(done.returncode, done.stdout or "", done.stderr or "")
