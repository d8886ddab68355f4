"""What one arm does in one round, in a process of its own: write all, drop the page cache, read cold, read warm."""

from __future__ import annotations

import importlib
import os
import resource
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from peers import disk
from peers.arm import Arm, MissingError
from peers.payload import Payload, Shape

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


@dataclass(frozen=True)
class Task:
    """What a process is to do."""

    arm: str
    """`module:Class` below `peers`."""
    shape: Shape
    directory: str
    """Where its files go: below it, in a directory that is removed at the end."""
    integrity: bool = False
    """Flip a byte instead of measuring."""

    def perform(self, directory: Path) -> Any:
        """Does it, in the process of the turn: samples, or the verdict of the integrity test."""
        kind = load(self.arm)
        kind.version()
        payload = Payload(self.shape)
        # The first comparison allocates what stays.
        payload.differing(payload.tensors())
        arm = kind(directory, self.shape)
        return integrity(arm, payload) if self.integrity else measure(arm, payload)


@dataclass
class Samples:
    """What was measured: seconds of each prompt, and the arm's totals of the round."""

    acknowledged: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    """Until its own sync came back; empty if it has none."""
    settle: float = 0.0
    """Seconds to close the arm after all was written, and for the bench's sync of its files."""
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    disk_bytes: int = 0
    peak_bytes: int = 0
    """Growth of the resident set over what the process had before the arm was opened."""


def load(name: str) -> type[Arm]:
    """The class of an arm."""
    module, _, attribute = name.partition(":")
    found: type[Arm] = getattr(importlib.import_module(f"peers.{module}"), attribute)
    return found


def measure(arm: Arm, payload: Payload) -> Samples:
    """One round of an arm.

    Raises:
        RuntimeError: it gave back other bytes than it was given, or the page cache could not be dropped.
    """
    samples = Samples()
    prompts = range(payload.shape.prompts)
    before = reset_peak()
    arm.open()
    for prompt in prompts:
        payload.select(prompt)
        arm.stage(payload)
        start = perf_counter()
        arm.write(prompt, payload)
        samples.acknowledged.append(perf_counter() - start)
        if arm.about.sync:
            arm.sync()
            samples.durable.append(perf_counter() - start)
    start = perf_counter()
    arm.close()
    disk.sync(arm.directory)
    samples.settle = perf_counter() - start
    samples.disk_bytes = disk.allocated(arm.directory)
    disk.drop(arm.directory)
    arm.open()
    for prompt in prompts:
        samples.cold.append(timed(arm, prompt, payload))
    for prompt in prompts:
        arm.warm(prompt)
        samples.warm.append(timed(arm, prompt, payload))
    arm.close()
    samples.peak_bytes = max(0, peak() - before)
    return samples


def timed(arm: Arm, prompt: int, payload: Payload) -> float:
    """Seconds that a read took.

    Raises:
        RuntimeError: it gave back other bytes than it was given.
    """
    start = perf_counter()
    tensors = arm.read(prompt)
    seconds = perf_counter() - start
    payload.select(prompt)
    wrong = payload.differing(tensors)
    if wrong:
        raise RuntimeError(f"{wrong} of {len(tensors)} tensors came back with other bytes")
    return seconds


def integrity(arm: Arm, payload: Payload) -> str:
    """Whether the arm notices that one byte of its payload on disk was inverted while it was closed."""
    payload.select(0)
    arm.open()
    arm.stage(payload)
    arm.write(0, payload)
    if arm.about.sync:
        arm.sync()
    arm.close()
    disk.sync(arm.directory)
    disk.flip(arm.directory, needle(payload))
    disk.drop(arm.directory)
    return judge(arm, payload)


def needle(payload: Payload) -> bytes:
    """In the middle of the layers and of the tokens, within one row, which every unit of storage keeps together."""
    middle = payload.bytes.size // 2 + payload.shape.part_bytes // 2 + 1024
    return payload.bytes[middle : middle + 64].tobytes()


def judge(arm: Arm, payload: Payload) -> str:
    """What an arm, opened anew, does about prompt 0, which is not what it was."""
    try:
        arm.open()
        tensors = arm.read(0)
    except MissingError as missing:
        return f"noticed: {missing}"
    except Exception as error:  # noqa: BLE001 - whatever a peer raises counts as noticing
        return f"noticed: {type(error).__name__}"
    payload.select(0)
    wrong = payload.differing(tensors)
    return "SERVED: wrong bytes, no error" if wrong else "the byte that was flipped was not read"


def run(task: Task, answer: Connection) -> None:
    """The process: sends what the task gives, or the error as text."""
    try:
        with tempfile.TemporaryDirectory(
            prefix="kvlab-peers-", dir=task.directory, ignore_cleanup_errors=True
        ) as name:
            answer.send(task.perform(Path(name)))
    except BaseException as error:  # noqa: BLE001 - it is sent to the other process, which reports it
        trace = traceback.format_exc()
        answer.send(RuntimeError(f"{type(error).__name__}: {error}\n{trace}"))
    finally:
        answer.close()
        # Threads that a peer left behind must not keep the process.
        os._exit(0)


def reset_peak() -> int:
    """Makes the kernel forget this process's peak; the resident bytes now."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return peak()


def peak() -> int:
    """The most resident bytes of this process since then."""
    status = Path("/proc/self/status")
    if status.exists():
        fields: dict[str, Any] = dict(
            line.split(":", 1) for line in status.read_text().splitlines() if ":" in line
        )
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
