"""Workloads as traces of requests, for the policy lab and other simulators."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab.errors import InvalidArgumentError
from kvlab.sim.formats.chain import chain_ids
from kvlab.workload.reuse import prompts
from kvlab.workload.schedule import ANSWER_TOKEN_MS, answer_ms, starts

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from kvlab.workload.schema import Workload
    from kvlab.workload.tokens import ChatTokenizer

__all__ = ["trace_rows", "write_trace"]


def trace_rows(
    workload: Workload,
    tokenizer: ChatTokenizer,
    *,
    block_tokens: int = 16,
    token_ms: float = ANSWER_TOKEN_MS,
) -> Iterator[dict[str, Any]]:
    """The requests in the layout of Mooncake's traces, with the size of blocks, session and class.

    Prompts contain the recorded replies. An id stands for a block and all before it, salt included; the
    last block of a prompt may be partial. Ids are numbered from 0 as they appear.

    Args:
        workload: What is sent.
        tokenizer: What makes ids of prompts.
        block_tokens: Tokens of a block.
        token_ms: What a token of an answer takes, from which follows when the next request starts.

    Raises:
        InvalidArgumentError: `block_tokens` below 1, or a time below 0.
    """
    if block_tokens < 1:
        raise InvalidArgumentError(f"block_tokens = {block_tokens}: a block has at least 1 token")
    if not token_ms >= 0:
        raise InvalidArgumentError(f"token_ms = {token_ms}: use milliseconds from 0 on")
    begun = dict(
        zip(
            workload.by_id(),
            starts(workload.requests, partial(answer_ms, token_ms=token_ms)),
            strict=True,
        )
    )
    order = sorted(begun, key=begun.__getitem__)
    numbers: dict[object, int] = {}
    for request, tokens in prompts(workload, tokenizer, order=order):
        keys: list[object] = list(chain_ids(tokens, block_tokens, request.salt.encode()))
        if rest := tuple(tokens[len(keys) * block_tokens :]):
            keys.append((keys[-1] if keys else request.salt, rest))
        answer = request.max_tokens
        if request.reply is not None:
            answer = min(answer, len(tokenizer.text(request.reply)))
        yield {
            "timestamp": round(begun[request.id]),
            "input_length": len(tokens),
            "output_length": answer,
            "hash_ids": [numbers.setdefault(key, len(numbers)) for key in keys],
            "block_size": block_tokens,
            "session_id": request.session,
            "type": request.klass,
        }


def write_trace(
    workload: Workload,
    path: str | os.PathLike[str],
    tokenizer: ChatTokenizer,
    *,
    block_tokens: int = 16,
    token_ms: float = ANSWER_TOKEN_MS,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes `trace_rows` as JSON lines; `kvlab sim run --format mooncake` reads them.

    Returns:
        The number of distinct blocks.

    Raises:
        InvalidArgumentError: as `trace_rows`; nothing is written.
        OSError: the file cannot be written.
    """
    rows = trace_rows(workload, tokenizer, block_tokens=block_tokens, token_ms=token_ms)
    lines = []
    blocks = 0
    for count, row in enumerate(rows, 1):
        blocks = max(blocks, max(row["hash_ids"], default=-1) + 1)
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
        if progress is not None:
            progress(count)
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")
    return blocks
