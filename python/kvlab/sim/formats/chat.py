"""OpenAI-style chat as JSON lines, made into blocks with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from kvlab.errors import ConfigError, InvalidArgumentError, ModelUnavailableError
from kvlab.sim.formats._info import Source, TraceInfo
from kvlab.sim.formats._order import by_time
from kvlab.sim.formats.chain import chain_ids
from kvlab.sim.formats.messages import body, content, is_call, time_ms
from kvlab.sim.formats.rows import Row, json_rows
from kvlab.sim.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Tokenize", "read", "tokenizer"]

Tokenize = Callable[[str], Sequence[int]]

_PIECE = 4


def tokenizer(name: str) -> Tokenize:
    """A tokenizer by its name.

    Args:
        name: "chars", which takes 4 characters for a token and needs no model, or the path of a
            `tokenizer.json` (which needs the package tokenizers).

    Raises:
        ConfigError: the file cannot be read.
        ModelUnavailableError: the package tokenizers is missing.
    """
    if name == "chars":
        return _pieces
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ModelUnavailableError(
            f"tokenizer = {name}: pip install tokenizers, or use tokenizer=chars"
        ) from error
    try:
        loaded = Tokenizer.from_file(name)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(
            f"tokenizer = {name}: cannot be read ({error}); give a tokenizer.json, or chars"
        ) from error

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = loaded.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _pieces(text: str) -> Sequence[int]:
    """Every 4 characters as a number: 21 bits of a character's code, mixed down to 32."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    whole = len(codes) // _PIECE * _PIECE
    tokens: list[int] = _mixed(codes[:whole].reshape(-1, _PIECE)).tolist()
    if whole < len(codes):
        tokens.extend(_mixed(codes[whole:].reshape(1, -1)).tolist())
    return tokens


def _mixed(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number for each row; no step passes 2**53."""
    value = np.zeros(len(codes), dtype=np.uint64)
    for column in codes.T:
        value = (value * np.uint64(0x110000) + column) % np.uint64(0xFFFFFFFB)
    return value


def read(
    path: Path,
    *,
    block_tokens: int = 16,
    tokenizer: str | Tokenize = "chars",
    rows: Literal["requests", "sessions"] = "requests",
) -> Source:
    """Reads rows with `messages` of `role` and `content`, as sent to a chat endpoint.

    The messages stand in `messages`, or in `body.messages` as in batch files. They are written out in
    a row as `<|role|>`, name and calls of tools, content: not a model's own template, but alike
    where they are alike.
    A time in seconds is read from `timestamp`, `created`, `created_at` or `time`; rows without one
    arrive a second after the row before. A request's category is the row's `category`, or else the role of
    its last message, which tells tool loops from human turns. Only full blocks have ids.

    Args:
        path: JSON lines, plain or gzip.
        block_tokens: Tokens of a block.
        tokenizer: A name for `tokenizer`, or a function from text to token ids.
        rows: "requests": each row is one request. "sessions": each row is a whole conversation, in
            which every message of the assistant was one call, whose prompt is all before it; messages
            with `is_demo` are part of the prompt only.

    Raises:
        InvalidArgumentError: `block_tokens` is less than 1, or `rows` is neither.
        TraceFormatError: a row that is not like that; at iteration.
    """
    if block_tokens < 1:
        raise InvalidArgumentError(f"block_tokens = {block_tokens}: a block has at least 1 token")
    if rows not in ("requests", "sessions"):
        raise InvalidArgumentError(f"rows = {rows}: use requests or sessions")
    encode = _named(tokenizer) if isinstance(tokenizer, str) else tokenizer
    info = TraceInfo(name=path.name, block_tokens=block_tokens)
    if tokenizer == "chars":
        info.notes.append("tokens are pieces of 4 characters, not those of a model")
    requests = _requests(path, info, encode, whole=rows == "sessions")
    return Source(info, by_time(requests, info))


_named = tokenizer


def _requests(path: Path, info: TraceInfo, encode: Tokenize, *, whole: bool) -> Iterator[Request]:
    clock = -1000.0
    timeless = 0
    for number, row in enumerate(json_rows(path), 1):
        messages = list(body(row).rows("messages"))
        time = time_ms(row)
        timeless += time is None
        clock = clock + 1000 if time is None else time
        name = next((row.text(key) for key in ("session_id", "id", "user") if key in row), None)
        session = name or (f"row {number}" if whole else None)
        category = row.text("category", "")
        ends = _calls(messages) if whole else [len(messages)]
        tokens: list[int] = []
        done = 0
        for end in ends:
            for message in messages[done:end]:
                tokens.extend(encode(_text(message)))
            done = end
            answer = encode(_text(messages[end])) if end < len(messages) else ()
            yield Request(
                at_ms=clock,
                blocks=chain_ids(tokens, info.block_tokens),
                tokens=len(tokens),
                output_tokens=len(answer),
                session=session,
                category=category or (messages[end - 1].text("role") if end else ""),
            )
    if timeless:
        info.notes.append(
            f"{timeless} rows have no time: each arrives a second after the one before"
        )
    info.notes.append("only full blocks have ids: the rest of each prompt always misses")


def _calls(messages: list[Row]) -> list[int]:
    """Where the model was called."""
    return [index for index, message in enumerate(messages) if is_call(message)]


def _text(message: Row) -> str:
    return "\n".join([f"<|{message.text('role')}|>", *content(message)]) + "\n"
