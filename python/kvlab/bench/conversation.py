"""The prompts of a run: a request's messages behind the conversation that it goes on from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlab.workload.schema import Message

if TYPE_CHECKING:
    from kvlab.workload.schema import Workload, WorkloadRequest

__all__ = ["Conversations", "Sent"]

_PIECE = 64


@dataclass(frozen=True, slots=True)
class Sent:
    """What is sent for a request.

    Attributes:
        messages: The whole prompt.
        shared: The part of its text, 0 to 1, that begins it and began an earlier prompt of the same salt, too.
    """

    messages: tuple[Message, ...]
    shared: float


class Conversations:
    """What was said so far in a run.

    Args:
        workload: What is run.
        recorded: Whether recorded replies stand for answers where there are some.
    """

    def __init__(self, workload: Workload, *, recorded: bool) -> None:
        self._recorded = recorded
        self._wanted = {
            request.after for request in workload.requests if request.append and request.after
        }
        self._whole: dict[str, tuple[Message, ...]] = {}
        self._seen: set[bytes] = set()

    def prompt(self, request: WorkloadRequest) -> Sent:
        """The whole prompt of a request, of which what it goes on from was answered."""
        before = self._whole[request.after] if request.append and request.after else ()
        messages = (*before, *request.messages)
        if request.id in self._wanted:
            self._whole[request.id] = messages
        return Sent(messages, self._share(messages, request.salt))

    def answered(self, request: WorkloadRequest, text: str) -> None:
        """Takes up what the model said."""
        if request.id in self._wanted:
            said = request.reply if self._recorded and request.reply is not None else text
            self._whole[request.id] = (
                *self._whole[request.id],
                Message("assistant", said),
            )

    def _share(self, messages: tuple[Message, ...], salt: str) -> float:
        text = "".join(f"\x1e{message.role}\x1f{message.content}" for message in messages).encode()
        chain, shared, leading = salt.encode(), 0, True
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            chain = hashlib.blake2b(chain + b"\x00" + piece, digest_size=16).digest()
            leading = leading and chain in self._seen
            if leading:
                shared += len(piece)
            self._seen.add(chain)
        return shared / len(text)
