"""The page cache, the disk's blocks, and one flipped byte: what the bench does to the files of an arm."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

PAGE = mmap.PAGESIZE
WAIT_WRITE_WAIT = 7
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def files(directory: Path) -> list[Path]:
    """Every regular file below a directory."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync(directory: Path) -> None:
    """Writes every file below a directory to stable storage.

    The data of all files first, then one fsync, which commits the journal that their sizes and names are in: one fsync
    for each of hundreds of files would cost what no sensible caller would pay. Nobody else's files are waited for.
    """
    for path in files(directory):
        with _opened(path) as descriptor:
            if _libc.sync_file_range(descriptor, 0, 0, WAIT_WRITE_WAIT):
                raise OSError(ctypes.get_errno(), f"sync_file_range refused {path.name}")
    with _opened(directory) as descriptor:
        os.fsync(descriptor)


def fsync(path: Path) -> None:
    """Writes one file, and its name, to stable storage."""
    for each in (path, path.parent):
        with _opened(each) as descriptor:
            os.fsync(descriptor)


def resident(path: Path) -> int:
    """Bytes of a file in the page cache, by mincore."""
    size = path.stat().st_size
    if size == 0:
        return 0
    with _opened(path) as descriptor:
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"{path.name} cannot be mapped")
    try:
        flags = ctypes.create_string_buffer(-(-size // PAGE))
        if _libc.mincore(address, size, flags):
            raise OSError(ctypes.get_errno(), f"mincore refused {path.name}")
        return sum(byte & 1 for byte in flags.raw) * PAGE
    finally:
        _libc.munmap(address, size)


def drop(directory: Path) -> None:
    """Drops the page cache of every file below a directory, which must have been synced.

    Raises:
        RuntimeError: pages stayed, so that a read would not be cold.
    """
    stayed = 0
    for path in files(directory):
        with _opened(path) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        stayed += resident(path)
    switch = Path("/proc/sys/vm/drop_caches")
    if stayed and os.access(switch, os.W_OK):
        switch.write_text("1\n")
        stayed = sum(resident(path) for path in files(directory))
    if stayed:
        raise RuntimeError(
            f"{stayed} bytes stayed in the page cache, so the read would not be cold"
        )


def allocated(directory: Path) -> int:
    """Bytes that the files take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in files(directory))


def flip(directory: Path, needle: bytes) -> str:
    """Inverts one byte of a file in the middle of where it holds `needle`.

    Returns:
        What was done, for people.

    Raises:
        RuntimeError: no file holds the needle as it is.
    """
    for path in files(directory):
        if path.stat().st_size < len(needle):
            continue
        with _opened(path, os.O_RDWR) as descriptor:
            with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as content:
                at = content.find(needle)
            if at < 0:
                continue
        at += len(needle) // 2
        invert(path, at)
        return f"byte {at} of {path.stat().st_size}"
    raise RuntimeError("no file holds the payload as it is, so no byte of it can be flipped")


def invert(path: Path, at: int) -> None:
    """Inverts the byte of a file at an offset."""
    with _opened(path, os.O_RDWR) as descriptor:
        byte = os.pread(descriptor, 1, at)
        os.pwrite(descriptor, bytes([byte[0] ^ 0xFF]), at)
        os.fsync(descriptor)
