"""Runs a toy as a user would."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TOYS = Path(__file__).resolve().parent.parent / "toys"


def quick(name: str, tmp_path: Path) -> dict[str, Any]:
    """The results of a toy's quick run; they can be told, and the picture is there."""
    out = tmp_path / f"{name}.svg"
    command = [sys.executable, str(TOYS / f"{name}.py"), "--quick", "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stderr
    assert out.read_text().count("<path") > 3
    results: dict[str, Any] = json.loads(done.stdout)
    sys.path.insert(0, str(TOYS))
    importlib.import_module(name).tell(results)
    return results
