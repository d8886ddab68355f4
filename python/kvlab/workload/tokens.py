"""Prompts as token ids: what lengths and reuse of a workload are counted in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from kvlab.errors import ConfigError, ModelUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvlab.workload.schema import Message

__all__ = ["Characters", "ChatTokenizer", "ModelTokenizer", "tokenizer"]


class ChatTokenizer(Protocol):
    """What makes token ids of conversations."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    def prompt(self, messages: Sequence[Message]) -> Sequence[int]:
        """The ids of a conversation up to where the assistant's answer begins."""
        ...

    def text(self, text: str) -> Sequence[int]:
        """The ids of a text alone."""
        ...


class Characters:
    """Every 4 characters as a token, in a template like ChatML's: no model is needed."""

    name = "chars"

    def prompt(self, messages: Sequence[Message]) -> Sequence[int]:
        """The ids of a conversation up to where the assistant's answer begins."""
        parts = [f"<|{message.role}|>\n{message.content}<|end|>\n" for message in messages]
        return self.text("".join(parts) + "<|assistant|>\n")

    def text(self, text: str) -> Sequence[int]:
        """The ids of a text alone."""
        # Not before it is needed: it brings numpy.
        from kvlab.sim.formats.chat import tokenizer

        return tokenizer("chars")(text)


class ModelTokenizer:
    """A model's own tokenizer and chat template, as a server uses them.

    Args:
        name: What it is called in results.
        model_tokenizer: A tokenizer of transformers with a chat template.
    """

    def __init__(self, name: str, model_tokenizer: Any) -> None:
        self.name = name
        self._tokenizer = model_tokenizer

    def prompt(self, messages: Sequence[Message]) -> Sequence[int]:
        """The ids of a conversation up to where the assistant's answer begins.

        Raises:
            ConfigError: the template refuses it.
        """
        from jinja2 import TemplateError

        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            encoded = self._tokenizer.apply_chat_template(
                plain, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except (TemplateError, ValueError) as error:
            raise ConfigError(
                f"tokenizer {self.name}: its chat template refuses a conversation: {error}"
            ) from error
        ids: list[int] = encoded["input_ids"]
        return ids

    def text(self, text: str) -> Sequence[int]:
        """The ids of a text alone."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def tokenizer(name: str) -> ChatTokenizer:
    """A tokenizer by its name.

    Args:
        name: "chars" (see `Characters`), or a model as `kvlab.models.resolve` takes it.

    Raises:
        ModelUnavailableError: the model, or transformers, is not here.
    """
    if name == Characters.name:
        return Characters()
    from kvlab import models

    path = models.resolve(name)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelUnavailableError(
            f"tokenizer {name}: transformers is not installed: pip install 'kvlab[hf]', or use chars"
        ) from error
    from kvlab._quiet import quiet_transformers

    with quiet_transformers():
        return ModelTokenizer(name, AutoTokenizer.from_pretrained(path))
