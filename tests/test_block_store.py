"""BlockStore: key to bytes over RAM and disk, in this process, after a restart and after a kill."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvlab import (
    BlockStore,
    ConfigError,
    FormatError,
    InvalidArgumentError,
    KvlabError,
    Store,
    StoreClosedError,
    StoreIOError,
    StoreLockedError,
)

SMALL: dict[str, Any] = {"l2": "256KiB", "l3": "1MiB", "free_reserve": 0, "io_workers": 2}


def key_of(name: int) -> bytes:
    return hashlib.sha256(b"%d" % name).digest()


def bytes_of(name: int) -> bytes:
    """What is kept under a name: 1 byte to 90 KB that no other name has."""
    size = 1 + name * 7919 % 90_000
    return hashlib.shake_256(b"%d" % name).digest(size)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class AgainstADict(RuleBasedStateMachine):
    """A name is its bytes, or an honest miss; what was removed is a miss."""

    names = st.integers(0, 30)

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="kvlab-test-"))
        self.store = BlockStore.open(self.path, **SMALL)
        self.there: set[int] = set()

    def check(self, name: int, found: bytes | None) -> None:
        assert found in (None, bytes_of(name))
        assert found is None or name in self.there

    @rule(name=names, parent=st.none() | names)
    def put(self, name: int, parent: int | None) -> None:
        kept = self.store.put(
            key_of(name), bytes_of(name), parent=None if parent is None else key_of(parent)
        )
        if kept:
            self.there.add(name)
            self.check(name, self.store.get(key_of(name)))

    @rule(name=names)
    def get(self, name: int) -> None:
        self.check(name, self.store.get(key_of(name)))

    @rule(chosen=st.lists(names, max_size=12), into=st.booleans())
    def get_many(self, chosen: list[int], into: bool) -> None:
        keys = [key_of(name) for name in chosen]
        if into:
            buffers = [bytearray(90_000) for _ in chosen]
            lengths = self.store.get_into(keys, buffers)
            found = [
                None if length is None else bytes(buffer[:length])
                for length, buffer in zip(lengths, buffers, strict=True)
            ]
        else:
            found = self.store.get_many(keys)
        for name, data in zip(chosen, found, strict=True):
            self.check(name, data)

    @rule(chosen=st.lists(names, max_size=5, unique=True))
    def remove(self, chosen: list[int]) -> None:
        keys = [key_of(name) for name in chosen]
        self.store.flush()  # what is written may evict
        was = sum(place is not None for place in self.store.lookup(keys))
        assert self.store.remove(keys) == was
        self.there -= set(chosen)
        assert self.store.lookup(keys) == [None] * len(keys)
        assert [self.store.get(key) for key in keys] == [None] * len(keys)

    @rule()
    def flush(self) -> None:
        self.store.flush()
        assert self.store.stats()["write_queue_bytes"] == 0

    @rule(chosen=st.lists(names, min_size=1, max_size=5, unique=True), cancel=st.booleans())
    def prefetch(self, chosen: list[int], cancel: bool) -> None:
        ticket = self.store.prefetch([key_of(name) for name in chosen])
        if cancel:
            ticket.cancel()
        assert ticket.wait()
        progress = ticket.progress()
        assert 0 <= progress["loaded"] <= progress["wanted"] <= len(chosen)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = BlockStore.open(self.path, **SMALL)
        recovery = self.store.recovery()
        assert recovery is not None
        assert recovery["clean"]
        assert self.store.stats()["l3"]["runs"] == recovery["runs"]

    @invariant()
    def tiers_stay_in_their_bounds(self) -> None:
        stats = self.store.stats()
        for tier in (stats["l2"], stats["l3"]):
            assert tier["used"] <= tier["capacity"]
            assert tier["corrupt"] == tier["io_errors"] == 0

    def teardown(self) -> None:
        for name in range(31):
            self.check(name, self.store.get(key_of(name)))
        self.store.close()
        shutil.rmtree(self.path)


AgainstADict.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAgainstADict = AgainstADict.TestCase


def test_a_small_store_evicts_and_keeps_what_it_keeps_intact(tmp_path: Path) -> None:
    with BlockStore.open(tmp_path / "store", **SMALL) as store:
        for name in range(60):
            assert store.put(key_of(name), bytes_of(name))
            store.flush()
        found = [store.get(key_of(name)) for name in range(60)]
        stats = store.stats()
    assert all(data in (None, bytes_of(name)) for name, data in enumerate(found))
    assert 0 < sum(data is not None for data in found) < 60
    assert stats["l3"]["evictions"] > 0
    assert stats["l2"]["evictions"] > 0


def test_a_key_that_is_there_keeps_its_bytes() -> None:
    with BlockStore.open(l2="1MiB") as store:
        assert store.put(key_of(1), b"first")
        assert store.put(key_of(1), b"second")
        assert store.get(key_of(1)) == b"first"
        assert key_of(1) in store
        assert key_of(2) not in store
        assert store.recovery() is None


def test_prefetch_brings_blocks_from_l3_to_l2(tmp_path: Path) -> None:
    settings_ = {**SMALL, "l2": "1MiB"}
    with BlockStore.open(tmp_path / "store", **settings_) as store:
        store.put(key_of(1), bytes_of(1))
        store.put(key_of(2), bytes_of(2), parent=key_of(1))
    keys = [key_of(1), key_of(2), key_of(3)]
    with BlockStore.open(tmp_path / "store", **settings_) as store:
        assert store.lookup(keys) == ["l3", "l3", None]
        ticket = store.prefetch(keys)
        assert ticket.wait()
        expected = len(bytes_of(1)) + len(bytes_of(2))
        assert ticket.progress() == {"wanted": 2, "loaded": 2, "bytes": expected}
        assert store.lookup(keys) == ["l2", "l2", None]
        assert store.get(key_of(2)) == bytes_of(2)
        assert store.stats()["prefetch"]["claimed"] >= 1


def test_damaged_bytes_are_a_miss_and_a_counter(tmp_path: Path) -> None:
    path = tmp_path / "store"
    marker = b"kvlab-marker" * 500
    with BlockStore.open(path, **SMALL) as store:
        store.put(key_of(1), marker)
        store.put(key_of(2), bytes_of(2))
    (segment,) = (file for file in path.rglob("*.seg") if marker in file.read_bytes())
    data = bytearray(segment.read_bytes())
    data[data.index(marker) + 3000] ^= 1
    segment.write_bytes(data)
    with BlockStore.open(path, **SMALL) as store:
        assert store.lookup([key_of(1)]) == ["l3"]
        assert store.get(key_of(1)) is None
        assert store.stats()["l3"]["corrupt"] == 1
        assert store.lookup([key_of(1)]) == [None]
        assert store.get(key_of(2)) == bytes_of(2)
        assert store.put(key_of(1), marker)
        assert store.get(key_of(1)) == marker


READ = """
import hashlib, sys
from kvlab import BlockStore
with BlockStore.open(sys.argv[1], l2=0, l3="1MiB", free_reserve=0) as store:
    print(store.recovery()["clean"])
    for key in sys.argv[2:]:
        data = store.get(bytes.fromhex(key))
        print(None if data is None else hashlib.sha256(data).hexdigest())
