"""What a learner has done, in a file of their own, and how much of the course that is.

The file is `$KVLAB_COURSE_STATE`, else `$XDG_STATE_HOME/kvlab/course.json`, else `~/.local/state/kvlab/course.json`:
one JSON object, `{"kvlab_course": 1, "done": {"0.1.A": "2026-01-31T12:00:00+00:00"}}`, with the time each item was
done. Items that this version's syllabus does not have are kept and not counted.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab.errors import FormatError, StoreIOError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kvlab.course.syllabus import Item

__all__ = ["Progress", "Standing", "changing", "read", "standing", "state_path"]

_VERSION = 1


def state_path() -> Path:
    """Where the state is, whether or not it is there yet."""
    if given := os.environ.get("KVLAB_COURSE_STATE"):
        return Path(given).expanduser()
    # The specification of XDG: a path that is not absolute is to be ignored.
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    base = home if home.is_absolute() else Path.home() / ".local" / "state"
    return base / "kvlab" / "course.json"


@dataclass
class Progress:
    """What is done.

    Attributes:
        done: When each item was, by id, as ISO 8601.
    """

    done: dict[str, str] = field(default_factory=dict)

    def mark(self, names: Iterable[str]) -> list[str]:
        """Notes items as done now.

        Returns:
            Those that were not done before.
        """
        new = [name for name in dict.fromkeys(names) if name not in self.done]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.done |= dict.fromkeys(new, now)
        return new

    def unmark(self, names: Iterable[str]) -> list[str]:
        """Forgets that items were done.

        Returns:
            Those that had been.
        """
        return [name for name in dict.fromkeys(names) if self.done.pop(name, None) is not None]


@dataclass(frozen=True)
class Standing:
    """How much of something is done.

    Attributes:
        done: Items.
        items: In all.
    """

    done: int
    items: int

    @property
    def resident(self) -> float:
        """The share that is done, 0 to 1."""
        return self.done / self.items

    def __str__(self) -> str:
        return f"{self.done} of {self.items} resident, {self.items - self.done} cold"

    def bar(self, width: int = 24) -> str:
        """The share as text: `#` is resident, `.` is cold. Full only when all is done."""
        filled = self.done * width // self.items
        return f"[{'#' * filled}{'.' * (width - filled)}]"


def standing(items: Iterable[Item], done: Mapping[str, str]) -> Standing:
    """How many of these items are done."""
    names = [item.id for item in items]
    return Standing(sum(name in done for name in names), len(names))


def read(path: Path | None = None) -> Progress:
    """What is done; nothing, where there is no file.

    Args:
        path: The file. By default `state_path()`.

    Raises:
        FormatError: the file is damaged or of a newer version; nothing was changed.
        StoreIOError: it cannot be read.
    """
    path = path or state_path()
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Progress()
    except OSError as error:
        raise _refused("read", path, error) from error
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON that can be read
        raise _damaged(path, str(error)) from error
    return _checked(content, path)


def _checked(content: Any, path: Path) -> Progress:
    if not isinstance(content, dict):
        raise _damaged(path, "it is no JSON object")
    version, done = content.get("kvlab_course"), content.get("done")
    if isinstance(version, int) and version > _VERSION:
        message = (
            f"{path} is of a newer kvlab (version {version} of its format, this one reads {_VERSION}): "
            "install that one, or set KVLAB_COURSE_STATE to another file"
        )
        raise FormatError(message)
    if version != _VERSION or not isinstance(done, dict):
        raise _damaged(path, f"'kvlab_course' is {version!r} and 'done' is a {type(done).__name__}")
    if not all(isinstance(when, str) for when in done.values()):
        raise _damaged(path, "an item of 'done' has no time")
    return Progress(done)


@contextmanager
def changing(path: Path | None = None) -> Iterator[Progress]:
    """What is done, to be changed: it is written when the block ends without an error, whole or not at all.

    Two processes that change it at once do so one after the other.

    Args:
        path: The file. By default `state_path()`.

    Raises:
        FormatError: as for `read`.
        StoreIOError: it cannot be read or written.
    """
    path = path or state_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise _refused("write", path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        progress = read(path)
        yield progress
        try:
            _write(path, progress)
        except OSError as error:
            raise _refused("write", path, error) from error


def _write(path: Path, progress: Progress) -> None:
    content = {"kvlab_course": _VERSION, "done": dict(sorted(progress.done.items()))}
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False
    ) as file:
        try:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def _damaged(path: Path, why: str) -> FormatError:
    return FormatError(
        f"{path} is damaged: {why}; mend it, move it away to begin anew (mv '{path}' '{path}.damaged'), "
        "or set KVLAB_COURSE_STATE to another file"
    )


def _refused(what: str, path: Path, error: OSError) -> StoreIOError:
    message = (
        f"cannot {what} {path}: {error.strerror}; set KVLAB_COURSE_STATE to a file that can be"
    )
    return StoreIOError(error.errno, message)
