"""Engines in turns, each in a process of its own that stays: the order rotates, the first round is dropped."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.ttft import TURN, WAYS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENGINES = ("session:SessionFp32", "session:SessionBf16", "llama_server:LlamaServer")
TITLES = {
    "session:SessionFp32": "kvlab in transformers, fp32",
    "session:SessionBf16": "kvlab in transformers, bf16",
    "llama_server:LlamaServer": "llama.cpp server, slots; weights Q4_1, KV f16",
}
TIMEOUT = 240.0
"""Seconds that one answer may take."""
VOCABULARY = range(1_000, 49_000)
# GNU OpenMP spins for milliseconds at the end of each step, which ruins llama.cpp where another process wants the core.
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}


@dataclass
class Outcome:
    """What became of an engine at one length."""

    title: str
    tokens: int
    version: str = ""
    disk_bytes: int = 0
    computed: list[float] = field(default_factory=list)
    """Seconds to the first token, a round each; so are the next two."""
    restored: list[float] = field(default_factory=list)
    never_evicted: list[float] = field(default_factory=list)
    same: bool = True
    """Whether what was restored answered what was never evicted answered, in every round."""
    integrity: str = ""
    not_run: str = ""


class Process:
    """The process of an engine, as seen from here."""

    def __init__(self, name: str, directory: Path, longest: int) -> None:
        arguments = [name, str(directory), str(longest)]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "peers.ttft.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def answer(self) -> Any:
        """The next one.

        Raises:
            RuntimeError: the engine failed, died, or took too long.
        """
        out = self.child.stdout
        if out is None:
            raise RuntimeError("the process has no output")
        ready, _, _ = select.select([out], [], [], TIMEOUT)
        if not ready:
            raise RuntimeError(f"nothing after {TIMEOUT:.0f} s")
        line = out.readline()
        if not line:
            raise RuntimeError(f"the process died, exit code {self.child.wait()}")
        found = json.loads(line)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found["value"]

    def call(self, method: str, *arguments: object) -> Any:
        """Calls a method of the engine."""
        pipe = self.child.stdin
        if pipe is None:
            raise RuntimeError("the process has no input")
        pipe.write(json.dumps([method, arguments]).encode() + b"\n")
        pipe.flush()
        return self.answer()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe:
                pipe.close()


class Contender:
    """An engine, its process, and what is known of it at each length. One that fails drops out with its reason.

    What it measured at the lengths before stays.
    """

    def __init__(self, name: str, directory: Path, lengths: Sequence[int]) -> None:
        self.name = name
        self.outcomes = {tokens: Outcome(TITLES[name], tokens) for tokens in lengths}
        self.process = Process(name, directory, max(lengths))
        self.attempt(self.begin)

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return not any(outcome.not_run for outcome in self.outcomes.values())

    def attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """Does a step, unless an earlier one failed."""
        if not self.alive:
            return
        try:
            step(*arguments)
        except (RuntimeError, BrokenPipeError) as error:
            # Every step but the first is given the prefix; lengths come in order.
            lengths = list(self.outcomes)
            reached = lengths.index(len(arguments[0])) if arguments else 0
            for tokens in lengths[reached:]:
                self.outcomes[tokens].not_run = str(error)
            self.process.end()

    def begin(self) -> None:
        """The model is loaded when the version comes."""
        version = self.process.answer()
        for outcome in self.outcomes.values():
            outcome.version = version

    def keep(self, prefix: list[int]) -> None:
        """Computes and keeps a prefix."""
        self.outcomes[len(prefix)].disk_bytes = self.process.call("keep", prefix)

    def round(self, prefix: list[int], turn: list[int], *, measured: bool) -> None:
        """Each way once, the longest only where it is measured: keeping the prefix has warmed it up.

        The restored state and the one never evicted must give the same answer.
        """
        outcome = self.outcomes[len(prefix)]
        answers = {}
        for way in WAYS:
            if way == "computed" and not measured:
                continue
            seconds, answers[way] = self.process.call(way, prefix, turn)
            if measured:
                getattr(outcome, way).append(seconds)
        outcome.same = outcome.same and answers["restored"] == answers["never_evicted"]

    def damage(self, prefix: list[int], turn: list[int]) -> None:
        """What it makes of an inverted byte."""
        self.outcomes[len(prefix)].integrity = self.process.call("damaged", prefix, turn)


def run(
    names: Sequence[str],
    lengths: Sequence[int],
    rounds: int,
    directory: Path,
    told: Callable[[str], None],
) -> list[Outcome]:
    """Every engine at every length; the byte is inverted at the end, at the last."""
    generator = random.Random(8)
    with ExitStack() as stack:
        base = tempfile.TemporaryDirectory(prefix="kvlab-ttft-", dir=directory)
        place = Path(stack.enter_context(base))
        contenders = []
        for name in names:
            told(f"first token: loading {TITLES[name]}")
            own = place / name.replace(":", "-")
            own.mkdir()
            contender = Contender(name, own, lengths)
            stack.callback(contender.process.end)
            contenders.append(contender)
        for tokens in lengths:
            prefix = generator.choices(VOCABULARY, k=tokens)
            for contender in contenders:
                told(f"first token: {tokens:,} tokens, computed and kept: {contender.name}")
                contender.attempt(contender.keep, prefix)
            for round_ in range(rounds + 1):
                told(f"first token: {tokens:,} tokens, round {round_} of {rounds}")
                turn = generator.choices(VOCABULARY, k=TURN)
                first = round_ % len(contenders)
                for contender in contenders[first:] + contenders[:first]:
                    step = partial(contender.round, measured=round_ > 0)
                    contender.attempt(step, prefix, turn)
            if tokens == lengths[-1]:
                for contender in contenders:
                    contender.attempt(contender.damage, prefix, turn)
    return [outcome for each in contenders for outcome in each.outcomes.values()]
