"""The demo's prompt: a realistic agent prefix and two user turns, kept as text beside this file."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import torch

from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def prompt(tokenizer: PreTrainedTokenizerBase, prefix_tokens: int, turn: int) -> Tensor:
    """Build a prompt: the first tokens of the agent prefix and a user turn.

    Args:
        tokenizer: The model's.
        prefix_tokens: Tokens of the prefix.
        turn: 1 or 2.

    Returns:
        ``[1, prefix_tokens + turn]`` token ids.

    Raises:
        InvalidArgumentError: The prefix text has fewer tokens than that.
    """
    prefix: list[int] = tokenizer(_text("agent_prefix.md"))["input_ids"]
    if len(prefix) < prefix_tokens:
        message = (
            f"--tokens {prefix_tokens}: the agent prefix has {len(prefix)} tokens "
            "for this model's tokenizer"
        )
        raise InvalidArgumentError(message)
    text = "\n\n" + _text(f"turn_{turn}.md") + "\n\n"
    question: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([prefix[:prefix_tokens] + question])


def _text(name: str) -> str:
    file = resources.files("kvlab.demo").joinpath("prompts", name)
    return file.read_text(encoding="utf-8").strip()
