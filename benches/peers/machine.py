"""What the figures were measured on: processor, kernel, file system; no names of hosts or places."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TypedDict

import torch

import kvlab


class Machine(TypedDict):
    """For JSON and the text below the table."""

    cpu: str
    cpus: int
    memory_gib: float
    kernel: str
    file_system: str
    python: str
    torch: str
    kvlab: dict[str, str]


def describe(directory: Path) -> Machine:
    """Of this machine, and of the file system that a directory is on."""
    return Machine(
        cpu=_field(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        cpus=os.cpu_count() or 0,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        file_system=_file_system(directory),
        python=platform.python_version(),
        torch=str(torch.__version__),
        kvlab=kvlab.build_info(),
    )


def _field(path: Path, name: str) -> str:
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _file_system(directory: Path) -> str:
    """The type of the longest mount point above a directory."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = "", "unknown"
    place = directory.resolve()
    for line in mounts.read_text().splitlines():
        _, point, found, *_ = line.split()
        if place.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return kind
