"""From token ids to text that can be sent: whole characters only, and nothing behind a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes ids one by one; what it gave is never taken back.

    A token may end in the middle of a character, which decodes to U+FFFD until the rest of it comes, so
    trailing U+FFFD are held back. Ids are decoded with those of the text before them, because some
    tokenizers give the first of a text no leading space; the window moves on, so a token costs the
    same however long the answer is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Decode with ``tokenizer``, special tokens left out."""
        self._tokenizer: Any = tokenizer
        self._before: list[int] = []  # context: their text was given
        self._pending: list[int] = []
        self._before_text = ""
        self._given = 0  # characters of the text of `_pending` that were given

    def push(self, token: int) -> str:
        """Take one more id; give the text that is certain now."""
        self._pending.append(token)
        text = self._text()
        certain = text.rstrip(_REPLACEMENT)
        new = certain[self._given :]
        self._given = max(self._given, len(certain))
        if text == certain and text:
            self._before, self._pending = self._pending, []
            self._before_text = self._decode(self._before)
            self._given = 0
        return new

    def flush(self) -> str:
        """Give what was held back, at the end of the answer."""
        text = self._text() if self._pending else ""
        new = text[self._given :]
        self._given = len(text)
        return new

    def _text(self) -> str:
        return self._decode(self._before + self._pending)[len(self._before_text) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class StopStrings:
    """Cuts a text that comes in pieces at the stop string that is complete first.

    Of several that end at the same character, the longest counts. The result does not depend on how
    the text is cut into pieces.

    Attributes:
        stopped: Whether a stop string was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for any of ``stops``, none of them empty."""
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str, *, last: bool = False) -> str:
        """Take a piece; give what can be no part of a stop string any more, with the ``last`` one all."""
        if not self._stops:
            return text
        text = self._held + text
        cut = self._first(text)
        if cut is not None:
            self.stopped = True
            return text[:cut]
        give = len(text) if last else len(text) - self._possible(text)
        self._held = text[give:]
        return text[:give]

    def _first(self, text: str) -> int | None:
        found = [
            (start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0
        ]
        return min(found)[1] if found else None

    def _possible(self, text: str) -> int:
        """Characters at the end of ``text`` with which a stop string may begin."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        for length in range(longest, 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
