"""The bodies of requests.

Types are strict: `"5"` is no number. What a schema does not name is judged by `kvlab.serve.api.fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kvlab.serve.api import fields
from kvlab.serve.api.errors import UNSUPPORTED, refusal, shown

MAX_STOPS = 4
MAX_SALT = 256
_INT64 = 2**63

Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[int], Field(fail_fast=True)]


class Body(BaseModel):
    """What all bodies share."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)
    refused: ClassVar[Mapping[str, fields.Refusal]] = {}

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        fields.check(self.model_extra or {}, self.refused)
        return self


class Message(Body):
    """A turn of a conversation.

    Attributes:
        role: Who speaks.
        content: The text; parts of type `text` are joined by line ends.
        name: Given to the chat template.
        tool_call_id: Given to the chat template.
    """

    refused = fields.MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        return "\n".join(_text_of(part, index) for index, part in enumerate(content))


# One error is told, so no more are looked for: a list of a million wrong messages costs no more than one.
Conversation = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class StreamOptions(Body):
    """How a stream is to look.

    Attributes:
        include_usage: A last chunk without choices has the usage.
    """

    refused: ClassVar[Mapping[str, fields.Refusal]] = {
        "include_obfuscation": fields.Refusal((False,), "leave it out")
    }

    include_usage: bool | None = None


class Generation(Body):
    """What asks for an answer.

    Attributes:
        model: The model's name; the one that is served.
        max_tokens: The most tokens of the answer.
        temperature: 0 for greedy; 1 by default.
        top_p: The probability mass to draw from; 1 by default.
        seed: Makes a drawn answer the same again.
        stop: Up to four texts that end the answer; they are not part of it.
        stream: Whether the answer comes as it is made.
        stream_options: How.
        cache_salt: Requests of different salts share no cache.
        ignore_eos: Go on to `max_tokens` where the model would end.
    """

    model: Text
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    stop: Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_SALT)] | None = None
    ignore_eos: bool | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _streamed(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options is for streams: send stream = true with it, or leave it out"
            raise refusal(message, param="stream_options")
        return self

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(Generation):
    """The body of /v1/chat/completions.

    Attributes:
        messages: The conversation.
        max_completion_tokens: The newer name of `max_tokens`.
    """

    refused = fields.CHAT

    messages: Conversation
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        one, other = self.max_tokens, self.max_completion_tokens
        if one is not None and other is not None and one != other:
            message = f"max_tokens = {one} and max_completion_tokens = {other} differ: give one"
            raise refusal(message, param="max_completion_tokens")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer, if it says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Generation):
    """The body of /v1/completions.

    Attributes:
        prompt: A text or token ids; a list with one of them is taken, too.
    """

    refused = fields.COMPLETIONS

    prompt: str | list[int]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        return _single(prompt)


class TokenizeRequest(Body):
    """The body of /tokenize: a prompt, or messages.

    Attributes:
        model: The model's name; the one that is served.
        prompt: A text.
        messages: A conversation, for the chat template.
        add_special_tokens: Whether the tokenizer adds its own to a prompt.
        add_generation_prompt: Whether the template begins the answer.
    """

    model: Text | None = None
    prompt: str | None = None
    messages: Conversation | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refusal("give either prompt or messages", param="prompt")
        return self


class DetokenizeRequest(Body):
    """The body of /detokenize.

    Attributes:
        model: The model's name; the one that is served.
        tokens: Token ids.
    """

    model: Text | None = None
    tokens: Ids


def _text_of(part: Any, index: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        given = shown(part if kind is None else kind)
        message = f"content[{index}] is of type {given}: only parts of type 'text' are read"
        raise refusal(message, kind=UNSUPPORTED)
    text = part.get("text")
    if not isinstance(text, str):
        raise refusal(f"content[{index}].text should be a string, got {shown(text)}")
    return text


def _single(prompt: Any) -> Any:
    """The only prompt of a list of prompts."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            message = f"{len(prompt)} prompts are too many for one request: send one after another"
            raise refusal(message, kind=UNSUPPORTED)
        prompt = prompt[0]
    if not isinstance(prompt, str) and not (
        isinstance(prompt, list) and all(type(token) is int for token in prompt)
    ):
        raise refusal(f"prompt should be a text or a list of token ids, got {shown(prompt)}")
    return prompt
