"""Workloads: requests as agents and people send them, in a file of JSON lines.

The first line is a header, every other line one request; `docs/workload-model.md` has the fields as
a table. A request that goes on from another one names it (`after`), so that a run may send it
when that one has ended, however long that took.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvlab.errors import InvalidArgumentError, TraceFormatError
from kvlab.sim.formats.rows import Row, json_rows

if TYPE_CHECKING:
    import os

__all__ = [
    "ROLES",
    "VERSION",
    "Header",
    "Message",
    "Workload",
    "WorkloadRequest",
    "dump",
    "dumps",
    "load",
]

VERSION = 1
"""The version of the schema, in the header's field `kvlab_workload`."""

ROLES = ("system", "user", "assistant")
"""The roles of messages. A tool's result is sent as the user's: servers refuse a message of the role
tool that answers no call by its id."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation.

    Attributes:
        role: One of `ROLES`.
        content: Its text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRequest:
    """One call of a model.

    Attributes:
        id: Its name, once in a workload.
        klass: What kind of request it is; `class` in the file. Results are told apart by it.
        session: The conversation that it belongs to.
        turn: Its place in the conversation, from 0.
        after: The id of the request whose end comes before this one: the turn before it, or what it
            was forked from. Several requests may name the same one. It stands on an earlier line.
        append: Whether `messages` go behind the whole conversation of `after`, its answer included.
            If not, they are the whole prompt.
        waits_for: Ids of further earlier requests that must have ended, too: the workers whose
            results a planner joins. Only beside `after`.
        delay_ms: The gap between the end of `after` (and of what it waits for) and this request, in
            milliseconds: what a tool or a human takes.
        arrival_ms: When a request without `after` is sent, in milliseconds from the start; None
            leaves it to whoever runs the workload.
        messages: At least one; the last is not the assistant's.
        max_tokens: The longest answer, in tokens, at least 1.
        reply: The answer that was recorded, if any.
        salt: The cache salt: requests of different salts share nothing.
    """

    id: str
    klass: str
    session: str
    messages: tuple[Message, ...]
    max_tokens: int
    turn: int = 0
    after: str | None = None
    append: bool = False
    waits_for: tuple[str, ...] = ()
    delay_ms: float = 0.0
    arrival_ms: float | None = None
    reply: str | None = None
    salt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known of a workload as a whole.

    Attributes:
        name: What it is called in results.
        seed: What the choices of its generator came from; None for what was imported.
        generator: The name of its generator, or `import FORMAT`.
        options: What the generator or importer was told, so that the file can be made again.
        texts: Texts that requests refer to by their keys, in place of repeating them.
        notes: What a reader should know: what was cut, left out or filled in, and how often.
    """

    name: str
    seed: int | None = None
    generator: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workload:
    """Requests in the order of their lines.

    Attributes:
        header: What is known of all of them.
        requests: At least one.
    """

    header: Header
    requests: tuple[WorkloadRequest, ...]

    @cached_property
    def _index(self) -> Mapping[str, WorkloadRequest]:
        return MappingProxyType({request.id: request for request in self.requests})

    def by_id(self) -> Mapping[str, WorkloadRequest]:
        """The requests by their ids."""
        return self._index

    def conversation(
        self, request: WorkloadRequest, answers: Mapping[str, str] | None = None
    ) -> tuple[Message, ...]:
        """The whole prompt of a request: for one that appends, all that came before it as well.

        Args:
            request: One of this workload.
            answers: What stands for the answers of earlier requests, by id; for those that it lacks
                their recorded reply does.

        Raises:
            InvalidArgumentError: an earlier request has neither.
        """
        known = self.by_id()
        said = answers or {}
        parts = [request.messages]
        while request.append and request.after is not None:
            request = known[request.after]
            answer = said.get(request.id, request.reply)
            if answer is None:
                raise InvalidArgumentError(
                    f"request {request.id} has no recorded reply: give what was answered to it"
                )
            parts.append((*request.messages, Message("assistant", answer)))
        return tuple(message for part in reversed(parts) for message in part)

    def validate(self) -> None:
        """Checks what `load` checks.

        Raises:
            TraceFormatError: a field that cannot be; the message names the request and the field.
        """
        name = self.header.name
        _check_header(self.header, _complain(name, "header"))
        known: set[str] = set()
        for number, request in enumerate(self.requests, 1):
            error = _complain(name, f"request {number} ({request.id})")
            _check_request(request, known, error)
            known.add(request.id)
        if not self.requests:
            raise _complain(name, "header")("requests", "there are none")


