"""Which further fields of a request are taken, and which are refused.

OpenAI's requests have far more fields than this server can follow. One that would change the answer
is refused unless it says what the server does anyway; one that does not is taken and changes nothing;
one that nobody knows is refused, since it may be a misspelt one. A field that is null is as good as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvlab.serve.api.errors import UNSUPPORTED, refusal, shown

TAKEN = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
"""Fields that are taken with any value and change nothing."""


@dataclass(frozen=True)
class Refusal:
    """A field that is refused, but for the values that ask for nothing.

    Attributes:
        neutral: Those values.
        remedy: What to do instead.
    """

    neutral: tuple[Any, ...]
    remedy: str


_ONE = Refusal((1,), "send one request for each answer")
_SAMPLING = "the server samples with temperature, top_p and seed"
_TOOLS = "the server does not parse tool calls: describe tools in a message, and read the text"

_COMMON = {
    "cache_prompt": Refusal((True,), "start the server with --mode baseline to compare without"),
    "frequency_penalty": Refusal((0,), _SAMPLING),
    "logit_bias": Refusal(({},), _SAMPLING),
    "min_p": Refusal((0,), _SAMPLING),
    "min_tokens": Refusal((0,), "use ignore_eos with max_tokens for answers of a fixed length"),
    "n": _ONE,
    "presence_penalty": Refusal((0,), _SAMPLING),
    "repetition_penalty": Refusal((1,), _SAMPLING),
    "store": Refusal((False,), "keep the answer yourself: the server keeps KV, not texts"),
    "top_k": Refusal((0, -1), _SAMPLING),
}
CHAT = _COMMON | {
    "add_generation_prompt": Refusal((True,), "use /v1/completions for a prompt of your own"),
    "audio": Refusal((), "only text is generated"),
    "continue_final_message": Refusal((False,), "use /v1/completions for a prompt of your own"),
    "function_call": Refusal(("none",), _TOOLS),
    "functions": Refusal(([],), _TOOLS),
    "logprobs": Refusal((False,), "probabilities of tokens are not reported"),
    "modalities": Refusal((["text"],), "only text is generated"),
    "prediction": Refusal((), "leave it out"),
    "reasoning_effort": Refusal(("none",), "leave it out"),
    "response_format": Refusal(({"type": "text"},), "ask for JSON in a message, and check it"),
    "tool_choice": Refusal(("none", "auto"), _TOOLS),
    "tools": Refusal(([],), _TOOLS),
    "top_logprobs": Refusal((0,), "probabilities of tokens are not reported"),
    "verbosity": Refusal(("medium",), "leave it out"),
    "web_search_options": Refusal((), "leave it out"),
}
"""Refused fields of /v1/chat/completions."""

COMPLETIONS = _COMMON | {
    "best_of": _ONE,
    "echo": Refusal((False,), "the prompt is not repeated"),
    "logprobs": Refusal((), "probabilities of tokens are not reported"),
    "suffix": Refusal(("",), "text is only added behind the prompt"),
}
"""Refused fields of /v1/completions."""

MESSAGE = {
    "annotations": Refusal(([],), "leave it out"),
    "audio": Refusal((), "only text is read"),
    "function_call": Refusal((), _TOOLS),
    "refusal": Refusal(("",), "give it as the content"),
    "tool_calls": Refusal(([],), "give the call as the content of the assistant's message"),
}
"""Refused fields of a message."""


def check(given: Mapping[str, Any], refused: Mapping[str, Refusal]) -> None:
    """Refuses fields that would have to be followed and cannot be.

    Args:
        given: The fields that the schema does not name.
        refused: One of the tables above.

    Raises:
        PydanticCustomError: with the field in its context, as `param`.
    """
    for name, value in given.items():
        if value is None or name in TAKEN:
            continue
        rule = refused.get(name)
        if rule is None:
            message = f"unknown field {shown(name)}: leave it out, or look for a typing error"
            raise refusal(message, param=name, kind=UNSUPPORTED)
        if not any(_same(value, neutral) for neutral in rule.neutral):
            message = f"{name} = {shown(value)} is not supported: {rule.remedy}"
            raise refusal(message, param=name, kind=UNSUPPORTED)


def _same(value: object, neutral: object) -> bool:
    # In Python True == 1, in JSON it is not.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
