"""The mishaps of benches/python/remote_faults.py, with a tiny model: right answers, counters that say what happened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")
import tiny_models

sys.path.insert(0, str(Path(__file__).parent.parent / "benches" / "python"))

import remote_faults

PREFIX = 128


@pytest.fixture(scope="module")
def rig() -> remote_faults.Rig:
    model, ids = tiny_models.build("llama"), tiny_models.prompt(PREFIX + 20)
    return remote_faults.Rig(model, ids, PREFIX, timeout=0.1, chunk=32)


@pytest.mark.parametrize("arm", remote_faults.ARMS, ids=lambda arm: arm.name)
def test_a_mishap_costs_no_answer_and_is_counted(
    rig: remote_faults.Rig, arm: remote_faults.Arm
) -> None:
    outcome = rig.run(arm)
    assert list(remote_faults.wrong(arm, outcome)) == []
    if arm.writes or arm.name.startswith("well"):
        assert outcome.l4_tokens == PREFIX
        assert outcome.state == "closed"
    if "timeouts" in outcome.counts:
        assert outcome.l4_tokens < PREFIX
        assert outcome.state in ("open", "half_open")