def load(path: str | os.PathLike[str]) -> Workload:
    """Reads a workload, plain or gzip.

    Raises:
        TraceFormatError: the file is none; the message names file, line and field.
        OSError: the file cannot be read.
    """
    path = Path(path)
    header: Header | None = None
    requests: list[WorkloadRequest] = []
    known: set[str] = set()
    for row in json_rows(path):
        if header is None:
            header = _read_header(row)
            continue
        request = _read_request(row, header.texts)
        _check_request(request, known, row.error)
        known.add(request.id)
        requests.append(request)
    if header is None or not requests:
        raise TraceFormatError(
            f"{path}: has no {'request' if header else 'header'}; the first line of a workload is "
            f'{{"kvlab_workload": {VERSION}, "name": ...}}, every other line a request'
        )
    return Workload(header, tuple(requests))


def dump(workload: Workload, path: str | os.PathLike[str]) -> None:
    """Writes a workload; equal workloads give equal bytes.

    Raises:
        TraceFormatError: it is not valid; nothing is written.
        OSError: the file cannot be written.
    """
    text = dumps(workload)
    Path(path).write_text(text, encoding="utf-8", newline="\n")


def dumps(workload: Workload) -> str:
    """A workload as the text of a file.

    Wherever a message contains one of the header's texts, a reference stands in its place.

    Raises:
        TraceFormatError: it is not valid.
    """
    workload.validate()
    header = workload.header
    first: dict[str, Any] = {
        "kvlab_workload": VERSION,
        "name": header.name,
        "seed": header.seed,
        "generator": header.generator,
        "options": dict(header.options),
        "texts": dict(header.texts),
    }
    if header.notes:
        first["notes"] = list(header.notes)
    refer = _referrer(header.texts)
    lines = [_json(first)]
    lines.extend(_json(_row(request, refer)) for request in workload.requests)
    return "\n".join(lines) + "\n"


Content = str | list[str | dict[str, str]]
"""A message's content in the file: text, or pieces of it, of which some are references."""


def _row(request: WorkloadRequest, refer: Callable[[str], Content]) -> dict[str, Any]:
    """A request as it is written: fields that have their usual value are left out."""
    row: dict[str, Any] = {
        "id": request.id,
        "class": request.klass,
        "session": request.session,
        "turn": request.turn,
    }
    if request.after is not None:
        row["after"] = request.after
    if request.append:
        row["append"] = True
    if request.waits_for:
        row["waits_for"] = list(request.waits_for)
    if request.delay_ms:
        row["delay_ms"] = _shortest(request.delay_ms)
    if request.arrival_ms is not None:
        row["arrival_ms"] = _shortest(request.arrival_ms)
    row["messages"] = [
        {"role": message.role, "content": refer(message.content)} for message in request.messages
    ]
    row["max_tokens"] = request.max_tokens
    if request.reply is not None:
        row["reply"] = request.reply
    if request.salt:
        row["salt"] = request.salt
    return row


def _referrer(texts: Mapping[str, str]) -> Callable[[str], Content]:
    """What puts references in the place of these texts, of the longest first."""
    by_length = sorted(texts.items(), key=lambda item: -len(item[1]))

    def refer(content: str) -> Content:
        pieces: list[str | dict[str, str]] = [content]
        for key, text in by_length:
            if text in content:
                pieces = [part for piece in pieces for part in _split(piece, text, key)]
        return content if pieces == [content] else pieces

    return refer


