"""Restores from L3, L2 and L1 into a leased cache buffer, against the raw read of as many bytes.

The layout is that of SmolLM2-135M: 30 layers, 3 KV heads of 64. The page cache is dropped before every read from disk.
The raw read is the best of 1, 2 and 4 threads that read pieces of 1 MiB, past the page cache, from the store's own
segment files into an equally large buffer whose pages were touched before. Restores and raw reads take turns.
"""

from __future__ import annotations

import argparse
import errno
import mmap
import os
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from report import Report

import kvlab

LAYERS, HEADS, DIM = 30, 3, 64
PIECE = 1 << 20
PAGE = 4096
NAMESPACE = bytes(range(32))
DTYPES = {4: "fp32", 2: "bf16"}
# The flag is absent where it is not known: raw reads then go through the page cache.
O_DIRECT = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True)
class RawFile:
    """The segment files, open past the page cache, as one list of pieces: descriptor, offset, length."""

    pieces: list[tuple[int, int, int]]
    bytes: int

    @staticmethod
    def open(directory: Path, total: int, stack: ExitStack) -> RawFile:
        """As many bytes as the payload has, of what was written to the segments below `directory`."""
        pieces: list[tuple[int, int, int]] = []
        left = -(-total // PAGE) * PAGE
        for path in sorted(directory.rglob("*.seg")):
            descriptor = os.open(path, os.O_RDONLY | O_DIRECT)
            stack.callback(os.close, descriptor)
            for start, end in written(descriptor):
                for offset in range(start, end, PIECE):
                    length = min(PIECE, end - offset, left)
                    if length:
                        pieces.append((descriptor, offset, length))
                    left -= length
        if left:
            raise RuntimeError(f"the segments below {directory} lack {left} bytes of the payload")
        return RawFile(pieces, sum(length for _, _, length in pieces))

    def read(self, target: mmap.mmap, threads: int) -> float:
        """Reads all pieces with so many threads; gives back the seconds, thread start included."""
        view = memoryview(target)
        work: list[list[tuple[int, int, memoryview]]] = [[] for _ in range(threads)]
        at = 0
        for index, (descriptor, offset, length) in enumerate(self.pieces):
            work[index % threads].append((descriptor, offset, view[at : at + length]))
            at += length
        failures: list[str] = []

        def run(pieces: list[tuple[int, int, memoryview]]) -> None:
            for descriptor, offset, piece in pieces:
                done = os.preadv(descriptor, [piece], offset)
                if done != len(piece):
                    failures.append(f"{done} of {len(piece)} bytes at {offset}")

        start = perf_counter()
        others = [threading.Thread(target=run, args=(pieces,)) for pieces in work[1:]]
        for other in others:
            other.start()
        run(work[0])
        for other in others:
            other.join()
        seconds = perf_counter() - start
        for pieces in work:
            for _, _, piece in pieces:
                piece.release()
        view.release()
        if failures:
            raise RuntimeError(f"short raw reads: {failures}")
        return seconds


def written(descriptor: int) -> list[tuple[int, int]]:
    """The ranges of a file that are on disk: what is only set aside would read as zeroes, without the disk."""
    size = os.fstat(descriptor).st_size
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        # Whole pages, as O_DIRECT wants them; the end of a segment is one.
        ranges.append((start // PAGE * PAGE, at // PAGE * PAGE))
    return ranges


class Bench:
    """A store with one committed prompt, and what is measured on it."""

    def __init__(self, path: Path, tokens: int, element_bytes: int, workers: int) -> None:
        self.tokens = tokens
        self.label = f"{tokens:,} tokens {DTYPES[element_bytes]}"
        self.layout = kvlab.KvLayout(
            [(HEADS, DIM, HEADS, DIM)] * LAYERS, element_bytes=element_bytes
        )
        self.bytes = tokens * self.layout.token_bytes
        rng = np.random.default_rng(5)
        self.ids = rng.integers(0, 49_152, tokens, dtype=np.int64)
        # The last token of a prompt is always computed: one more than what is to be restored.
        self.prompt = np.append(self.ids, 7)
        self.path = path
        buffer_and_blocks = 5 * self.bytes + (64 << 20)
        self.store = kvlab.Store.open(
            path, l1=buffer_and_blocks, l2=2 * self.bytes + (64 << 20), io_workers=workers
        )
        self.cache = self.store.prefix_cache(self.layout)
        self.buffer = self.cache.lease(tokens + 1)
        self.content = rng.integers(0, 256, self.buffer.nbytes, dtype=np.uint8)

    def fill(self) -> None:
        """Puts the known bytes into the buffer."""
        np.frombuffer(memoryview(self.buffer), dtype=np.uint8)[:] = self.content

    def commit(self) -> float:
        """Commits the prompt, through to L3; gives back the seconds until it is written."""
        self.fill()
        request = self.cache.begin(self.prompt, NAMESPACE)
        start = perf_counter()
        request.commit(self.ids, self.buffer)
        self.store.flush()
        seconds = perf_counter() - start
        request.close()
        return seconds

    def restore(self, tier: int) -> tuple[float, dict[str, Any]]:
        """One restore, begin included, all of which must come from `tier` (0 is L1); its seconds and its report."""
        start = perf_counter()
        request = self.cache.begin(self.prompt, NAMESPACE)
        found = perf_counter()
        restored = request.restore(self.buffer)
        end = perf_counter()
        request.close()
        expected = [0, 0, 0]
        expected[tier] = self.tokens
        if list(restored["tokens"]) != expected:
            raise RuntimeError(f"{restored} came, not {expected} tokens from L1, L2, L3")
        return end - start, {**restored, "begin_ms": (found - start) * 1e3}

    def check(self) -> None:
        """Whether the rows of the last restore are the committed bytes."""
        now = np.frombuffer(memoryview(self.buffer), dtype=np.uint8)
        row = DIM * (self.layout.token_bytes // (LAYERS * HEADS * DIM * 2))
        head = self.buffer.capacity * row
        for offset in (base for pair in self.buffer.offsets() for base in pair):
            for at in range(offset, offset + HEADS * head, head):
                rows = slice(at, at + self.tokens * row)
                if not np.array_equal(now[rows], self.content[rows]):
                    raise RuntimeError("a restore brought other bytes than were committed")

    def wipe(self) -> None:
        """Overwrites the buffer, so that a restore that brings nothing is noticed."""
        np.frombuffer(memoryview(self.buffer), dtype=np.uint8)[:] = 0

    def drop(self) -> None:
        """Drops the page cache of the segments."""
        stayed = self.store.drop_page_cache()
        if stayed:
            raise RuntimeError(f"{stayed} bytes of the segments stayed in the page cache")


def disk(report: Report, bench: Bench, rounds: int, *, targeted: bool) -> None:
    """Restores from L3 against raw reads."""
    bench.store.evict("l2")
    with ExitStack() as stack:
        raw_file = RawFile.open(bench.path, bench.bytes, stack)
        target = mmap.mmap(-1, raw_file.bytes)
        stack.callback(target.close)
        target.write(b"\1" * raw_file.bytes)
        ratios: list[float] = []
        restores: list[float] = []
        raws: list[float] = []
        begins: list[float] = []
        by_threads: dict[int, list[float]] = {1: [], 2: [], 4: []}
        for round_ in range(rounds + 1):
            # The order within a round turns, so that neither side always follows the same one.
            sides: list[int] = [0, 1, 2, 4]
            sides = sides[round_ % 4 :] + sides[: round_ % 4]
            raw: dict[int, float] = {}
            seconds = 0.0
            for side in sides:
                bench.drop()
                if side:
                    raw[side] = raw_file.read(target, side)
                    continue
                bench.wipe()
                seconds, told = bench.restore(2)
                bench.check()
            if round_ == 0:
                continue
            restores.append(seconds)
            begins.append(told["begin_ms"])
            best = min(raw.values())
            raws.append(best)
            for threads, took in raw.items():
                by_threads[threads].append(took)
            ratios.append(seconds / best)
    label = bench.label
    report.add(f"L3 / raw read, {label}", [ratios], unit="x", target=1.5 if targeted else None)
    rate = [bench.bytes / each / 1e9 for each in restores]
    report.add(f"restore from L3, {label}", [rate], unit="GB/s")
    report.add(
        f"raw read, best of a round, {label}", [[bench.bytes / r / 1e9 for r in raws]], unit="GB/s"
    )
    for threads, times in by_threads.items():
        gbs = [bench.bytes / each / 1e9 for each in times]
        report.add(f"raw read, {threads} threads, {label}", [gbs], unit="GB/s")
    report.add(f"restore from L3, {label}", [[each * 1e3 for each in restores]], unit="ms")
    report.add(f"begin (match, keys, plan), {label}", [begins], unit="ms")


def memory_tiers(report: Report, bench: Bench, rounds: int) -> None:
    """Restores from L1, then from L2."""
    for tier, name in ((0, "L1"), (1, "L2")):
        if tier == 1:
            bench.store.evict("l1")
        seconds: list[float] = []
        for round_ in range(rounds + 1):
            bench.wipe()
            each, _ = bench.restore(tier)
            bench.check()
            if round_:
                seconds.append(each)
        rates = [bench.bytes / each / 1e9 for each in seconds]
        report.add(f"restore from {name}, {bench.label}", [rates], unit="GB/s")


def write_through(report: Report, bench: Bench, rounds: int) -> None:
    """Commits of a prompt that no tier has, until L3 has it."""
    seconds = []
    for round_ in range(rounds + 1):
        bench.store.clear()
        each = bench.commit()
        if round_:
            seconds.append(each)
    rates = [bench.bytes / each / 1e9 for each in seconds]
    report.add(f"write-through to L3, {bench.label}", [rates], unit="GB/s")


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds after the warm-up")
    parser.add_argument(
        "--cache-dir", type=Path, help="where the store is made; a temporary directory"
    )
    parser.add_argument("--workers", type=int, default=4, help="I/O workers of the store")
    parser.add_argument("--quick", action="store_true", help="2,048 tokens fp32 from L3 only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    settings = {**vars(arguments), "cache_dir": str(arguments.cache_dir)}
    report = Report("Restores through Python", settings)
    cases = [(2048, 4)] if arguments.quick else [(2048, 4), (2048, 2), (4096, 4), (4096, 2)]
    for tokens, element_bytes in cases:
        with tempfile.TemporaryDirectory(prefix="kvlab-bench-", dir=arguments.cache_dir) as name:
            bench = Bench(Path(name), tokens, element_bytes, arguments.workers)
            with bench.store:
                bench.commit()
                if not arguments.quick:
                    memory_tiers(report, bench, arguments.rounds)
                disk(report, bench, arguments.rounds, targeted=(tokens, element_bytes) == (2048, 4))
                if not arguments.quick:
                    write_through(report, bench, max(3, arguments.rounds // 3))
    report.remarks.append(
        "The ratio is taken round by round: a restore (begin included) over the best raw read of the same round. "
        "Rates are payload bytes over wall time, in units of 10^9 bytes. Every restore is compared with what was "
        "committed, off the clock."
    )
    if not O_DIRECT:
        report.remarks.append(
            "This system has no O_DIRECT: the raw reads went through the page cache."
        )
    report.print(as_json=arguments.json)


if __name__ == "__main__":
    main()
