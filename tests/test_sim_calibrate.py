"""`kvlab.sim.calibrate` on a tiny model, and the file of costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.sim import cost_file


def test_costs_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    cost_file.save(cost_file.ASSUMED, path)
    assert cost_file.load(path) == cost_file.ASSUMED


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("kvlab_costs",), 2, "kvlab_costs: is not 1"),
        (("forward", "seconds_per_token"), -1, "forward.seconds_per_token: is -1, expected a number from 0 on"),
        (("forward",), None, "forward: is None, expected an object"),
        (("read", "l2", "bytes_per_second"), 0, "read.l2.bytes_per_second: is 0, expected a number from 1"),
        (("read", "l3", "latency_seconds"), "slow", "read.l3.latency_seconds: is 'slow'"),
        (("overlap",), 1.5, "overlap: is 1.5, expected a number from 0 to 1"),
        (("token_bytes",), True, "token_bytes: is True"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_costs_names_its_field(
    where: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    content = cost_file.as_dict(cost_file.ASSUMED)
    inner = content
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        cost_file.load(path)
    assert message in str(raised.value)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no JSON"):
        cost_file.load(path)


def test_a_model_is_measured_and_what_is_learnt_predicts(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the 'hf' extra is not installed")
    from kvlab.sim.calibrate import calibrate, steps
    from tiny_models import build

    model = build("llama")
    done: list[int] = []
    found = calibrate(
        model, tmp_path / "store", source="tiny", tokens=128, rounds=3, progress=done.append
    )
    assert found.measured
    assert done == list(range(1, steps(3) + 1))
    costs = found.costs
    assert costs.token_bytes == 4 * 2 * 2 * 16 * 4  # layers, K and V, heads, dimensions, fp32
    assert sum(costs.prefill) > 0
    assert costs.decode > 0
    assert costs.l2.bandwidth > 0
    assert costs.l3.bandwidth > 0
    assert 0 <= costs.overlap <= 1
    path = tmp_path / "costs.json"
    cost_file.save(found, path)
    assert cost_file.load(path) == found
    for tokens, rounds in ((32, 5), (256, 2), (1 << 20, 5)):
        with pytest.raises(InvalidArgumentError, match=f"tokens = {tokens}"):
            calibrate(model, tmp_path / "other", source="tiny", tokens=tokens, rounds=rounds)
