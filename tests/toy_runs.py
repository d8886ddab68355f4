"""Runs a toy as `python toys/NAME.py` does, but in this process: torch and the toys' modules are there already."""

from __future__ import annotations

import importlib
import io
import json
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

TOYS = Path(__file__).resolve().parent.parent / "toys"


def quick(name: str, tmp_path: Path) -> dict[str, Any]:
    """The results of a toy's quick run; they can be told, and the picture is there."""
    toy, out = TOYS / f"{name}.py", tmp_path / f"{name}.svg"
    printed, said = io.StringIO(), io.StringIO()
    command = [str(toy), "--quick", "--json", "--out", str(out)]
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.object(sys, "path", [str(TOYS), *sys.path]),
    ):
        with redirect_stdout(printed), redirect_stderr(said):
            runpy.run_path(str(toy), run_name="__main__")
        results: dict[str, Any] = json.loads(printed.getvalue())
        importlib.import_module(name).tell(results)
    assert str(out) in said.getvalue()
    assert out.read_text(encoding="utf-8").count("<path") > 3
    return results