"""


def test_another_process_reads_what_was_flushed(tmp_path: Path) -> None:
    with BlockStore.open(tmp_path / "store", **SMALL) as store:
        for name in range(3):
            store.put(key_of(name), bytes_of(name))
    output, errors = python(
        READ, tmp_path / "store", *(key_of(n).hex() for n in range(4))
    ).communicate()
    expected = [hashlib.sha256(bytes_of(name)).hexdigest() for name in range(3)]
    assert output.split() == ["True", *expected, "None"], errors


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from kvlab import BlockStore
from test_block_store import SMALL, bytes_of, key_of
store = BlockStore.open(sys.argv[1], **SMALL)
for name in range(6):
    assert store.put(key_of(name), bytes_of(name))
store.flush()
print("flushed", flush=True)
for name in range(6, 9):
    store.put(key_of(name), bytes_of(name))
sys.stdin.read()
"""


def test_after_a_kill_every_flushed_block_is_there(tmp_path: Path) -> None:
    process = python(KILLED, tmp_path / "store", Path(__file__).parent)
    assert line(process) == "flushed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with BlockStore.open(tmp_path / "store", **SMALL) as store:
        recovery = store.recovery()
        assert recovery is not None
        assert not recovery["clean"]
        for name in range(6):
            assert store.get(key_of(name)) == bytes_of(name)
        for name in range(6, 9):
            assert store.get(key_of(name)) in (None, bytes_of(name))


