"""Traces in memory: requests with their blocks numbered densely, ready to be replayed."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from kvlab import _core
from kvlab.errors import InvalidArgumentError
from kvlab.sim.formats import Source, TraceInfo, read
from kvlab.sim.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvlab.sim.request import Request

__all__ = ["Trace", "find", "load"]

_CHUNK_REQUESTS = 4096
_CHUNK_IDS = 1 << 18


class Trace:
    """Requests in the order of their arrival.

    Attributes:
        info: What is known of the source.
        core: The columns, in Rust: 4 bytes a block reference and 32 a request.
        sessions: Names of the sessions; session n of the columns is `sessions[n - 1]`, 0 is none.
        categories: The same for categories.
    """

    def __init__(
        self,
        info: TraceInfo,
        core: _core.SimTrace,
        sessions: tuple[str, ...] = (),
        categories: tuple[str, ...] = (),
    ) -> None:
        self.info = info
        self.core = core
        self.sessions = sessions
        self.categories = categories

    def __len__(self) -> int:
        return self.core.requests

    @property
    def block_refs(self) -> int:
        """The lengths of all lists of blocks, summed."""
        return self.core.block_refs

    @property
    def unique_blocks(self) -> int:
        """Distinct block ids."""
        return self.core.unique_blocks

    @property
    def tokens(self) -> int:
        """Prompt tokens of all requests."""
        return self.core.tokens

    @classmethod
    def from_requests(
        cls,
        requests: Iterable[Request],
        info: TraceInfo,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Trace:
        """Collects requests, chunk by chunk: none of them is kept as a Python object.

        Args:
            requests: In the order of their arrival.
            info: What their ids mean; read at the end, so that an importer may fill it in meanwhile.
            progress: Called with the number of requests taken so far.

        Raises:
            InvalidArgumentError: arrivals go back, or there are more than 2**32 - 1 distinct blocks.
        """
        chunks = _Chunks()
        for count, request in enumerate(requests, 1):
            chunks.add(request)
            if progress is not None and count % _CHUNK_REQUESTS == 0:
                progress(count)
        chunks.flush()
        lengths = info.block_lengths
        if lengths is not None:
            ids, tokens = array("Q", lengths.keys()), array("I", lengths.values())
            core = chunks.builder.finish_with_lengths(ids, tokens)
        else:
            core = chunks.builder.finish(info.block_tokens)
        return cls(info, core, tuple(chunks.sessions), tuple(chunks.categories))


class _Chunks:
    """Columns of some requests, all with their ids written in one way."""

    def __init__(self) -> None:
        self.builder = _core.SimTraceBuilder()
        self.sessions: dict[str, int] = {}
        self.categories: dict[str, int] = {}
        self.runs = False
        self._clear()

    def _clear(self) -> None:
        self.at_ms = array("d")
        self.counts = array("I")
        self.ids = array("Q")
        self.tokens = array("I")
        self.output_tokens = array("I")
        self.session_numbers = array("I")
        self.category_numbers = array("I")

    def add(self, request: Request) -> None:
        blocks = request.blocks
        runs = isinstance(blocks, Runs)
        if runs != self.runs:
            self.flush()
            self.runs = runs
        numbers = blocks.stretches if isinstance(blocks, Runs) else blocks
        try:
            self.ids.extend(numbers)
        except (OverflowError, TypeError) as error:
            raise InvalidArgumentError(
                f"the request at {request.at_ms} ms has a block id that is no integer from 0 to 2**64 - 1: {error}"
            ) from None
        self.counts.append(len(numbers))
        self.at_ms.append(request.at_ms)
        self.tokens.append(request.tokens)
        self.output_tokens.append(request.output_tokens)
        self.session_numbers.append(_number(self.sessions, request.session))
        self.category_numbers.append(_number(self.categories, request.category))
        if len(self.counts) >= _CHUNK_REQUESTS or len(self.ids) >= _CHUNK_IDS:
            self.flush()

    def flush(self) -> None:
        if self.counts:
            self.builder.push(
                self.at_ms,
                self.counts,
                self.ids,
                self.tokens,
                self.output_tokens,
                self.session_numbers,
                self.category_numbers,
                runs=self.runs,
            )
        self._clear()


def _number(names: dict[str, int], name: str | None) -> int:
    return names.setdefault(name, len(names) + 1) if name else 0


def find(path: str | os.PathLike[str]) -> Path:
    """A trace by its path; a name alone is looked for in the folder of `KVLAB_TRACES`, too.

    The folder's files may have an ending that the name leaves out, such as `.jsonl.gz`.

    Raises:
        InvalidArgumentError: there is no such file.
    """
    given = Path(path)
    if given.exists():
        return given
    folder = os.environ.get("KVLAB_TRACES", "")
    if folder and given.name == str(given):
        for candidate in (given.name, *(f"{given.name}{end}" for end in _ENDS)):
            if (Path(folder) / candidate).exists():
                return Path(folder) / candidate
    where = f"neither here nor in {folder} (KVLAB_TRACES)" if folder else "KVLAB_TRACES is not set"
    raise InvalidArgumentError(f"there is no trace {given}: {where}")


_ENDS = (".jsonl.gz", ".jsonl", ".csv.gz", ".csv", ".json.gz", ".json")


def load(
    path: str | os.PathLike[str],
    format: str,  # noqa: A002 (what the command line calls it)
    *,
    progress: Callable[[int], None] | None = None,
    **options: object,
) -> Trace:
    """Reads a trace into memory.

    Args:
        path: The file, see `find`.
        format: One of `kvlab.sim.formats.names()`.
        progress: Called with the number of requests read so far.
        options: Of the format; see its importer.

    Raises:
        ConfigError: an unknown format or option; the message lists the known ones.
        TraceFormatError: a malformed row, by file, line and field.
        InvalidArgumentError: there is no such file.
    """
    source: Source = read(find(path), format, **options)
    return Trace.from_requests(source, source.info, progress=progress)
