"""Memory stays under what was configured while more data than fits goes through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("memory_worker.py")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak RSS is read from /proc")
def test_a_process_without_torch_stays_under_its_memory(tmp_path: Path) -> None:
    arguments = [sys.executable, str(WORKER), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert not seen["torch"]
    assert seen["written"] > 2 * seen["configured"]
    assert seen["restored"] == seen["prompts"]
    assert seen["peak"] < seen["configured"] + (200 << 20)
