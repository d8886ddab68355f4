"""The notebooks: committed without outputs, and executed for real; what their last cells compute is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvlab.sim import prefix
from kvlab.sim import trace as traces
from kvlab.workload import load
from kvlab.workload.tokens import Characters
from kvlab.workload.trace import write_trace

nbformat: Any = pytest.importorskip("nbformat")
nbclient: Any = pytest.importorskip("nbclient")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(name: str) -> tuple[dict[str, Any], list[str]]:
    """Runs a notebook in a kernel of its own: what its last cell printed, and the modules it imported."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    modules = "import sys\nprint(*sys.modules)"
    notebook.cells.append(nbformat.v4.new_code_cell(modules))
    where = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    told, imported = (
        "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        for cell in notebook.cells[-2:]
    )
    pictures = [
        out
        for cell in notebook.cells
        if cell.cell_type == "code"
        for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]
    assert len(pictures) >= 4
    return json.loads(told), imported.split()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell.id for cell in notebook.cells] == sorted({cell.id for cell in notebook.cells})


@pytest.mark.usefixtures("smollm2")
def test_basic_kv_cache_reuses_all_whole_blocks_and_its_calculator_adds_up() -> None:
    told, _ = execute("01_basic_kv_cache.ipynb")
    prompts, hits = told["prompt_tokens"], told["hit_tokens"]
    # A turn finds what stood before it: the last prompt and all of its answer but the last token.
    answer = 6
    before = [0, *(length + answer - 1 for length in prompts[:-1])]
    assert hits == [known // 16 * 16 for known in before]
    assert told["from_disk_after_restart"] == hits[3] > 0
    assert told["hit_rate"] == pytest.approx(sum(hits) / sum(prompts))
    # All but the block of the last token, in fp32.
    assert told["second_machine"]["tokens"] == 496
    assert told["second_machine"]["megabytes"] == pytest.approx(496 * 46_080 / 1e6, rel=0.01)
    worth, cost = told["worth"], told["hit_cost"]
    without = 30 * 50_000 * 2_000 / told["prefill_speed"] / 3600 * 1.20
    storage = 5_000_000 * 46_080 / 1e9 * 0.10
    assert worth["cost_without"] == pytest.approx(without)
    assert worth["storage"] == pytest.approx(storage)
    assert worth["saved"] == pytest.approx(without * told["hit_rate"] * (1 - cost) - storage)
    assert worth["break_even_hit_rate"] == pytest.approx(storage / (without * (1 - cost)))


def test_policy_analysis_counts_what_the_simulator_counts_and_needs_no_torch(
    tmp_path: Path,
) -> None:
    told, imported = execute("02_policy_analysis.ipynb")
    assert "torch" not in imported
    written = tmp_path / "trace.jsonl"
    write_trace(load(ROOT / "workloads" / "swe_agent.jsonl.gz"), written, Characters())
    trace = traces.load(written, "mooncake", block_tokens=16)

    def hits(policy: str) -> int:
        blocks = round(0.2 * trace.unique_blocks)
        return prefix.run(trace, policy=policy, capacity_blocks=blocks).hits

    oracle = max(hits("belady"), hits("belady_bypass"))
    for policy, percent in told["percent_of_oracle_at_20"].items():
        assert percent == pytest.approx(100 * hits(policy) / oracle, abs=1e-3)
    ideal = prefix.run(trace, capacity_blocks=None).hits
    found = prefix.lru_curve(trace, [told["knee_blocks"]])[0]
    assert found >= 0.95 * ideal
    seconds = told["first_token_seconds"]
    assert seconds["L1 + L2 + L3"] < seconds["L1 only"]
    assert told["prefetch_gain_beside_compute"] > 0.1
    assert told["place_of_lru_in_artifact"] > 1
