"""Running checkpoints: against kvlab's own references, or against what the learner wrote."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvlab.course import toys
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from kvlab.course.syllabus import Checkpoint

__all__ = ["Outcome", "check", "checkable", "load_mine"]

_MINE = "kvlab_course_mine"
_EXTRAS = ("torch", "transformers")
_WANTING = ("this toy needs ", "kvlab.errors.ModelUnavailableError: ")
"""How the last line of a toy begins that did not run for want of a package or of the model."""


@dataclass(frozen=True)
class Outcome:
    """What came of a checkpoint.

    Attributes:
        id: Of the checkpoint.
        task: What it claims.
        result: `passed`, `failed`, or `not run` where something that it needs is missing.
        said: What held; or why it did not; or what is missing.
        mine: The learner's function that was held against it, if one was.
        seconds: How long it took.
    """

    id: str
    task: str
    result: Literal["passed", "failed", "not run"]
    said: str
    mine: str | None
    seconds: float


def checkable(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint can be run; the others are questions."""
    return checkpoint.check is not None or checkpoint.toy is not None


def load_mine(path: Path) -> ModuleType:
    """Runs the learner's file as a module.

    Raises:
        InvalidArgumentError: it cannot be read, or it failed; the message has the line.
    """
    if not path.is_file():
        raise InvalidArgumentError(f"--mine {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(_MINE, path)
    if spec is None or spec.loader is None:
        raise InvalidArgumentError(f"--mine {path}: give a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MINE] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InvalidArgumentError(f"--mine {path}: {_told(error, path)}") from error
    return module


def check(checkpoint: Checkpoint, mine: ModuleType | None = None) -> Outcome:
    """Runs a checkpoint.

    Args:
        checkpoint: One that is `checkable`.
        mine: What `load_mine` gave: its function is held against the check. None for the references.
    """
    begun = time.perf_counter()
    name = None if mine is None else checkpoint.mine_name
    file = None if mine is None else Path(str(mine.__file__))
    result: Literal["passed", "failed", "not run"]
    try:
        result, said = "passed", _run(checkpoint, None if name is None else getattr(mine, name))
    except AssertionError as error:
        result, said = "failed", str(error) or _told(error, file)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRAS:
            result, said = "failed", _told(error, file)
        else:
            result, said = "not run", f"needs {error.name}: pip install 'kvlab[hf]'"
    except _MissingError as error:
        result, said = "not run", str(error)
    except (Exception, SystemExit) as error:
        if mine is None:
            raise
        result, said = "failed", _told(error, file)
    seconds = time.perf_counter() - begun
    return Outcome(checkpoint.id, checkpoint.title, result, said, name, seconds)


def _run(checkpoint: Checkpoint, mine: Callable[..., Any] | None) -> str:
    if checkpoint.toy is not None:
        return _toy(checkpoint.toy)
    file, _, function = str(checkpoint.check).partition(".")
    found: Callable[[Callable[..., Any] | None], str] = getattr(
        importlib.import_module(f"kvlab.course.checks.{file}"), function
    )
    return found(mine)


class _MissingError(Exception):
    """Something that a toy needs is not here."""


def _toy(name: str) -> str:
    """A toy raises if what it shows does not hold."""
    try:
        toys.toy(name)
    except InvalidArgumentError as error:
        raise _MissingError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="kvlab-course-") as directory:
        done = toys.run(name, Path(directory), quick=True, as_json=True, take=True)
    if done.code == 0:
        return f"python toys/{name}.py --quick: its claim held"
    last = (done.err.strip().splitlines() or [f"exit code {done.code}"])[-1]
    if last.startswith(_WANTING):
        raise _MissingError(last)
    raise AssertionError(f"python toys/{name}.py --quick: {last}")


def _told(error: BaseException, file: Path | None) -> str:
    """An exception in one line, with the line of the learner's file that it came from."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    lines = (
        [] if file is None else [frame.lineno for frame in frames if Path(frame.filename) == file]
    )
    if isinstance(error, SyntaxError) or not lines:
        return said
    return f"{said} (line {lines[-1]})"
