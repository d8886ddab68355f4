"""Reading rows of JSON lines and CSV, plain or gzip; an error names file, line and field."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kvlab.errors import TraceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Row", "block_id", "csv_rows", "json_rows", "open_text"]

_MAGIC = b"\x1f\x8b"


def open_text(path: Path) -> TextIO:
    """Opens a file of text, unpacking it if it begins like gzip, whatever its name.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as raw:
        packed = raw.read(2) == _MAGIC
    if packed:
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def block_id(value: object) -> int | None:
    """The 64-bit id of what a source calls a block: an int as it is, anything wider by a hash.

    Takes ints of any size and sign, hexadecimal and other strings, and bytes. Two different names of
    one source get the same id with a probability of about n**2 / 2**65 for n of them.

    Returns:
        The id, or None for a value that is no name.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        if 0 <= value < 1 << 64:
            return value
        if -(1 << 63) <= value < 0:
            return value + (1 << 64)
        named = str(value).encode()
    elif isinstance(value, str) and value:
        named = value.encode()
    elif isinstance(value, bytes) and value:
        named = value
    else:
        return None
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little")


class Row:
    """The fields of one row, checked as they are read."""

    __slots__ = ("_fields", "line", "path", "prefix")

    def __init__(self, path: Path, line: int, fields: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.line = line
        self.prefix = prefix
        self._fields = fields

    def __contains__(self, field: str) -> bool:
        return self._fields.get(field) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def error(self, field: str, problem: str) -> TraceFormatError:
        """An error at a field of this row."""
        return TraceFormatError(f"{self.path}, line {self.line}, {self.prefix}{field}: {problem}")

    def value(self, field: str) -> Any:
        """What a field holds, whatever it is.

        Raises:
            TraceFormatError: there is no such field.
        """
        try:
            return self._fields[field]
        except KeyError:
            known = ", ".join(list(self._fields)[:12]) or "nothing"
            raise self.error(field, f"is missing; the row has {known}") from None

    def integer(self, field: str, default: int | None = None) -> int:
        """A count: an integer from 0 on, perhaps written as a string or as a whole float.

        Raises:
            TraceFormatError: it is none.
        """
        if default is not None and field not in self:
            return default
        number = self.number(field)
        if number != int(number) or number < 0 or number >= 1 << 32:
            raise self.error(field, f"is {number:g}, expected an integer from 0 to 2**32 - 1")
        return int(number)

    def number(self, field: str) -> float:
        """A finite number, perhaps written as a string.

        Raises:
            TraceFormatError: it is none.
        """
        value = self.value(field)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.error(field, f"is {_short(value)}, expected a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise self.error(field, f"is {_short(value)}, expected a number") from None
        if not math.isfinite(number):
            raise self.error(field, f"is {number}, expected a finite number")
        return number

    def text(self, field: str, default: str | None = None) -> str:
        """A string; a number counts as one.

        Raises:
            TraceFormatError: it is none.
        """
        if default is not None and field not in self:
            return default
        value = self.value(field)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(field, f"is {_short(value)}, expected a string")
        return str(value)

    def items(self, field: str) -> list[Any]:
        """A list.

        Raises:
            TraceFormatError: it is none.
        """
        value = self.value(field)
        if not isinstance(value, list):
            raise self.error(field, f"is {_short(value)}, expected a list")
        return value

    def ids(self, field: str) -> list[int]:
        """A list of block ids: ints from 0 on are kept, other names are hashed to 64 bits.

        Raises:
            TraceFormatError: it is no list, or an item is no name.
        """
        values = self.items(field)
        if all(type(value) is int and 0 <= value < 1 << 64 for value in values):
            return values
        return [self.id(f"{field}[{index}]", value) for index, value in enumerate(values)]

    def id(self, field: str, value: object) -> int:
        """The id of one value of a field.

        Raises:
            TraceFormatError: it is no name of a block.
        """
        found = block_id(value)
        if found is None:
            raise self.error(field, f"is {_short(value)}, expected the id of a block")
        return found

    def row(self, field: str, value: object) -> Row:
        """A value of a field that has fields of its own.

        Raises:
            TraceFormatError: it has none.
        """
        if not isinstance(value, dict):
            raise self.error(field, f"is {_short(value)}, expected an object")
        return Row(self.path, self.line, value, f"{self.prefix}{field}.")

    def tokens(self, field: str) -> list[int]:
        """A list of token ids, each 0 to 2**32 - 1.

        Raises:
            TraceFormatError: it is no list, or an item is none.
        """
        values = self.items(field)
        for index, value in enumerate(values):
            if type(value) is not int or not 0 <= value < 1 << 32:
                raise self.error(f"{field}[{index}]", f"is {_short(value)}, expected a token id")
        return values

    def rows(self, field: str) -> Iterator[Row]:
        """The items of a list that have fields of their own.

        Raises:
            TraceFormatError: it is no list, or an item has none.
        """
        for index, value in enumerate(self.items(field)):
            yield self.row(f"{field}[{index}]", value)


def json_rows(path: Path, lists: Sequence[str] = ()) -> Iterator[Row]:
    """The objects of a file of JSON lines; empty lines are skipped.

    Args:
        path: Plain or gzip.
        lists: Names of the items of a line that is a list, where such lines are known.

    Raises:
        TraceFormatError: a line is no JSON object, or the file is no text or damaged gzip.
        OSError: the file cannot be read.
    """
    line = 0
    try:
        with open_text(path) as file:
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    fields = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise TraceFormatError(f"{path}, line {line}: is no JSON: {error}") from None
                if lists and isinstance(fields, list):
                    fields = dict(zip(lists, fields, strict=False))
                if not isinstance(fields, dict):
                    raise TraceFormatError(
                        f"{path}, line {line}: is {_short(fields)}, expected a JSON object"
                    )
                yield Row(path, line, fields)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise TraceFormatError(f"{path}, behind line {line}: cannot be read: {error}") from error


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file with a header that has at least these columns.

    Raises:
        TraceFormatError: a column or a cell is missing, or the file is no text or damaged gzip.
        OSError: the file cannot be read.
    """
    line = 0
    try:
        with open_text(path) as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            for column in columns:
                if column not in header:
                    raise TraceFormatError(
                        f"{path}, line 1, {column}: is missing; the columns are {', '.join(header)}"
                    )
            for cells in reader:
                line = reader.line_num
                if not cells:
                    continue
                if len(cells) < len(header):
                    missing = header[len(cells)]
                    raise TraceFormatError(f"{path}, line {line}, {missing}: is missing")
                yield Row(path, line, dict(zip(header, cells, strict=False)))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, csv.Error) as error:
        raise TraceFormatError(f"{path}, behind line {line}: cannot be read: {error}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
