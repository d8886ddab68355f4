"""The README's example, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.usefixtures("smollm2")
def test_the_example_runs_twice_and_the_second_process_reuses_the_first_ones_prompt(
    tmp_path: Path,
) -> None:
    example, *_ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    # A home of its own, and a system prompt of more than one block.
    example = example.replace("~/.cache/kvlab/store", str(tmp_path / "store"))
    example = example.replace("These are your tools: ...", "Tools: " + "read a file, " * 20)
    example = example.replace("max_new_tokens=64", "max_new_tokens=2")
    path = tmp_path / "example.py"
    path.write_text(example, encoding="utf-8")
    (first, first_again), (second, _) = (hits(run(path)) for _ in range(2))
    assert first == ("0", "0", "0")
    assert int(first_again[0]) >= 64
    assert int(second[2]) >= 64


def hits(printed: str) -> list[tuple[str, str, str]]:
    return re.findall(r"hit_tokens=HitTokens\(l1=(\d+), l2=(\d+), l3=(\d+), l4=0\)", printed)


def run(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
