"""Rounds in which the arms take turns, each turn in a new process, the order rotated, the first round dropped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peers import cycle

if TYPE_CHECKING:
    from peers.arm import About
    from peers.cycle import Task

TIMEOUT = 900.0
"""Seconds that one turn may take."""
# What every process needs is loaded once, in the process that the others are forked from.
PRELOAD = ["numpy", "torch", "kvlab", "peers.cycle", "peers.remote.kvlab_l4", "peers.remote.turn"]


@dataclass
class Outcome:
    """What became of an arm."""

    arm: str
    about: About
    version: str = ""
    rounds: list[Any] = field(default_factory=list)
    """The samples of each round, of the kind that the task gives."""
    integrity: str = ""
    not_run: str = ""
    """Why it has no figures; empty if it has."""


def turn(task: Task, timeout: float = TIMEOUT) -> Any:
    """One turn of an arm in a process of its own.

    Raises:
        RuntimeError: the arm failed, died, or took too long.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=cycle.run, args=(task, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise RuntimeError(f"nothing after {timeout:.0f} s")
        answer = ours.recv()
    except EOFError:
        process.join(10)
        raise RuntimeError(f"the process died, exit code {process.exitcode}") from None
    finally:
        if process.is_alive():
            process.join(2)
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, RuntimeError):
        raise answer
    return answer


def prepare(arms: Sequence[str]) -> list[Outcome]:
    """Loads each arm, so that one whose peer is not installed is known from the start."""
    outcomes = []
    for arm in arms:
        kind = cycle.load(arm)
        outcome = Outcome(arm, kind.about)
        try:
            outcome.version = kind.version()
        except Exception as error:  # noqa: BLE001 - whatever a peer's import raises is the reason
            outcome.not_run = f"{type(error).__name__}: {error}"
        outcomes.append(outcome)
    return outcomes


def run(
    outcomes: Sequence[Outcome],
    task: Task,
    rounds: int,
    told: Callable[[str], None],
) -> None:
    """Runs the rounds after one for warming up, then the integrity test of each arm. An arm that fails drops out."""
    for round_ in range(rounds + 1):
        alive = [outcome for outcome in outcomes if not outcome.not_run]
        if not alive:
            return
        first = round_ % len(alive)
        for outcome in alive[first:] + alive[:first]:
            told(f"round {round_} of {rounds}: {outcome.about.name}")
            try:
                samples = turn(replace(task, arm=outcome.arm))
            except RuntimeError as error:
                outcome.not_run = str(error)
                continue
            if round_:
                outcome.rounds.append(samples)
    # One prompt is enough to see it.
    small = replace(task, integrity=True, shape=replace(task.shape, prompts=1))
    for outcome in outcomes:
        if outcome.not_run:
            continue
        told(f"flipping a byte: {outcome.about.name}")
        try:
            outcome.integrity = str(turn(replace(small, arm=outcome.arm)))
        except RuntimeError as error:
            outcome.integrity = f"not tested: {str(error).splitlines()[0]}"