def _split(piece: str | dict[str, str], text: str, key: str) -> Iterator[str | dict[str, str]]:
    if isinstance(piece, dict):
        yield piece
        return
    for at, part in enumerate(piece.split(text)):
        if at:
            yield {"text": key}
        if part:
            yield part


def _shortest(number: float) -> float:
    return int(number) if number == int(number) else number


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


_HEADER_FIELDS = ("kvlab_workload", "name", "seed", "generator", "options", "texts", "notes")
_REQUEST_FIELDS = (
    "id", "class", "session", "turn", "after", "append", "waits_for", "delay_ms", "arrival_ms",
    "messages", "max_tokens", "reply", "salt",
)  # fmt: skip
_MISSING = object()

Complaint = Callable[[str, str], TraceFormatError]
"""Makes an error of a field and what is wrong with it."""


def _complain(name: str, place: str) -> Complaint:
    return lambda field, problem: TraceFormatError(f"{name}, {place}, {field}: {problem}")


def _read_header(row: Row) -> Header:
    if "kvlab_workload" not in row:
        raise row.error(
            "kvlab_workload",
            "is missing: the first line of a workload is its header; "
            "`kvlab workload import` reads other files",
        )
    version = row.value("kvlab_workload")
    if version != VERSION or isinstance(version, bool):
        raise row.error("kvlab_workload", f"is {version!r}, and version {VERSION} is what is read")
    _no_others(row, _HEADER_FIELDS)
    texts: dict[str, Any] = _typed(row, "texts", dict, {})
    notes: list[Any] = _typed(row, "notes", list, [])
    for where, value in (
        *((f"texts.{key}", text) for key, text in texts.items()),
        *((f"notes[{at}]", note) for at, note in enumerate(notes)),
    ):
        if not isinstance(value, str):
            raise row.error(where, f"is {value!r}, expected a string")
    header = Header(
        name=_typed(row, "name", str),
        seed=_typed(row, "seed", int, None),
        generator=_typed(row, "generator", str, ""),
        options=_typed(row, "options", dict, {}),
        texts=texts,
        notes=tuple(notes),
    )
    _check_header(header, row.error)
    return header


def _check_header(header: Header, error: Complaint) -> None:
    _check_name(header.name, "name", error)
    try:
        written = _json(dict(header.options))
        written.encode()
    except (TypeError, ValueError) as problem:
        raise error("options", f"cannot be written as JSON: {problem}") from None
    if json.loads(written) != header.options:
        raise error("options", "would be read as something else; use what JSON has")
    for key, text in header.texts.items():
        if not text:
            raise error(f"texts.{key}", "is empty")
        _check_text(text, f"texts.{key}", error)


def _read_request(row: Row, texts: Mapping[str, str]) -> WorkloadRequest:
    _no_others(row, _REQUEST_FIELDS)
    arrival = _number(row, "arrival_ms", None)
    delay = _number(row, "delay_ms", 0.0)
    return WorkloadRequest(
        id=_typed(row, "id", str),
        klass=_typed(row, "class", str),
        session=_typed(row, "session", str),
        turn=_typed(row, "turn", int, 0),
        after=_typed(row, "after", str, None),
        append=_typed(row, "append", bool, default=False),
        waits_for=_read_names(row, "waits_for"),
        delay_ms=0.0 if delay is None else delay,
        arrival_ms=arrival,
        messages=tuple(
            Message(_typed(message, "role", str), _read_content(message, texts))
            for message in row.rows("messages")
        ),
        max_tokens=_typed(row, "max_tokens", int),
        reply=_typed(row, "reply", str, None),
        salt=_typed(row, "salt", str, ""),
    )


