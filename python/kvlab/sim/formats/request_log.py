"""Request logs of vLLM and SGLang that have the prompts' token ids."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kvlab.errors import InvalidArgumentError, TraceFormatError
from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time
from kvlab.sim.formats.chain import chain_ids
from kvlab.sim.formats.rows import Row, open_text
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["read_sglang", "read_vllm"]

_VLLM = re.compile(
    r"(?P<time>\d\d-\d\d \d\d:\d\d:\d\d)\b.*?Received request (?P<id>[^:\s]+): .*"
    r"prompt_token_ids: (?P<tokens>\[[^\]]*\])"
)
_SGLANG = re.compile(
    r"\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[^\]]*\] Receive: obj=.*?rid='(?P<id>[^']*)'.*"
    r"input_ids=(?P<tokens>\[[^\]]*\])"
)
_TOKENS = ("prompt_token_ids", "input_ids", "token_ids")
_CATEGORIES = ("category", "lora_name", "lora_path")
_TIMES = ("arrival_time", "timestamp", "time", "ts")


def read_vllm(path: Path, *, block_tokens: int = 16) -> Source:
    """Reads vLLM's log with `--enable-log-requests`, or JSON lines with `prompt_token_ids`.

    A log line is `... MM-DD hh:mm:ss ... Received request ID: ... prompt_token_ids: [...]`; lines that
    tell of anything else are passed over. A JSON row has `prompt_token_ids` (or `input_ids`,
    `token_ids`) and a time: `arrival_time` or `timestamp`, in seconds or as a date; perhaps `session_id`,
    and as its category `category`, `lora_name` or `lora_path`.

    Args:
        path: Plain or gzip.
        block_tokens: Tokens of a block; only full blocks get an id, as in the engine.

    Raises:
        InvalidArgumentError: `block_tokens` is less than 1.
        TraceFormatError: a row without token ids or time, or no request at all; at iteration.
    """
    return _read(path, block_tokens, _VLLM, "%m-%d %H:%M:%S")


def read_sglang(path: Path, *, block_tokens: int = 64) -> Source:
    """Reads SGLang's log with `--log-requests` at a level that has inputs, as text or as JSON.

    A log line is `[YYYY-MM-DD hh:mm:ss ...] Receive: obj=GenerateReqInput(rid='...', ...
    input_ids=[...], ...)`; with `--log-requests-format json` it is a row whose `event` is
    "request.received" and whose `obj` has `input_ids`. What was sent as text only has no token ids:
    such requests are counted in the notes and left out.

    Args:
        path: Plain or gzip.
        block_tokens: Tokens of a block; only full blocks get an id.

    Raises:
        InvalidArgumentError: `block_tokens` is less than 1.
        TraceFormatError: a row that is not like that, or no request at all; at iteration.
    """
    return _read(path, block_tokens, _SGLANG, "%Y-%m-%d %H:%M:%S")


def _read(path: Path, block_tokens: int, line: re.Pattern[str], date: str) -> Source:
    if block_tokens < 1:
        raise InvalidArgumentError(f"block_tokens = {block_tokens}: a block has at least 1 token")
    info = TraceInfo(name=path.name, block_tokens=block_tokens)
    return Source(info, by_time(_requests(path, info, line, date), info))


def _requests(path: Path, info: TraceInfo, line: re.Pattern[str], date: str) -> Iterator[Request]:
    requests = without = other = 0
    for row in _rows(path, line):
        if row is None:
            other += 1
            continue
        named = next((name for name in _TOKENS if name in row), None)
        if named is None:
            if "text" in row or "prompt" in row:
                without += 1
                continue
            raise row.error(
                _TOKENS[0], "is missing; log token ids, or use format chat with a tokenizer"
            )
        tokens = row.tokens(named)
        requests += 1
        yield Request(
            at_ms=_time(row, date),
            blocks=chain_ids(tokens, info.block_tokens),
            tokens=len(tokens),
            output_tokens=row.integer("output_tokens", 0),
            session=row.text("session_id") if "session_id" in row else None,
            category=next((row.text(name) for name in _CATEGORIES if name in row), ""),
        )
    if not requests:
        raise TraceFormatError(
            f"{path}: {other} lines, but none of a request with its token ids ({without} with text only)"
        )
    if without:
        info.notes.append(f"{without} requests have their text only, no token ids: left out")
    if other:
        info.notes.append(f"{other} lines tell of something else than a request")
    info.notes.append("only full blocks have ids: the rest of each prompt always misses")


def _rows(path: Path, pattern: re.Pattern[str]) -> Iterator[Row | None]:
    """The requests of a log, each with its fields; None for a line about anything else."""
    with open_text(path) as file:
        for number, text in enumerate(file, 1):
            if text.startswith("{"):
                yield _json_row(path, number, text)
                continue
            found = pattern.search(text)
            if found is None:
                yield None
                continue
            fields: dict[str, Any] = {"time": found["time"], "prompt_token_ids": None}
            try:
                fields["prompt_token_ids"] = json.loads(found["tokens"])
            except ValueError:
                shown = found["tokens"][:60]
                raise TraceFormatError(
                    f"{path}, line {number}, token ids: {shown} is no list of integers; was it cut short?"
                ) from None
            yield Row(path, number, fields)


def _json_row(path: Path, number: int, text: str) -> Row | None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"{path}, line {number}: is no JSON: {error}") from None
    row = Row(path, number, fields)
    if "event" in row and row.text("event") != "request.received":
        return None
    if "obj" not in row:
        return row
    inner = row.value("obj")
    if not isinstance(inner, dict):
        raise row.error("obj", "is no object")
    return Row(path, number, {**fields, **inner})


def _time(row: Row, date: str) -> float:
    named = next((name for name in _TIMES if name in row), None)
    if named is None:
        raise row.error(_TIMES[0], "is missing: a request needs a time")
    value = row.value(named)
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        for parse in (datetime.fromisoformat, lambda text: datetime.strptime(text, date)):  # noqa: DTZ007
            try:
                parsed = parse(value)
            except ValueError:
                continue
            return parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp() * 1000
        raise row.error(named, f"is {value!r}, expected seconds or a date")
    return row.number(named) * 1000
