"""Conversations while they are written: what generators build on."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from kvlab.errors import InvalidArgumentError
from kvlab.workload.generators.coding import Coding
from kvlab.workload.generators.domains import DOMAINS
from kvlab.workload.generators.prose import Prose
from kvlab.workload.schedule import starts
from kvlab.workload.schema import Header, Message, Workload, WorkloadRequest

if TYPE_CHECKING:
    from kvlab.workload.generators.domains import Domain

__all__ = ["Script", "Talk", "check", "system", "user"]


def system(content: str) -> Message:
    """A message of the system's."""
    return Message("system", content)


def user(content: str) -> Message:
    """A message of the user's, or what a tool gave."""
    return Message("user", content)


def check(**counts: int) -> None:
    """Refuses counts below 1.

    Raises:
        InvalidArgumentError: one is; the message names it.
    """
    for name, count in counts.items():
        if count < 1:
            raise InvalidArgumentError(f"{name} = {count}: use at least 1")


class Script:
    """A workload while it is generated.

    Args:
        seed: What all choices come from.
        arrival_ms: The mean time between two arrivals, which are random and independent; 0 for none:
            whoever runs the workload decides when each comes.

    Attributes:
        rng: Makes the choices.
        prose: Makes the sentences about everyday work.
        coding: Makes what coding agents read and say.
        texts: What goes into the header, for requests to refer to.

    Raises:
        InvalidArgumentError: a negative or infinite time.
    """

    def __init__(self, seed: int, arrival_ms: float = 0.0) -> None:
        if not (math.isfinite(arrival_ms) and arrival_ms >= 0):
            raise InvalidArgumentError(f"arrival_ms = {arrival_ms}: use milliseconds from 0 on")
        self.rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
        self.prose = Prose(self.rng)
        self.coding = Coding(self.rng)
        self.texts: dict[str, str] = {}
        self.requests: list[WorkloadRequest] = []
        self._seed = seed
        self._mean_ms = arrival_ms
        self._clock = 0.0

    def domain(self) -> Domain:
        """One of the fields of work."""
        return self.rng.choice(DOMAINS)

    def keep(self, key: str, text: str) -> str:
        """Has a text stand in the header; gives it back."""
        self.texts[key] = text
        return text

    def arrival(self) -> float | None:
        """When the next conversation begins, in whole milliseconds."""
        if not self._mean_ms:
            return None
        now = self._clock
        self._clock += self.rng.expovariate(1.0 / self._mean_ms)
        return float(round(now))

    def gap(self, median_ms: float) -> float:
        """A time whose logarithm is normal, in whole milliseconds: some are several times as long as most."""
        return float(round(median_ms * math.exp(self.rng.gauss(0.0, 0.8))))

    def workload(self, name: str, generator: str, options: dict[str, Any]) -> Workload:
        """What was written, each request where it is likely to start."""
        begun = starts(self.requests)
        order = sorted(range(len(begun)), key=begun.__getitem__)
        header = Header(
            name=name, seed=self._seed, generator=generator, options=options, texts=self.texts
        )
        return Workload(header, tuple(self.requests[at] for at in order))


class Talk:
    """A conversation while it is written.

    Args:
        script: Where its requests go.
        session: What it is called; ids of its requests are this with their turn.
        first: Messages before the first question.
        start: The id of the request behind whose end it begins; else it arrives by itself.
        fork: Whether it goes on from the conversation of `start`.
    """

    def __init__(
        self,
        script: Script,
        session: str,
        *first: Message,
        start: str | None = None,
        fork: bool = False,
    ) -> None:
        self._script = script
        self._session = session
        self._first = first
        self._start = start
        self._fork = fork
        self._turns = 0
        self.last = ""

    def ask(
        self,
        klass: str,
        *messages: Message,
        max_tokens: int,
        reply: str | None = None,
        gap_ms: float = 0.0,
        waits_for: tuple[str, ...] = (),
    ) -> str:
        """Goes on with a request.

        Args:
            klass: Its class.
            messages: What is new.
            max_tokens: The longest answer.
            reply: The answer to record; None where no other request builds on it.
            gap_ms: The time since the end of the one before.
            waits_for: What else must have ended.

        Returns:
            The request's id.
        """
        begins = self._turns == 0
        after = self._start if begins else self.last
        request = WorkloadRequest(
            id=f"{self._session}.{self._turns}",
            klass=klass,
            session=self._session,
            turn=self._turns,
            after=after,
            append=self._fork if begins else True,
            waits_for=waits_for,
            delay_ms=gap_ms if after is not None else 0.0,
            arrival_ms=self._script.arrival() if after is None else None,
            messages=(*self._first, *messages) if begins else messages,
            max_tokens=max_tokens,
            reply=reply,
        )
        self._script.requests.append(request)
        self._turns += 1
        self.last = request.id
        return request.id