def _read_names(row: Row, field: str) -> tuple[str, ...]:
    names: list[Any] = _typed(row, field, list, [])
    for at, name in enumerate(names):
        if not isinstance(name, str):
            raise row.error(f"{field}[{at}]", f"is {name!r}, expected a string")
    return tuple(names)


def _read_content(message: Row, texts: Mapping[str, str]) -> str:
    _no_others(message, ("role", "content"))
    content = message.value("content")
    if isinstance(content, str):
        return content
    pieces = []
    for at, piece in enumerate(message.items("content")):
        if isinstance(piece, str):
            pieces.append(piece)
        elif isinstance(piece, dict) and list(piece) == ["text"] and piece["text"] in texts:
            pieces.append(texts[piece["text"]])
        else:
            raise message.error(
                f"content[{at}]",
                f'is {piece!r}, expected a string or {{"text": KEY}} with a key of the header\'s texts',
            )
    return "".join(pieces)


def _check_request(request: WorkloadRequest, known: set[str], error: Complaint) -> None:
    _check_name(request.id, "id", error)
    if request.id in known:
        raise error("id", f"is {request.id!r}, the id of an earlier request, too")
    _check_name(request.klass, "class", error)
    _check_name(request.session, "session", error)
    if request.turn < 0:
        raise error("turn", f"is {request.turn}, expected a number from 0 on")
    _check_links(request, known, error)
    if not request.messages:
        raise error("messages", "there are none")
    for at, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise error(f"messages[{at}].role", f"is {message.role!r}, not of {', '.join(ROLES)}")
        _check_text(message.content, f"messages[{at}].content", error)
    if request.messages[-1].role == "assistant":
        raise error(
            f"messages[{len(request.messages) - 1}].role",
            "is 'assistant': the last message is what the model answers to",
        )
    if request.max_tokens < 1:
        raise error("max_tokens", f"is {request.max_tokens}, expected at least 1")
    if request.reply is not None:
        _check_text(request.reply, "reply", error)
    _check_text(request.salt, "salt", error)


def _check_links(request: WorkloadRequest, known: set[str], error: Complaint) -> None:
    if request.after is not None and request.after not in known:
        raise error("after", f"is {request.after!r}, which is the id of no earlier request")
    for at, name in enumerate(request.waits_for):
        if name not in known:
            raise error(f"waits_for[{at}]", f"is {name!r}, which is the id of no earlier request")
    if request.waits_for and request.after is None:
        raise error("waits_for", "is given without after")
    if request.append and request.after is None:
        raise error("append", "is true without after: there is no conversation to append to")
    if request.arrival_ms is not None and request.after is not None:
        raise error("arrival_ms", "is given beside after: such a request has a delay_ms instead")
    if request.delay_ms and request.after is None:
        raise error("delay_ms", "is given without after: such a request has an arrival_ms instead")
    for name, number in (("delay_ms", request.delay_ms), ("arrival_ms", request.arrival_ms)):
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise error(name, f"is {number}, expected milliseconds from 0 on")


def _check_name(name: str, field: str, error: Complaint) -> None:
    if not name:
        raise error(field, "is empty")
    _check_text(name, field, error)


def _check_text(text: str, field: str, error: Complaint) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise error(field, f"has half of a character at {problem.start}") from None


def _no_others(row: Row, fields: Iterable[str]) -> None:
    for name in row:
        if name not in fields:
            raise row.error(name, f"is no field; there are {', '.join(fields)}")


def _typed(row: Row, field: str, kind: type, default: Any = _MISSING) -> Any:
    """A field of exactly this type; null counts as absent."""
    if default is not _MISSING and field not in row:
        return default
    value = row.value(field)
    if type(value) is not kind:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise row.error(field, f"is {shown}, expected {_KINDS[kind]}")
    return value


_KINDS: Mapping[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def _number(row: Row, field: str, default: float | None) -> float | None:
    if field not in row:
        return default
    if isinstance(row.value(field), str):
        raise row.error(field, f"is {row.value(field)!r}, expected a number")
    return row.number(field)
