"""`PromptIndex`: the prompts seen lately, in memory."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from kvlab._tokens import token_ids
from kvlab.errors import ConfigError
from kvlab.near_misses.minhash import PERMUTATIONS, sketch, window_hashes
from kvlab.near_misses.overlap import Decoder, NearMiss, common_prefix, compare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sketch = NDArray[np.uint64]

_CANDIDATES = 4
"""Prompts that are compared to the token, by either way of finding them, for each that is asked for."""


class IndexStats(TypedDict):
    """What a `PromptIndex` holds and has done.

    Attributes:
        prompts: Prompts held.
        tokens: Their tokens.
        added: Prompts taken in, so far.
        covered: Prompts not held, or no longer, because another one begins with all of their tokens.
        evicted: Prompts forgotten for others.
        too_long: Prompts of more tokens than the index may hold.
    """

    prompts: int
    tokens: int
    added: int
    covered: int
    evicted: int
    too_long: int


@dataclass(frozen=True, slots=True)
class _Prompt:
    label: str
    slot: int


class PromptIndex:
    """Remembers prompts and finds those that nearly equal another one.

    The prompts that share the longest beginning are the neighbours in sorted order; those that share text elsewhere are
    proposed by MinHash sketches (`kvlab.near_misses.minhash`). Both are then compared token by token. A prompt
    that another one begins with is not held beside it, so a conversation is held once, as its last turn. What was
    added or added again least lately is forgotten first. Safe from many threads.

    One index is for prompts that may know of each other: give each tenant its own.

    Args:
        max_prompts: The most prompts held.
        max_tokens: The most tokens of them together, 4 bytes each; a sketch takes 512 bytes on top.
        window: Tokens in a row that have to be equal to count as shared text.

    Raises:
        ConfigError: A size below 1.
    """

    def __init__(
        self, *, max_prompts: int = 1024, max_tokens: int = 1 << 22, window: int = 16
    ) -> None:
        for name, value in (
            ("max_prompts", max_prompts),
            ("max_tokens", max_tokens),
            ("window", window),
        ):
            if value < 1:
                raise ConfigError(f"{name} = {value} is not at least 1")
        self.max_prompts = max_prompts
        self.max_tokens = max_tokens
        self.window = window
        self._lock = threading.Lock()
        # Big-endian, so that the order of the bytes is that of the tokens.
        self._sorted: list[bytes] = []
        self._prompts: OrderedDict[bytes, _Prompt] = OrderedDict()
        self._sketches: Sketch = np.zeros((0, PERMUTATIONS), dtype=np.uint64)
        self._of_slot: list[bytes | None] = []
        self._free: list[int] = []
        self._stats = IndexStats(prompts=0, tokens=0, added=0, covered=0, evicted=0, too_long=0)

    def emptied(self) -> PromptIndex:
        """Make a new index with the same bounds and nothing in it."""
        return PromptIndex(
            max_prompts=self.max_prompts, max_tokens=self.max_tokens, window=self.window
        )

    def add(self, prompt: Any, *, label: str = "") -> None:
        """Remember a prompt.

        Args:
            prompt: ``[tokens]`` or ``[1, tokens]``, integers, at least one.
            label: What a near miss calls it, such as a request's id.

        Raises:
            InvalidArgumentError: No row of token ids.
        """
        ids = token_ids(prompt)
        if len(ids) > self.max_tokens:
            with self._lock:
                self._stats["too_long"] += 1
            return
        key = _key_of(ids)
        if self._touch(key):
            return
        found = sketch(window_hashes(ids, self.window))
        with self._lock:
            if not self._cover(key):
                self._insert(key, label, found)

    def near_misses(
        self,
        prompt: Any,
        *,
        limit: int = 3,
        at_least: int = 32,
        tokenizer: Decoder | None = None,
    ) -> list[NearMiss]:
        """Find remembered prompts that share much with a prompt and yet part from it.

        A prompt that goes on where the other ends, or ends before it, is a hit and no near miss.

        Args:
            prompt: As for `add`; it is not remembered by this.
            limit: The most that are given back.
            at_least: Tokens shared, at the beginning and elsewhere together, for a prompt to count.
            tokenizer: Turns tokens into the text of the answer.

        Returns:
            Those that lose the most first, then those with the longest common beginning.

        Raises:
            InvalidArgumentError: No row of token ids.
        """
        ids = token_ids(prompt)
        own = sketch(window_hashes(ids, self.window))
        with self._lock:
            keys = self._neighbours(_key_of(ids), _CANDIDATES * limit)
            likeness = self._likeness(own)
            alike = [key for key, share in likeness.items() if share > 0]
            keys = list(dict.fromkeys([*keys, *alike[: _CANDIDATES * limit]]))
            labels = [self._prompts[key].label for key in keys]
        found = [
            compare(
                ids,
                _ids_of(key),
                window=self.window,
                label=label,
                similarity=likeness[key],
                tokenizer=tokenizer,
            )
            for key, label in zip(keys, labels, strict=True)
        ]
        found = [
            miss
            for miss in found
            if miss.shared_prefix < min(len(ids), miss.tokens)
            and miss.shared_prefix + miss.lost_tokens >= at_least
        ]
        found.sort(key=lambda miss: (-miss.lost_tokens, -miss.shared_prefix))
        return found[:limit]

    def stats(self) -> IndexStats:
        """What is held, and what was done so far."""
        with self._lock:
            return self._stats.copy()

    def validate(self) -> None:
        """Check the parts of the index against each other.

        Raises:
            AssertionError: With what is wrong.
        """
        with self._lock:
            if self._sorted != sorted(self._prompts):
                raise AssertionError("the sorted keys are not those of the prompts")
            neighbours = zip(self._sorted, self._sorted[1:], strict=False)
            if any(after.startswith(before) for before, after in neighbours):
                raise AssertionError("a prompt is held beside one that begins with it")
            slots = {prompt.slot: key for key, prompt in self._prompts.items()}
            held = {slot: key for slot, key in enumerate(self._of_slot) if key is not None}
            if slots != held or set(self._free) != set(range(len(self._of_slot))) - set(slots):
                raise AssertionError("the slots of the sketches are not those of the prompts")
            counted = (len(self._prompts), sum(map(len, self._prompts)) // 4)
            if counted != (self._stats["prompts"], self._stats["tokens"]):
                raise AssertionError(f"{counted} prompts and tokens, but {self._stats} counted")
            if counted[0] > self.max_prompts or counted[1] > self.max_tokens:
                raise AssertionError(f"{counted} prompts and tokens are over the bounds")

    def _touch(self, key: bytes) -> bool:
        with self._lock:
            return self._cover(key)

    def _cover(self, key: bytes) -> bool:
        """Whether a held prompt begins with this one, which is then a use of it."""
        at = bisect_left(self._sorted, key)
        if at == len(self._sorted) or not self._sorted[at].startswith(key):
            return False
        self._prompts.move_to_end(self._sorted[at])
        self._stats["covered"] += 1
        return True

    def _insert(self, key: bytes, label: str, found: Sketch) -> None:
        at = bisect_left(self._sorted, key)
        # No held prompt begins with another, so only the one before can be a beginning of this one.
        if at > 0 and key.startswith(self._sorted[at - 1]):
            self._drop(self._sorted[at - 1])
            self._stats["covered"] += 1
        tokens = len(key) // 4
        while (
            len(self._prompts) >= self.max_prompts
            or self._stats["tokens"] + tokens > self.max_tokens
        ):
            self._drop(next(iter(self._prompts)))
            self._stats["evicted"] += 1
        if not self._free:
            # Twice as many each time, up to the bound.
            slots = len(self._of_slot)
            more = min(max(slots, 16), self.max_prompts - slots)
            self._sketches = np.vstack(
                (self._sketches, np.zeros((more, PERMUTATIONS), dtype=np.uint64))
            )
            self._of_slot += [None] * more
            self._free = list(range(slots, slots + more))
        slot = self._free.pop()
        self._sketches[slot] = found
        self._of_slot[slot] = key
        self._prompts[key] = _Prompt(label, slot)
        self._sorted.insert(bisect_left(self._sorted, key), key)
        self._stats["prompts"] += 1
        self._stats["tokens"] += tokens
        self._stats["added"] += 1

    def _drop(self, key: bytes) -> None:
        prompt = self._prompts.pop(key)
        del self._sorted[bisect_left(self._sorted, key)]
        self._of_slot[prompt.slot] = None
        self._free.append(prompt.slot)
        self._stats["prompts"] -= 1
        self._stats["tokens"] -= len(key) // 4

    def _neighbours(self, key: bytes, count: int) -> list[bytes]:
        """The held prompts with the longest common beginnings: outwards from the key's place they only get shorter."""
        ids = _ids_of(key)
        after = bisect_left(self._sorted, key)
        before = after - 1

        def shared(at: int) -> int:
            inside = 0 <= at < len(self._sorted)
            return common_prefix(ids, _ids_of(self._sorted[at])) if inside else -1

        lower, upper = shared(before), shared(after)
        found: list[bytes] = []
        while len(found) < count and max(lower, upper) > 0:
            if upper >= lower:
                found.append(self._sorted[after])
                after += 1
                upper = shared(after)
            else:
                found.append(self._sorted[before])
                before -= 1
                lower = shared(before)
        return found

    def _likeness(self, own: Sketch) -> dict[bytes, float]:
        """The estimated similarity of every held prompt, the most alike first."""
        empty = np.iinfo(np.uint64).max
        shares = ((self._sketches == own) & (own != empty)).mean(-1)
        order = np.argsort(-shares, kind="stable")
        keys = ((self._of_slot[slot], float(shares[slot])) for slot in order)
        return {key: share for key, share in keys if key is not None}


def _key_of(ids: NDArray[np.uint32]) -> bytes:
    return ids.astype(">u4").tobytes()


def _ids_of(key: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(key, dtype=">u4").astype(np.uint32)
