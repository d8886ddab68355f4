"""The bodies of answers, whole and in pieces, for chats and for plain completions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kvlab import __version__

if TYPE_CHECKING:
    from kvlab.serve.engine.request import Finished, FinishReason, Timings, Usage

FINGERPRINT = f"kvlab-{__version__}"


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`, with the cached tokens by source beside their sum.

    `cached_tokens` counts what was truly restored; it is there when it is 0, too.
    """
    cached = usage.cached
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": cached.total,
            "cached_tokens_by_source": {
                "l1": cached.l1,
                "l2": cached.l2,
                "l3": cached.l3,
                "remote": cached.remote,
            },
        },
    }


def timings_body(usage: Usage, timings: Timings) -> dict[str, Any]:
    """llama.cpp's `timings`: milliseconds, tokens, tokens a second; and the time in the queue.

    `prompt_n` are the prompt tokens that were computed, `cache_n` those that were not. A rate over no time is
    0. `predicted_ms` runs from the first token to the last, so it times one token fewer than `predicted_n`.
    """
    computed = usage.prompt_tokens - usage.cached.total
    prompt_ms, predicted_ms = timings.prompt_s * 1e3, timings.predicted_s * 1e3
    steps = max(timings.tokens - 1, 0)
    return {
        "cache_n": usage.cached.total,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, computed),
        "prompt_per_second": _ratio(computed, timings.prompt_s),
        "predicted_n": timings.tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, steps),
        "predicted_per_second": _ratio(steps, timings.predicted_s),
        "queued_ms": timings.queued_s * 1e3,
        "first_token_ms": timings.first_token_s * 1e3,
    }


class Reply:
    """What is the same in all pieces of one answer.

    Args:
        id: The answer's.
        model: The name of the model.
        chat: Whether it is a chat's, or a plain completion's.
        with_usage: Whether a stream ends with its usage.
    """

    def __init__(self, id: str, model: str, *, chat: bool, with_usage: bool = False) -> None:  # noqa: A002
        self.id = id
        self.model = model
        self.chat = chat
        self.with_usage = with_usage
        self._created = int(time.time())

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """The answer in one piece."""
        kind = "chat.completion" if self.chat else "text_completion"
        choice: dict[str, Any] = {"index": 0}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": end.reason}
        return self._head(kind, [choice]) | {
            "usage": usage_body(end.usage),
            "timings": timings_body(end.usage, end.timings),
        }

    def opening(self) -> list[dict[str, Any]]:
        """What a stream begins with: in chats the role."""
        return [self._chunk({"role": "assistant", "content": ""})] if self.chat else []

    def piece(self, text: str) -> dict[str, Any]:
        """A further piece of text."""
        return self._chunk({"content": text})

    def closing(self, end: Finished) -> list[dict[str, Any]]:
        """What a stream ends with: the reason, and the usage if it was asked for; timings in the last."""
        chunks = [self._chunk({}, end.reason)]
        if self.with_usage:
            usage = {"usage": usage_body(end.usage)}
            chunks.append(self._head(self._chunk_kind, []) | usage)
        chunks[-1]["timings"] = timings_body(end.usage, end.timings)
        return chunks

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, delta: dict[str, str], reason: FinishReason | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        choice |= {"logprobs": None, "finish_reason": reason}
        chunk = self._head(self._chunk_kind, [choice])
        return chunk | {"usage": None} if self.with_usage else chunk

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }


def _ratio(amount: float, over: float) -> float:
    return amount / over if over > 0 else 0.0
