"""From messages and texts to token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import numpy as np

from kvlab.serve.api.errors import ApiError, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from kvlab.serve.api.schemas import Message

_Result = TypeVar("_Result")

_ROLES = {"developer": "system"}
"""Roles that templates know by another name."""


class Prompts:
    """A tokenizer that does not hold up the event loop: it works in a thread of its own.

    Args:
        tokenizer: The model's.
        vocabulary: How many ids the model knows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        self._tokenizer: Any = tokenizer
        self._vocabulary = vocabulary
        self._thread = ThreadPoolExecutor(1, "kvlab-tokenizer")

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    async def chat(
        self, messages: Sequence[Message], *, generate: bool = True
    ) -> NDArray[np.int64]:
        """The ids `[tokens]` of a conversation in the model's chat template.

        Args:
            messages: The conversation.
            generate: Whether the template begins the answer.

        Raises:
            ApiError: the model has no template, or its template refuses the conversation.
        """
        turns = [_turn(message) for message in messages]

        def encode() -> NDArray[np.int64]:
            if not self._tokenizer.chat_template:
                message = "the model has no chat template: send a prompt to /v1/completions"
                raise ApiError(400, message, param="messages", code="no_chat_template")
            try:
                encoded = self._tokenizer.apply_chat_template(
                    turns, add_generation_prompt=generate, return_dict=True
                )
            except jinja2.TemplateError as error:
                message = f"the model's chat template refuses the messages: {error}"
                raise ApiError(400, message, param="messages", code="invalid_value") from error
            return np.asarray(encoded["input_ids"], dtype=np.int64).reshape(-1)

        return await self._run(encode)

    async def prompt(
        self, prompt: str | Sequence[int], *, special: bool = True
    ) -> NDArray[np.int64]:
        """The ids `[tokens]` of a text; ids are taken as they are.

        Args:
            prompt: The text, or ids.
            special: Whether the tokenizer adds its own to a text.

        Raises:
            ApiError: an id that the model does not know.
        """
        if not isinstance(prompt, str):
            return self._checked(prompt, "prompt")
        encoded = await self._run(lambda: self._tokenizer(prompt, add_special_tokens=special))
        return np.asarray(encoded["input_ids"], dtype=np.int64).reshape(-1)

    async def text(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones included.

        Raises:
            ApiError: an id that the model does not know.
        """
        ids = self._checked(tokens, "tokens")
        text: str = await self._run(lambda: self._tokenizer.decode(ids))
        return text

    def _checked(self, ids: Sequence[int], param: str) -> NDArray[np.int64]:
        for place, token in enumerate(ids):
            if not 0 <= token < self._vocabulary:
                known = f"0 to {self._vocabulary - 1}"
                message = f"{param}[{place}] = {shown(token)} is no token id of the model: {known}"
                raise ApiError(400, message, param=param, code="invalid_value")
        return np.asarray(ids, dtype=np.int64)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _turn(message: Message) -> dict[str, str]:
    turn = message.model_dump(
        include={"role", "content", "name", "tool_call_id"}, exclude_none=True
    )
    turn["role"] = _ROLES.get(turn["role"], turn["role"])
    return turn
