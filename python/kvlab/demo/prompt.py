"""The demo's prompt: a realistic agent prefix and two user turns, kept as text beside this file."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER = "kvlab-system-message", "kvlab-user-message"


def prompt(tokenizer: PreTrainedTokenizerBase, prefix_tokens: int, turn: int) -> Tensor:
    """Build a prompt: the first tokens of a system message with the agent prefix, and a user turn.

    The tokenizer's chat template frames both, so that an instruction-tuned model answers. Without a
    template that knows a
    system role they simply follow one another.

    Args:
        tokenizer: The model's.
        prefix_tokens: Tokens of the prefix, the template's head included.
        turn: 1 or 2.

    Returns:
        ``[1, prefix_tokens + turn]`` token ids.

    Raises:
        InvalidArgumentError: The prefix text has fewer tokens than that.
    """
    frame = _chat_frame(tokenizer)
    head, between, tail = frame or ("", "\n\n", "\n\n")
    # A template writes the special tokens out.
    prefix: list[int] = tokenizer(
        head + _text("agent_prefix.md"), add_special_tokens=frame is None
    )["input_ids"]
    if len(prefix) < prefix_tokens:
        message = (
            f"--tokens {prefix_tokens}: the agent prefix has {len(prefix)} tokens "
            "for this model's tokenizer"
        )
        raise InvalidArgumentError(message)
    text = between + _text(f"turn_{turn}.md") + tail
    question: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([prefix[:prefix_tokens] + question])


def _chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str] | None:
    """What a chat template writes before the system message, between it and the user's, and after that."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
    try:
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except TemplateError:  # raised by templates that know no system role
        return None
    if text.count(_SYSTEM) != 1 or text.count(_USER) != 1:
        return None
    head, rest = text.split(_SYSTEM)
    if _USER not in rest:
        return None
    between, tail = rest.split(_USER)
    return head, between, tail


def _text(name: str) -> str:
    file = resources.files("kvlab.demo").joinpath("prompts", name)
    return file.read_text(encoding="utf-8").strip()
