"""What an arm does in a turn, in a process of its own: write, open anew, read some times, look up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from peers import cycle
from peers.cycle import Task
from peers.remote.arm import ASKED, KNOWN, RemoteArm
from peers.remote.prefix import Prefix
from peers.remote.services import Services


@dataclass(frozen=True)
class RemoteTask(Task):
    """What a process is to do, where the servers are, and where the bytes of the prefix."""

    services: Services | None = None
    prefix: str = ""
    """The file."""
    reads: int = 3
    lookups: int = 20

    def perform(self, directory: Path) -> Any:
        """Does it, in the process of the turn: samples, or the verdict of the integrity test."""
        kind: Any = cycle.load(self.arm)
        kind.version()
        prefix = Prefix(self.shape, Path(self.prefix))
        # The first comparison allocates what stays.
        prefix.differing(prefix.tensors())
        arm: RemoteArm = kind(directory, self.shape)
        if self.services is None:
            raise ValueError("the task does not say where the servers are")
        arm.services = self.services
        if self.integrity:
            return integrity(arm, prefix)
        return measure(arm, prefix, self.reads, self.lookups)


@dataclass
class RemoteSamples:
    """What was measured in a turn, in seconds and bytes."""

    write: float = 0.0
    """Until the other end has it."""
    read: list[float] = field(default_factory=list)
    """The first read of the process is left out."""
    lookup: list[float] = field(default_factory=list)
    """Empty if it cannot be asked."""
    stored_bytes: int = 0
    peak_bytes: int = 0
    """Growth of the reading side's resident set over what the process had before."""


def _written(arm: RemoteArm, prefix: Prefix) -> float:
    arm.open()
    arm.stage(prefix)
    start = perf_counter()
    arm.write(0, prefix)
    seconds = perf_counter() - start
    arm.close()
    return seconds


def measure(arm: RemoteArm, prefix: Prefix, reads: int, lookups: int) -> RemoteSamples:
    """One turn of an arm.

    Raises:
        RuntimeError: it gave back other bytes than it was given, or knows other names than it was told.
    """
    samples = RemoteSamples()
    arm.wipe()
    empty = arm.stored()
    samples.write = _written(arm, prefix)
    samples.stored_bytes = arm.stored() - empty
    before = cycle.reset_peak()
    arm.open()
    for read in range(reads + 1):
        arm.chill()
        seconds = cycle.timed(arm, 0, prefix)
        if read:
            samples.read.append(seconds)
    samples.peak_bytes = max(0, cycle.peak() - before)
    if arm.asks:
        arm.mark()
        for lookup in range(lookups + 1):
            start = perf_counter()
            known = arm.lookup()
            seconds = perf_counter() - start
            if known != KNOWN:
                raise RuntimeError(f"{known} of {ASKED} names are there, it says, and not {KNOWN}")
            if lookup:
                samples.lookup.append(seconds)
    arm.close()
    return samples


def integrity(arm: RemoteArm, prefix: Prefix) -> str:
    """Whether the arm notices that one byte was inverted at the other end while it was closed."""
    arm.wipe()
    _written(arm, prefix)
    arm.damage(cycle.needle(prefix))
    arm.chill()
    verdict = cycle.judge(arm, prefix)
    arm.close()
    return verdict