HOLD = """
import sys
from kvlab import BlockStore
with BlockStore.open(sys.argv[1], l3="1MiB", free_reserve=0):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    process = python(HOLD, tmp_path / "store")
    assert line(process) == "open"
    with pytest.raises(StoreLockedError, match=rf"store is in use by process .*{process.pid}"):
        BlockStore.open(tmp_path / "store", **SMALL)
    process.communicate("")
    BlockStore.open(tmp_path / "store", **SMALL).close()


def tree(path: Path) -> dict[str, bytes | None]:
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
        for file in path.rglob("*")
    }


@pytest.mark.parametrize("opened", [BlockStore.open, Store.open])
def test_a_foreign_directory_is_refused_and_left_alone(
    tmp_path: Path, opened: Callable[..., Any]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(FormatError, match="not a kvlab store: it holds notes"):
        opened(tmp_path, l3="1MiB", free_reserve=0)
    assert tree(tmp_path) == before


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    with BlockStore.open(tmp_path, **SMALL) as store:
        store.put(key_of(1), bytes_of(1))
    written = (tmp_path / "FORMAT").read_text()
    (tmp_path / "FORMAT").write_text(re.sub(r"^kvlab-l3 \d+ ", "kvlab-l3 99 ", written))
    before = tree(tmp_path)
    with pytest.raises(FormatError, match=r"version 99.*reads versions 1 to 2"):
        BlockStore.open(tmp_path, **SMALL)
    assert tree(tmp_path) == before
    (tmp_path / "FORMAT").write_text(written)
    with BlockStore.open(tmp_path, **SMALL) as store:
        assert store.get(key_of(1)) == bytes_of(1)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_path_that_cannot_be_a_directory_is_an_operating_system_error(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreIOError, match="cannot be made or written") as caught:
        BlockStore.open(tmp_path / "file" / below, **SMALL)
    assert caught.value.errno is not None
    assert (tmp_path / "file").read_text() == "not a directory"


@pytest.mark.parametrize(
    ("setting", "value", "named", "error"),
    [
        ("policy", "belady", "policy = belady.*lru", ConfigError),
        (
            "write_policy",
            "sometimes",
            "write_policy = sometimes.*write_through_selective or write_back",
            ConfigError,
        ),
        (
            "prefetch_policy",
            "never",
            "prefetch_policy = never.*best_effort, timeout or wait_complete",
            ConfigError,
        ),
        ("io_workers", 0, "io_workers = 0.*1 to 64", ConfigError),
        ("io_workers", 65, "io_workers = 65.*1 to 64", ConfigError),
        ("io_workers", -1, "io_workers = -1", InvalidArgumentError),
        ("l2", "a lot", "a lot", InvalidArgumentError),
        ("l2", -1, "-1", InvalidArgumentError),
        ("l3", 2**64, str(2**64), InvalidArgumentError),
        ("l3", 4096, "4096.*at least", ConfigError),
        ("free_reserve", "1 parsec", "1 parsec", InvalidArgumentError),
        ("l3_read_limit", 0, "l3_read_limit = 0.*none for no limit", ConfigError),
        ("l3_write_limit", "fast", "fast", InvalidArgumentError),
        ("prefetch_timeout", -1.0, "-1", InvalidArgumentError),
        ("prefetch_timeout", float("nan"), "NaN", InvalidArgumentError),
    ],
)
@pytest.mark.parametrize("opened", [BlockStore.open, Store.open])
def test_settings_that_cannot_be_are_named(  # noqa: PLR0917 (pytest passes them by name)
    tmp_path: Path,
    opened: Callable[..., Any],
    setting: str,
    value: object,
    named: str,
    error: type[KvlabError],
) -> None:
    with pytest.raises(error, match=named):
        opened(tmp_path / "store", **{**SMALL, setting: value})
    # Nothing was made that keeps a right call from working.
    opened(tmp_path / "store", **SMALL).close()


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_keys_of_another_length_are_refused(key: bytes) -> None:
    with BlockStore.open(l2="1MiB") as store:
        for call in (
            lambda: store.put(key, b"data"),
            lambda: store.put(key_of(1), b"data", parent=key),
            lambda: store.get(key),
            lambda: key in store,
            lambda: store.lookup([key_of(1), key]),
            lambda: store.remove([key]),
            lambda: store.prefetch([key]),
        ):
            with pytest.raises(InvalidArgumentError, match=f"32 bytes, got {len(key)}"):
                call()
        with pytest.raises(InvalidArgumentError, match="got 0 bytes"):
            store.put(key_of(1), b"")
        assert store.stats()["l2"]["runs"] == 0


def test_waits_of_any_length_are_understood() -> None:
    with BlockStore.open(l2="1MiB") as store:
        for timeout in (0.0, 1e18, float("inf")):
            store.flush(timeout)
            assert store.prefetch([key_of(1)]).wait(timeout)
        for timeout in (-1.0, float("nan"), float("-inf")):
            with pytest.raises(InvalidArgumentError, match="give 0 or more seconds"):
                store.flush(timeout)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = BlockStore.open(tmp_path / "store", **SMALL)
    store.close()
    store.close()
    for call in (
        lambda: store.put(key_of(1), b"data"),
        lambda: store.get(key_of(1)),
        lambda: store.lookup([]),
        lambda: key_of(1) in store,
        lambda: store.remove([]),
        lambda: store.prefetch([]),
        store.flush,
    ):
        with pytest.raises(StoreClosedError, match="open it again"):
            call()
    assert store.stats()["l2"]["runs"] == 0


FORKED = """
import os, sys, warnings
from kvlab import BlockStore, ForkedProcessError, KvLayout, Store
warnings.simplefilter("ignore")  # Python warns of forks beside threads
settings = dict(l2="1MiB", l3="1MiB", free_reserve=0)
blocks = BlockStore.open(sys.argv[1] + "/a", **settings)
store = Store.open(sys.argv[1] + "/b", l1="1MiB", **settings)
cache = store.prefix_cache(KvLayout([(1, 2, 1, 2)], element_bytes=1))
request = cache.begin([1, 2, 3], bytes(32))
buffer = cache.lease(64)
key = bytes(31) + b"k"
child = os.fork()
if child == 0:
    for call in (
        lambda: blocks.put(key, b"data"), lambda: blocks.get(key), blocks.flush, blocks.close, blocks.stats,
        lambda: cache.begin([1, 2, 3], bytes(32)), lambda: cache.lease(8), cache.flush, cache.evict,
        lambda: request.restore(buffer), lambda: request.commit([1, 2, 3], buffer), request.fork,
        lambda: cache.prefetch([1, 2, 3], bytes(32)), store.flush, store.evict, store.clear, store.close, store.stats,
    ):
        try:
            call()
        except ForkedProcessError as error:
            assert str(os.getpid()) in str(error) and str(os.getppid()) in str(error)
        else:
            os._exit(3)
    sys.exit(0)  # the whole end of an interpreter: atexit, then every object is dropped
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
assert blocks.put(key, b"data") and blocks.get(key) == b"data"
blocks.flush()
store.close()
blocks.close()
print("fine")
"""


def test_a_forked_child_is_refused_and_ends_and_the_parent_goes_on(tmp_path: Path) -> None:
    output, errors = python(FORKED, tmp_path).communicate(timeout=60)
    assert output.split() == ["0", "fine"], errors
    with BlockStore.open(tmp_path / "a", **SMALL) as store:
        assert store.get(bytes(31) + b"k") == b"data"


LEFT_OPEN = """
import sys
sys.path.insert(0, sys.argv[2])
from kvlab import BlockStore
from test_block_store import SMALL, bytes_of, key_of
store = BlockStore.open(sys.argv[1], **SMALL)
cycle = [store]
cycle.append(cycle)
for name in range(3):
    store.put(key_of(name), bytes_of(name))
