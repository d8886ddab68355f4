"""Importers: recorded conversations and request logs as workloads."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvlab.errors import ConfigError, InvalidArgumentError, TraceFormatError
from kvlab.sim.formats.messages import body, content, is_call, time_ms
from kvlab.sim.formats.rows import Row, json_rows, open_text
from kvlab.workload.schema import ROLES, Header, Message, Workload, WorkloadRequest
from kvlab.workload.tokens import Characters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from kvlab.workload.tokens import ChatTokenizer

__all__ = ["FORMATS", "read"]

FORMATS: Mapping[str, str] = {
    "transcripts": "Whole conversations, one a row: `messages`, of which each of the assistant's was a call.",
    "sharegpt": "Whole conversations: `conversations` of `from` and `value`; JSON lines or one list.",
    "requests": "One call a row, as sent to an OpenAI-style server: `messages`, or `body.messages`.",
}
"""What can be read, each with what its rows are."""

_ROLES = {
    "developer": "system",
    "tool": "user",
    "function": "user",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "user",
    "function_call": "assistant",
}
"""Other names of roles. Results of tools are sent as the user's, see `schema.ROLES`."""

_SHARED_CHARS = 400
_SHARED_TEXTS = 256


@dataclass(slots=True)
class _Counts:
    """What happened to rows on the way."""

    conversations: int = 0
    cut: int = 0
    dropped_calls: int = 0
    too_long: int = 0
    without_call: int = 0
    joined: int = 0
    timeless: int = 0
    tools: int = 0

    def notes(self, context_tokens: int, tokenizer: str) -> Iterator[str]:
        """What a reader should know of it."""
        limit = f"{context_tokens:,} tokens ({tokenizer})"
        if self.cut:
            yield (
                f"{self.cut} of {self.conversations} conversations are cut where they pass {limit}: "
                f"{self.dropped_calls} calls are left out"
            )
        if self.too_long:
            yield f"{self.too_long} of {self.conversations} rows are left out: their first call passes {limit}"
        if self.without_call:
            yield f"{self.without_call} conversations without an answer after a question are left out"
        if self.joined:
            yield f"{self.joined} answers that follow another at once are joined to it"
        if self.tools:
            yield f"{self.tools} results of tools are messages of the user here"
        if self.timeless:
            yield f"{self.timeless} rows have no time: no arrival is kept"


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a model: what came before it that no earlier call had, and what was answered."""

    messages: tuple[Message, ...]
    reply: str | None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Conversation:
    """Calls that go on from one another."""

    name: str
    at_ms: float | None
    calls: list[_Call] = field(default_factory=list)


def read(
    path: Path,
    format: str,  # noqa: A002 (what the command line calls it)
    *,
    tokenizer: ChatTokenizer | None = None,
    context_tokens: int = 8_192,
    max_tokens: int = 256,
    gap_ms: float = 0.0,
    limit: int | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Workload:
    """Reads recorded conversations or requests, plain or gzip.

    An answer may be as long as the recorded one was. A conversation is cut before the first call whose
    prompt and answer together pass `context_tokens`; what is cut or left out is counted in the
    header's notes.

    Args:
        path: The file.
        format: One of `FORMATS`.
        tokenizer: What tokens are counted in; by default 4 characters are one.
        context_tokens: The longest prompt with its answer.
        max_tokens: The longest answer where none was recorded and the row does not say.
        gap_ms: The time between an answer and the next call of its conversation, which such files do
            not tell.
        limit: Rows to read at most.
        name: What the workload is called; by default as the file.
        progress: Called with the number of rows read so far.

    Raises:
        ConfigError: an unknown format; the message lists the known ones.
        InvalidArgumentError: a limit below 1, or nothing in the file fits into `context_tokens`.
        TraceFormatError: a malformed row; the message names file, line and field.
        OSError: the file cannot be read.
    """
    if format not in FORMATS:
        raise ConfigError(f"format = {format}: use one of: {', '.join(FORMATS)}")
    numbers = {"context_tokens": context_tokens, "max_tokens": max_tokens}
    if limit is not None:
        numbers["limit"] = limit
    for option, number in numbers.items():
        if number < 1:
            raise InvalidArgumentError(f"{option} = {number}: use at least 1")
    encoder = Characters() if tokenizer is None else tokenizer
    counts = _Counts()
    conversations: list[_Conversation] = []
    for number, row in enumerate(_items(path), 1):
        if limit is not None and number > limit:
            break
        counts.conversations += 1
        found = _conversation(row, format, counts)
        fitting = _fit(found, encoder, context_tokens, max_tokens, counts)
        if fitting.calls:
            conversations.append(fitting)
        if progress is not None:
            progress(number)
    if not conversations:
        notes = "; ".join(counts.notes(context_tokens, encoder.name)) or "it has no row"
        raise InvalidArgumentError(f"{path}: there is nothing to send: {notes}")
    requests = _requests(conversations, gap_ms, max_tokens, counts)
    options: dict[str, Any] = {
        "file": path.name,
        "tokenizer": encoder.name,
        "context_tokens": context_tokens,
        "max_tokens": max_tokens,
        "gap_ms": gap_ms,
        "limit": limit,
    }
    header = Header(
        name=name or path.name.split(".")[0],
        generator=f"import {format}",
        options=options,
        texts=_shared(requests),
        notes=tuple(counts.notes(context_tokens, encoder.name)),
    )
    return Workload(header, tuple(requests))


def _items(path: Path) -> Iterator[Row]:
    """Rows of JSON lines, or the items of one JSON list."""
    with open_text(path) as file:
        start = file.read(4096).lstrip("\ufeff \t\r\n")[:1]
        if start == "[":
            file.seek(0)
            yield from _list_items(path, file.read())
            return
    yield from json_rows(path)


def _list_items(path: Path, text: str) -> Iterator[Row]:
    """The items of a list, each with the line that it begins in."""
    decoder = json.JSONDecoder()
    at, line = text.index("[") + 1, 1
    counted = 0
    while True:
        while text[at : at + 1] in {" ", "\t", "\r", "\n", ","}:
            at += 1
        if text[at : at + 1] == "]":
            return
        line += text.count("\n", counted, at)
        counted = at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise TraceFormatError(f"{path}, line {line}: is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise TraceFormatError(f"{path}, line {line}: is {value!r:.60}, expected an object")
        yield Row(path, line, value)


def _conversation(row: Row, format: str, counts: _Counts) -> _Conversation:  # noqa: A002
    named = next((row.text(key) for key in ("session_id", "id", "user") if key in row), None)
    at_ms = time_ms(row)
    counts.timeless += at_ms is None
    found = _Conversation(named or f"row {row.line}", at_ms)
    if format == "requests":
        found.calls.append(_one_call(body(row), counts))
        return found
    messages = _sharegpt(row, counts) if format == "sharegpt" else _messages(row, counts)
    new: list[Message] = []
    for message, called in messages:
        asked = bool(new) and new[-1].role != "assistant"
        if called and asked:
            found.calls.append(_Call(tuple(new), message.content))
            new = []
        elif called and not new and found.calls:
            last = found.calls[-1]
            found.calls[-1] = replace(last, reply=f"{last.reply}\n{message.content}")
            counts.joined += 1
        else:
            new.append(message)
    counts.without_call += not found.calls
    return found


def _one_call(sent: Row, counts: _Counts) -> _Call:
    messages = [message for message, _ in _messages(sent, counts)]
    reply = messages.pop().content if messages and messages[-1].role == "assistant" else None
    if not messages or messages[-1].role == "assistant":
        raise sent.error("messages", "has no question: nothing is before the assistant's message")
    longest = next((key for key in ("max_completion_tokens", "max_tokens") if key in sent), None)
    return _Call(tuple(messages), reply, None if longest is None else max(1, sent.integer(longest)))


def _messages(row: Row, counts: _Counts) -> Iterator[tuple[Message, bool]]:
    """Messages of `role` and `content`, each with whether a model was called for it."""
    for message in row.rows("messages"):
        text = _whole(message, "content", "\n".join(content(message)))
        yield Message(_role(message, "role", counts), text), is_call(message)


def _sharegpt(row: Row, counts: _Counts) -> Iterator[tuple[Message, bool]]:
    field = "conversations" if "conversations" in row else "conversation"
    if field not in row and "items" in row:
        field = "items"
    for message in row.rows(field):
        role = _role(message, "from", counts)
        text = _whole(message, "value", message.text("value"))
        yield Message(role, text), role == "assistant"


def _whole(message: Row, field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise message.error(field, f"has half of a character at {problem.start}") from None
    return text


def _role(message: Row, field: str, counts: _Counts) -> str:
    given = message.text(field)
    role = _ROLES.get(given, given)
    if role not in ROLES:
        raise message.error(
            field, f"is {given!r}, expected one of {', '.join((*ROLES, *sorted(_ROLES)))}"
        )
    counts.tools += given in {"tool", "function", "observation"}
    return role


def _fit(
    found: _Conversation,
    tokenizer: ChatTokenizer,
    context_tokens: int,
    max_tokens: int,
    counts: _Counts,
) -> _Conversation:
    """The calls before the first one that is too long, each with the length of its answer."""
    fitting: list[_Call] = []
    whole: list[Message] = []
    for call in found.calls:
        longest = call.max_tokens or max_tokens
        if call.reply is not None:
            longest = max(1, len(tokenizer.text(call.reply)))
        whole.extend(call.messages)
        if len(tokenizer.prompt(whole)) + longest > context_tokens:
            if fitting:
                counts.cut += 1
                counts.dropped_calls += len(found.calls) - len(fitting)
            else:
                counts.too_long += 1
            break
        fitting.append(replace(call, max_tokens=longest))
        if call.reply is not None:
            whole.append(Message("assistant", call.reply))
    return _Conversation(found.name, found.at_ms, fitting)


def _requests(
    conversations: list[_Conversation], gap_ms: float, max_tokens: int, counts: _Counts
) -> list[WorkloadRequest]:
    times = [each.at_ms for each in conversations if each.at_ms is not None]
    timed = len(times) == len(conversations)
    if timed:
        counts.timeless = 0
        conversations = sorted(conversations, key=lambda each: each.at_ms or 0.0)
    names: Counter[str] = Counter()
    requests = []
    for number, conversation in enumerate(conversations):
        names[conversation.name] += 1
        again = names[conversation.name]
        session = conversation.name if again == 1 else f"{conversation.name} ({again})"
        arrival = (conversation.at_ms or 0.0) - min(times) if timed else None
        for turn, call in enumerate(conversation.calls):
            requests.append(
                WorkloadRequest(
                    id=f"{number:04}.{turn}",
                    klass="first" if turn == 0 else "later",
                    session=session,
                    turn=turn,
                    after=f"{number:04}.{turn - 1}" if turn else None,
                    append=turn > 0,
                    delay_ms=gap_ms if turn else 0.0,
                    arrival_ms=arrival if turn == 0 else None,
                    messages=call.messages,
                    max_tokens=call.max_tokens or max_tokens,
                    reply=call.reply,
                )
            )
    return requests


def _shared(requests: list[WorkloadRequest]) -> dict[str, str]:
    """Long texts that several requests have; the ones that save most."""
    uses = Counter(
        message.content
        for request in requests
        for message in request.messages
        if len(message.content) >= _SHARED_CHARS
    )
    often = [text for text, count in uses.items() if count > 1]
    often.sort(key=lambda text: -len(text) * (uses[text] - 1))
    return {f"text-{at}": text for at, text in enumerate(often[:_SHARED_TEXTS])}
