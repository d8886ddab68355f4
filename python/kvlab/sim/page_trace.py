"""Page traces in files: JSON lines, a header first, then the pages, then the rows.

    {"kvlab_page_trace": 1, "name": "rag_burst", "seed": 11, "pages": 96, "rows": 320}
    {"page": 0, "tokens": [0, 16], "layer": 0, "head_group": 0, "bytes": 4672, "scheme": "fp16"}
    {"step": 0, "page": 3, "sequence": "seq-0"}

A page may have a `tier` that it starts in, a row `"prefetch_hint": true` and `metadata`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab.errors import FormatError
from kvlab.sim.schemes import SCHEMES
from kvlab.sim.workloads.pages import Access, Page, PageWorkload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

__all__ = ["FORMAT", "read_page_trace", "write_page_trace"]

FORMAT = 1
"""The version that is written, and the only one that is read."""


def write_page_trace(workload: PageWorkload, path: str | PathLike[str]) -> None:
    """Writes a workload. The same workload gives the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in _lines(workload))


def _lines(workload: PageWorkload) -> Iterator[str]:
    header = {
        "kvlab_page_trace": FORMAT,
        "name": workload.name,
        "seed": workload.seed,
        "pages": len(workload.pages),
        "rows": len(workload.trace),
    }
    yield json.dumps(header)
    for page in workload.pages:
        fields: dict[str, Any] = {
            "page": page.id,
            "tokens": list(page.tokens),
            "layer": page.layer,
            "head_group": page.head_group,
            "bytes": page.size_bytes,
            "scheme": page.scheme,
        }
        if page.tier is not None:
            fields["tier"] = page.tier
        yield json.dumps(fields)
    for access in workload.accesses():
        fields = {"step": access.step, "page": access.page, "sequence": access.sequence}
        if access.prefetch_hint:
            fields["prefetch_hint"] = True
        if access.metadata:
            fields["metadata"] = dict(access.metadata)
        yield json.dumps(fields)


def read_page_trace(path: str | PathLike[str]) -> PageWorkload:
    """Reads a workload.

    Raises:
        FormatError: a line is not what it should be; the message names file, line and field.
        OSError: the file cannot be read.
    """
    with Path(path).open(encoding="utf-8") as file:
        lines = (_Line(path, number, text) for number, text in enumerate(file, start=1))
        header = next(lines, None)
        if header is None:
            message = f"{path} is empty; a page trace begins with a header"
            raise FormatError(message)
        if header.get("kvlab_page_trace", int) != FORMAT:
            header.refuse("kvlab_page_trace", f"is not {FORMAT}, the version that is read")
        counts = {what: header.get(what, int) for what in ("pages", "rows")}
        pages: list[Page] = []
        accesses: list[Access] = []
        for line in lines:
            if len(pages) < counts["pages"]:
                pages.append(line.page(len(pages)))
            else:
                accesses.append(line.access(counts["pages"]))
        for what, found in (("pages", len(pages)), ("rows", len(accesses))):
            if found != counts[what]:
                header.refuse(
                    what, f"were announced, {found} were found: the file was cut or joined"
                )
        return PageWorkload.of(
            header.get("name", str), pages, accesses, header.get("seed", int, default=None)
        )


_REQUIRED = object()


class _Line:
    """One line, which knows where it stands."""

    def __init__(self, path: str | PathLike[str], number: int, text: str) -> None:
        self._where = f"{path}, line {number}"
        try:
            fields = json.loads(text)
        except ValueError as error:
            message = f"{self._where} is no JSON: {error}"
            raise FormatError(message) from error
        if not isinstance(fields, dict):
            message = f"{self._where} is no JSON object: {text.strip()[:60]}"
            raise FormatError(message)
        self._fields: dict[str, Any] = fields

    def refuse(self, field: str, why: str) -> None:
        message = f"{self._where}: {field} = {self._fields.get(field)!r} {why}"
        raise FormatError(message)

    def get(self, field: str, kind: type, *, default: Any = _REQUIRED) -> Any:
        value = self._fields.get(field, default)
        if value is default and default is not _REQUIRED:
            return value
        # A bool is an int to Python, but not to a trace.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.refuse(field, f"is no {kind.__name__}")
        if kind is int and value < 0:
            self.refuse(field, "is negative")
        return value

    def page(self, place: int) -> Page:
        if self.get("page", int) != place:
            self.refuse("page", f"stands at place {place}; number the pages from 0 on")
        tokens = self.get("tokens", list)
        if len(tokens) != 2 or not all(isinstance(token, int) for token in tokens):
            self.refuse("tokens", "is no pair of token positions")
        scheme = self.get("scheme", str)
        if scheme not in SCHEMES:
            self.refuse("scheme", f"is unknown; use one of: {', '.join(SCHEMES)}")
        return Page(
            id=place,
            tokens=(tokens[0], tokens[1]),
            layer=self.get("layer", int),
            head_group=self.get("head_group", int),
            size_bytes=self.get("bytes", int),
            scheme=scheme,
            tier=self.get("tier", str, default=None),
        )

    def access(self, pages: int) -> Access:
        page = self.get("page", int)
        if page >= pages:
            self.refuse("page", f"is not one of the {pages} pages")
        return Access(
            step=self.get("step", int),
            page=page,
            sequence=self.get("sequence", str, default="seq-0"),
            prefetch_hint=self.get("prefetch_hint", bool, default=False),
            metadata=self.get("metadata", dict, default={}),
        )