store.flush()
for name in range(3, 6):
    store.put(key_of(name), bytes_of(name))
"""


def test_an_interpreter_that_ends_with_an_open_store_drains_it(tmp_path: Path) -> None:
    process = python(LEFT_OPEN, tmp_path / "store", Path(__file__).parent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    with BlockStore.open(tmp_path / "store", **SMALL) as store:
        recovery = store.recovery()
        assert recovery is not None
        assert recovery["clean"]
        for name in range(6):
            assert store.get(key_of(name)) == bytes_of(name)


def test_many_at_once(tmp_path: Path) -> None:
    keys = [key_of(name) for name in range(40)]
    blocks = [bytes_of(name) for name in range(40)]
    with BlockStore.open(tmp_path, l2=0, l3="64MiB", free_reserve=0) as store:
        for key, block in zip(keys, blocks, strict=True):
            assert store.put(key, block)
        store.flush()
        missing = key_of(99)
        wanted = [*keys, missing, *keys[::-3]]
        expected = [*blocks, None, *blocks[::-3]]
        assert store.get_many(wanted) == expected
        assert store.stats()["l3"]["joined_reads"] > 20
        buffers = [bytearray(90_000) for _ in wanted]
        lengths = store.get_into(wanted, buffers)
        assert lengths == [None if block is None else len(block) for block in expected]
        for held, buffer in zip(expected, buffers, strict=True):
            assert held is None or buffer[: len(held)] == held
        assert store.get_many([]) == []
        assert store.get_into([], []) == []


def test_buffers_that_cannot_be_filled(tmp_path: Path) -> None:
    with BlockStore.open(tmp_path, l2="1MiB", l3="16MiB", free_reserve=0) as store:
        key, block = key_of(1), bytes_of(1)
        assert store.put(key, block)
        good = bytearray(90_000)
        with pytest.raises(InvalidArgumentError, match="1 keys and 2 buffers"):
            store.get_into([key], [good, good])
        with pytest.raises(InvalidArgumentError, match="the buffer for block"):
            store.get_into([key, key], [good, bytearray(len(block) - 1)])
        with pytest.raises(InvalidArgumentError, match="buffer 1 is read-only"):
            store.get_into([key, key], [good, block])
        with pytest.raises(InvalidArgumentError, match="buffer 0 is read-only or not contiguous"):
            store.get_into([key], [memoryview(good)[::2]])
        with pytest.raises(InvalidArgumentError):
            store.get_into([key[:-1]], [good])
        assert good == bytearray(90_000)
        assert store.get_into([key_of(2)], [bytearray()]) == [None]
    with pytest.raises(StoreClosedError):
        store.get_many([key])
    with pytest.raises(StoreClosedError):
        store.get_into([key], [good])
