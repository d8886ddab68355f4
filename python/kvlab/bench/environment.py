"""What a run ran on: versions and the kind of processor, never names, users or paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from kvlab.sim.experiments.artifacts import environment as versions

__all__ = ["environment"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve")


def environment() -> dict[str, Any]:
    """Versions, processor, memory and thread settings."""
    info = _read(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", info, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return {
        **versions(),
        "processor": name.group(1) if name else None,
        "processor_flags": [flag for flag in _FLAGS if flag in present],
        "processors": os.cpu_count(),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _read(path: Path) -> str:
    """The text of a file of the system; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
