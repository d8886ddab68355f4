"""A new process finds what an earlier one left, after a clean end and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import attach, extended, forward, hits, live_cache, open_store, same_rows
from tiny_models import build, prompt

WRITER = Path(__file__).with_name("restart_writer.py")


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_new_process_restores_what_another_one_wrote(end: str, tmp_path: Path) -> None:
    arguments = [sys.executable, str(WRITER), str(tmp_path), end]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == (0 if end == "close" else -signal.SIGKILL), done.stderr
    written: dict[str, Any] = json.loads(done.stdout)
    model, ids = build("llama"), prompt(100)
    second = extended(ids, prompt(30, seed=1))
    with open_store(tmp_path) as store, attach(model, store) as session:
        recovery = store.recovery()
        assert recovery is not None
        assert recovery["clean"] == (end == "close")
        assert written["pid"] != os.getpid()
        restored = session.prefill(second, keep=False)
        assert hits(restored.report) == (0, 0, 96)
        live = live_cache(model, ids, 96)
        assert torch.equal(restored.logits, forward(model, second[:, 96:], live))
        assert same_rows(restored.cache, live, 130)
