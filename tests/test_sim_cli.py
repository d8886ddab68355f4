"""`kvlab sim` through its command line, on the small traces of the fixtures."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kv_pattern import LAYOUT, serve
from kvlab import Store, cli
from kvlab.cli.sim import COMMANDS
from kvlab.sim.cost_file import ASSUMED, save
from kvlab.sim.experiments.table import packed, read_results, to_json

TRACES = Path(__file__).parent / "fixtures" / "traces"
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
MOONCAKE = ["--trace", str(TRACES / "mooncake.jsonl"), "--format", "mooncake"]
WEKA = ["--trace", str(TRACES / "weka.jsonl"), "--format", "weka"]
AZURE = ["--trace", str(TRACES / "azure.csv"), "--format", "azure"]
AGENTS = ["--workload", "multi_turn_tools", "--option", "sessions=4", "--option", "turns=2"]
REQUIRED = {
    "requests", "block_refs", "unique_blocks", "hits", "hit_ratio", "hit_tokens", "recomputed_tokens",
    "evictions", "events_per_second",
}  # fmt: skip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sim(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `kvlab sim ...` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["sim", *map(str, arguments)])
        code = ended.value.code
        captured = capsys.readouterr()
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return run


def as_json(sim: Run, *arguments: object) -> Any:
    code, out, err = sim(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_the_group_lists_its_commands_and_each_has_json() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kvlab", "sim", "--help"], capture_output=True, text=True, check=True
    )
    for name in COMMANDS:
        assert f"  {name} " in result.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_json(name: str, sim: Run) -> None:
    code, out, _ = sim(name, "--help")
    assert code == 0
    assert "--json" in out


def test_nothing_of_the_lab_is_loaded_before_a_command_needs_it() -> None:
    code = (
        "import kvlab, kvlab.cli.sim, kvlab.cli.sim_run, kvlab.cli.sim_sweep, sys;"
        "print([m for m in sys.modules if m.startswith(('kvlab.sim', 'matplotlib', 'torch', 'numpy'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["mooncake", "weka", "bailian", "ragpulse"])
def test_run_prints_what_was_counted_of_every_format(name: str, sim: Run) -> None:
    source = ["--trace", TRACES / f"{name}.jsonl", "--format", name]
    ideal = as_json(sim, "run", *source, "--capacity-blocks", "inf")
    assert ideal.keys() >= REQUIRED
    assert ideal["kind"] == "simulated"
    assert ideal["hits"] == ideal["block_refs"] - ideal["unique_blocks"] or name == "ragpulse"
    assert ideal["hit_tokens"] + ideal["recomputed_tokens"] == ideal["tokens"]
    small = as_json(sim, "run", *source, "--capacity-blocks", 8, "--oracle")
    assert small["hits"] <= min(ideal["hits"], small["oracle_hits"])
    assert small["percent_of_oracle"] <= 100


def test_pages_of_a_trace_are_the_objects_of_flat_mode(sim: Run) -> None:
    found = {
        mode: as_json(sim, "run", *WEKA, "--mode", mode, "--capacity-blocks", "20%")
        for mode in ("page", "flat", "prefix")
    }
    assert found["page"]["hits"] == found["flat"]["hits"]
    assert found["page"].keys() >= REQUIRED
    assert found["prefix"]["hits"] >= found["flat"]["hits"] > 0


def test_run_predicts_times_of_three_tiers(sim: Run) -> None:
    one = as_json(sim, "run", *AGENTS, "--capacity-blocks", "5%", "--l3-blocks", 0)
    three = as_json(
        sim, "run", *AGENTS, "--capacity-blocks", "5%", "--l2-blocks", "5%", "--l3-blocks", "inf"
    )
    assert sum(three["tiers"]["hits"]) > sum(one["tiers"]["hits"])
    mean = "predicted_first_token_seconds"
    assert three["tiers"][mean]["mean"] < one["tiers"][mean]["mean"]
    assert "assumed, not measured" in three["tiers"]["costs"]


def test_a_written_page_trace_runs_like_its_workload(sim: Run, tmp_path: Path) -> None:
    path = tmp_path / "rag.jsonl"
    written = as_json(
        sim, "trace", "--workload", "rag_burst", "--length", 120, "--num-pages", 40, "--out", path
    )
    assert (written["rows"], written["pages"]) == (120, 40)
    code, _, _ = sim(
        "trace",
        "--workload",
        "rag_burst",
        "--quant",
        "fp16,layers:0-7=int4",
        "--out",
        tmp_path / "q",
    )
    assert code == 0
    half = sum(
        json.loads(line).get("scheme") == "int4"
        for line in (tmp_path / "q").read_text().splitlines()
    )
    assert half == 48
    scene = [
        "--mode",
        "page",
        "--scenario",
        "small_fp16_prefetch",
        "--policy",
        "regret_aware:weight=0",
    ]
    row = as_json(sim, "run", "--trace", path, "--format", "page", *scene)
    assert row["accesses"] == 120
    whole = as_json(sim, "run", "--workload", "rag_burst", *scene)
    assert whole["misses"] <= whole["accesses"]
    assert 0 < whole["percent_of_oracle"] <= 100


def test_policies_say_where_they_run(sim: Run) -> None:
    found = {each["name"]: each for each in as_json(sim, "policies")["policies"]}
    assert found["lru"]["live"]
    assert set(found["lru"]["modes"]) == {"prefix", "flat", "page"}
    assert not found["belady"]["live"]
    assert "knows the future" in found["belady"]["note"]


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def values(row: dict[str, Any]) -> dict[str, Any]:
    """What a row has; a file says null where it has nothing."""
    return {name: value for name, value in row.items() if value is not None}


RAGPULSE = ["--trace", str(TRACES / "ragpulse.jsonl"), "--format", "ragpulse"]
REPEATED = [
    ["sweep", *WEKA, "--policies", "lru,sieve", "--capacities", "5%,20%,inf"],
    ["sweep", *AGENTS, "--policies", "lru,gdsf", "--capacities", "10%", "--seeds", "1,2"],
    ["sweep", "--mode", "page", "--scenarios", "small_fp16_prefetch,cxl_like_fp16", "--workloads",
     "rag_burst,prefetch_friendly", "--policies", "lru,predictive", "--seeds", "3,4"],
    ["ablate", "--grid", "weight=0,6", "--grid", "horizon=8", "--scenarios", "medium", "--workloads",
     "adversarial_burst:length=200", "--seeds", "7,42"],
    ["sweep", *RAGPULSE, "--option", f"lengths={TRACES / 'ragpulse_lengths.json'}", "--policies", "lru"],
    ["mrc", *WEKA, "--policies", "lru,s3-fifo", "--points", "5", "--rate", "0.5", "--seeds", "0,1"],
    ["advise", *AGENTS, "--memory", "1GiB", "--disk", "20GiB", "--policies", "lru,sieve", "--resamples", "100"],
]  # fmt: skip


@pytest.mark.parametrize(
    "command", REPEATED, ids=[f"{row[0]}-{at}" for at, row in enumerate(REPEATED)]
)
def test_the_same_run_leaves_the_same_bytes_and_names_no_machine(
    command: list[str], sim: Run, tmp_path: Path
) -> None:
    code, out, err = sim(*command, "--out", tmp_path, "--workers", 1)
    assert code == 0, err
    assert "simulated" in out
    one = files_of(tmp_path)
    assert one.keys() >= {
        "config.json", "results.json", "results.csv", "summary.csv", "metadata.json", "report.html",
    }  # fmt: skip
    text = sim(*command, "--workers", 2, "--json")[1]
    printed = json.loads(text)
    assert to_json(packed(printed)) == one["results.json"].decode()
    results, rows = read_results(tmp_path)
    assert {**printed, "summary": None, "rows": None} == {**results, "summary": None, "rows": None}
    assert [values(row) for row in printed["rows"]] == [values(row) for row in rows]
    (tmp_path / "printed").write_text(text, encoding="utf-8")
    assert as_json(sim, "compare", tmp_path, tmp_path / "printed")["deltas"] == []
    text = b"".join(one.values()).decode()
    for private in (str(tmp_path), str(TRACES.parent), str(Path.home()), socket.gethostname()):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text), private
    assert all(
        "simulated" in content.decode()
        for name, content in one.items()
        if name.endswith((".csv", ".svg", ".html"))
    )
    assert results["kind"] == "simulated"
    assert all("percent_of_oracle" in row for row in printed["rows"])
    check_page(one["report.html"].decode())


def check_page(page: str) -> None:
    """It fetches nothing, suits both themes and small screens."""
    assert "<script" not in page
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert links == []
    assert "url(http" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_several_seeds_come_with_mean_and_spread(sim: Run) -> None:
    results = as_json(
        sim, "sweep", "--mode", "page", "--scenarios", "small_fp16_no_prefetch", "--workloads", "rag_burst",
        "--policies", "lru", "--seeds", "1,2,3",
    )  # fmt: skip
    (summary,) = results["summary"]
    rates = [row["hit_rate"] for row in results["rows"]]
    assert summary["n"] == 3
    assert summary["hit_rate"] == pytest.approx(sum(rates) / 3)
    assert min(rates) < summary["hit_rate"] < max(rates)
    assert summary["hit_rate_sd"] > 0


def test_shares_of_traces_of_several_seeds_are_one_size(sim: Run) -> None:
    results = as_json(sim, *REPEATED[1])
    sizes = {row["capacity_blocks"] for row in results["rows"]}
    assert len(sizes) == 2
    assert {(row["policy"], row["n"]) for row in results["summary"]} == {
        (name, 2) for name in ("lru", "gdsf", "belady", "belady_bypass")
    }
    for row in results["summary"]:
        assert row["capacity"] == "10%"
        assert min(sizes) < row["capacity_blocks"] < max(sizes)


EVERY_ROW = {
    "hit_ratio", "misses", "mean_latency_ms", "bytes_moved", "demand_bytes", "prefetch_bytes", "useful_prefetches",
    "wasted_prefetches", "useful_prefetch_ratio", "evictions", "percent_of_oracle", "tier_hit_rates.l1",
    "peak_bytes.l1",
}  # fmt: skip


def test_a_sweep_of_requests_predicts_times_and_counts_tiers(sim: Run, tmp_path: Path) -> None:
    sweep = ["sweep", *AGENTS, "--capacities", "5%,20%"]
    one = as_json(sim, *sweep, "--policies", "lru,sieve,lru_root_first,oracle_cost")
    three = as_json(
        sim, *sweep, "--policies", "lru,sieve", "--l2-blocks", "5%", "--l3-blocks", "inf"
    )
    alone = {"lru_root_first", "oracle_cost", "belady", "belady_bypass"}
    for row in one["rows"]:
        assert row["misses"] == row["block_refs"] - row["hits"]
        assert (row.keys() >= EVERY_ROW) == (row["policy"] not in alone)
        assert 0 < row["percent_of_oracle_cost"] <= 100
        run = as_json(
            sim,
            "run",
            *AGENTS,
            "--policy",
            row["policy"],
            "--capacity-blocks",
            row["capacity_blocks"],
        )
        assert (row["hits"], row["evictions"]) == (run["hits"], run["evictions"])
    lower = {row["policy"]: row for row in three["rows"] if row["capacity"] == "20%"}
    upper = {row["policy"]: row for row in one["rows"] if row["capacity"] == "20%"}
    for name in ("lru", "sieve"):
        rates = [lower[name][f"tier_hit_rates.{tier}"] for tier in ("l1", "l2", "l3")]
        assert sum(rates) == pytest.approx(lower[name]["hit_ratio"])
        assert min(rates) > 0
        assert lower[name]["mean_latency_ms"] < upper[name]["mean_latency_ms"]
        assert lower[name]["peak_bytes.l3"] > lower[name]["peak_bytes.l2"] > 0
        # What L3 holds is all there is to find.
        assert lower[name]["percent_of_oracle"] == pytest.approx(100)
    assert "assumed, not measured" in three["findings"][-1]

    costs = tmp_path / "costs.json"
    save(
        replace(
            ASSUMED, source="twice", costs=replace(ASSUMED.costs, prefill=(4e-2, 2.4e-3, 8e-7))
        ),
        costs,
    )
    slower = as_json(sim, *sweep, "--policies", "lru,sieve", "--costs", costs)
    assert slower["config"]["costs"]["source"] == "twice"
    for row in slower["rows"]:
        if row["policy"] in upper and row["capacity"] == "20%" and row["policy"] not in alone:
            assert row["mean_latency_ms"] > 1.5 * upper[row["policy"]]["mean_latency_ms"]


def test_the_artifacts_are_read_by_compare(sim: Run) -> None:
    directories = sorted(path.parent for path in ARTIFACTS.glob("*/results.json"))
    assert len(directories) == 7
    for path in directories:
        found = as_json(sim, "compare", path, path)
        assert found["rows"] > 20, path
        assert not found["deltas"]


def test_smaller_numbers_hit_more_and_some_layers_less_than_all(sim: Run) -> None:
    results = as_json(
        sim, "sweep", "--mode", "page", "--scenarios", "small_fp16_no_prefetch", "--workloads", "rag_burst",
        "--policies", "lru", "--quant", "fp16", "--quant", "fp16,layers:0-7=int4", "--quant", "int4",
    )  # fmt: skip
    rates = [row["hit_rate"] for row in results["rows"]]
    assert rates == sorted(rates)
    assert rates[0] < rates[1] < rates[2]
    names = [row["scenario"] for row in results["rows"]]
    assert names[1] == "small_fp16_no_prefetch+fp16,layers:0-7=int4"


def test_page_policies_take_parameters(sim: Run) -> None:
    results = as_json(
        sim, "sweep", "--mode", "page", "--scenarios", "medium", "--workloads", "rag_burst",
        "--policies", "lru,regret_aware:weight=0,horizon=8,regret_aware:weight=6,horizon=8,per_tier:lru",
    )  # fmt: skip
    names = [row["policy"] for row in results["rows"]]
    assert names == [
        "lru",
        "regret_aware:weight=0,horizon=8",
        "regret_aware:weight=6,horizon=8",
        "per_tier:lru",
    ]


def test_plots_are_drawn_anew_from_results(sim: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")
    assert sim(*REPEATED[0], "--out", tmp_path)[0] == 0
    before = files_of(tmp_path)
    assert {"plots/token_hit_ratio.svg", "plots/percent_of_oracle.svg"} <= before.keys()
    for path in [*(tmp_path / "plots").iterdir(), tmp_path / "report.html"]:
        path.unlink()
    assert "report.html" in as_json(sim, "plots", tmp_path)["files"]
    assert files_of(tmp_path) == before


def test_the_curve_of_lru_is_what_runs_count(sim: Run) -> None:
    curve = as_json(sim, "mrc", *WEKA, "--points", 4, "--rate", 0.3)
    exact = [row for row in curve["rows"] if row["policy"] == "lru" and row["seed"] == 0]
    assert len(exact) == 4
    for row in exact:
        assert row["method"] == "exact"
        run = as_json(sim, "run", *WEKA, "--capacity-blocks", row["capacity_blocks"])
        assert row["hit_ratio"] == pytest.approx(run["hit_ratio"])


def test_advice_stays_within_its_budget_and_says_how_sure_it_is(sim: Run) -> None:
    found = as_json(sim, *REPEATED[-1])
    advice = found["advice"]
    assert advice["policy"] in {"lru", "sieve"}
    assert 0 < advice["l1_bytes"] + advice["l2_bytes"] <= 1 << 30
    assert 0 <= advice["l3_bytes"] <= 20 << 30
    assert advice["confidence"]["level"] in {"high", "medium", "low"}
    low, high = advice["confidence"]["interval_percent"]
    assert low <= high
    assert advice["expected"]["hit_tokens"] > 0
    assert advice["expected"]["predicted_seconds_saved"] > 0
    tried = {
        (row["policy"], row["l1_blocks"], row["l2_blocks"], row["l3_blocks"])
        for row in found["rows"]
    }
    assert len(tried) == len(found["rows"])
    assert {policy for policy, *_ in tried} == {"lru", "sieve"}


def test_advice_takes_no_more_disk_than_there_is_to_gain(sim: Run) -> None:
    found = as_json(
        sim, "advise", *AGENTS, "--memory", "1GiB", "--disk", "1TiB", "--policies", "lru"
    )
    assert found["advice"]["l3_bytes"] < 1 << 40
    ratios = {row["token_hit_ratio"] for row in found["rows"] if row["l3_blocks"]}
    assert max(ratios) - min(ratios) < 0.01


def test_two_sessions_are_too_few_to_be_sure_of_a_policy(sim: Run) -> None:
    found = as_json(sim, "advise", *WEKA, "--memory", "4GiB", "--resamples", "100")
    assert found["advice"]["policy"] == "lru"
    assert found["advice"]["confidence"]["level"] == "low"


def test_what_a_store_recorded_is_advised_on(sim: Run, tmp_path: Path) -> None:
    file = tmp_path / "capture"
    with Store.open(None, l1="4MiB", l2=0, capture=file) as store:
        cache = store.prefix_cache(LAYOUT)
        for turn in range(6):
            serve(cache, b"n" * 32, list(range(5 * (4 + turn) + 1)))
    source = ["--trace", file, "--format", "capture"]
    run = as_json(sim, "run", *source)
    assert (run["requests"], run["hits"]) == (6, 4 + 5 + 6 + 7 + 8)
    found = as_json(sim, "advise", *source, "--memory", "1GiB", "--model", "llama-3.1-8b")
    assert found["config"]["token_bytes"] == 131072
    assert found["advice"]["expected"]["hit_tokens"] > 0


def test_compare_tells_worse_from_better(sim: Run, tmp_path: Path) -> None:
    for name, capacity in (("small", 200), ("large", 1500)):
        _, out, _ = sim("run", *WEKA, "--capacity-blocks", capacity, "--json")
        row = json.loads(out) | {"capacity_blocks": 0}
        (tmp_path / name).write_text(json.dumps(row), encoding="utf-8")
    small, large = tmp_path / "small", tmp_path / "large"
    assert as_json(sim, "compare", small, small)["deltas"] == []
    better = as_json(sim, "compare", small, large, "--metrics", "hit_ratio")
    assert [delta["worse"] for delta in better["deltas"]] == [False]
    code, out, _ = sim("compare", large, small)
    assert code == 3
    assert "WORSE" in out
    assert sim("compare", large, small, "--threshold", 1000)[0] == 0


WRONG: list[tuple[list[str], str]] = [
    (["run"], "either --trace with --format, or --workload"),
    (["run", "--trace", "x", "--workload", "y"], "either --trace with --format, or --workload"),
    (["run", "--trace", "x"], "give its --format, one of: .*mooncake"),
    (["run", "--trace", "nowhere.jsonl", "--format", "mooncake"], "no trace nowhere.jsonl"),
    (["run", "--trace", str(TRACES / "mooncake.jsonl"), "--format", "moon"], "moon: use one of: .*weka"),
    (["run", *MOONCAKE, "--mode", "tree"], "--mode tree: use one of: prefix, page, flat"),
    (["run", *MOONCAKE, "--policy", "best"], "best: use one of: lru, slru"),
    (["run", *MOONCAKE, "--mode", "page", "--policy", "best"], "best.*lru"),
    (["run", *MOONCAKE, "--capacity-blocks", "0"], "capacity of 0: give blocks from 1 on"),
    (["run", *MOONCAKE, "--capacity-blocks", "-5"], "capacity of -5"),
    (["run", *MOONCAKE, "--capacity-blocks", "101%"], "capacity of 101%"),
    (["run", *MOONCAKE, "--capacity-blocks", "many"], "capacity of many"),
    (["run", *MOONCAKE, "--option", "block_tokens"], "write it as key=value"),
    (["run", *MOONCAKE, "--option", "blocks=1"], "blocks = 1: format mooncake has block_tokens"),
    (["run", *MOONCAKE, "--mode", "flat", "--l3-blocks", "5"], "--l3-blocks and --costs are for mode prefix"),
    (["run", *MOONCAKE, "--costs", "nowhere.json"], "--costs nowhere.json: No such file"),
    (["run", *MOONCAKE, "--scenario", "medium"], "--scenario and format page are for mode page"),
    (["run", "--workload", "chat"], "chat: use one of: shared_system_prompt|chat: use one of: multi_turn"),
    (["run", "--workload", "rag_reordered", "--option", "users=3"], "users = 3: workload rag_reordered has"),
    (["run", "--trace", str(TRACES / "azure.csv"), "--format", "azure"], "nothing that could hit"),
    (["run", *AZURE, "--mode", "page"], "nothing that could hit"),
    (["mrc", *AZURE], "nothing that could hit"),
    (["sweep", *AZURE], "nothing that could hit"),
    (["advise", *AZURE, "--memory", "1GiB"], "nothing that could hit"),
    (["sweep", *MOONCAKE, "--policies", "lru,best"], "--policies best: use one of: lru"),
    (["sweep", *MOONCAKE, "--capacities", "1,x"], "capacity of x"),
    (["sweep", *MOONCAKE, "--seeds", "1"], "a trace in a file has none"),
    (["sweep", "--mode", "page", "--scenarios", "huge"], "huge: use one of: small_fp16_prefetch"),
    (["sweep", "--mode", "page", "--quant", "fp4"], "fp4: use one of: fp16"),
    (["sweep", *MOONCAKE, "--quant", "int4"], "--quant: for mode page"),
    (["sweep", "--mode", "page", "--workloads", "chat"], "chat: use one of: "),
    (["sweep", "--mode", "page", "--policies", "best"], "best: use one of: lru"),
    (["sweep", "--mode", "page", "--seeds", "-1"], "--seeds -1: give whole numbers"),
    (["sweep", "--mode", "page", "--engine", "fast"], "--engine fast: use one of: exact, compat"),
    (["sweep", "--mode", "page", *MOONCAKE], "mode page takes --workloads"),
    (["sweep", *MOONCAKE, "--mode", "flat", "--costs", "x.json"], "--l3-blocks and --costs are for mode prefix"),
    (["sweep", "--mode", "page", "--l2-blocks", "5"], "--l3-blocks and --costs are for mode prefix"),
    (["sweep", *MOONCAKE, "--costs", "nowhere.json"], "--costs nowhere.json: No such file"),
    (["sweep", *MOONCAKE, "--l2-blocks", "-1"], "capacity of -1"),
    (["sweep", *MOONCAKE, "--policies", "lru_root_first", "--l2-blocks", "5"], "has no form for L2 and L3"),
    (["mrc", *MOONCAKE, "--rate", "2"], "above 0 and at most 1, got 2"),
    (["mrc", *MOONCAKE, "--mode", "page"], "--mode page: use one of: prefix, flat"),
    (["ablate", "--grid", "weight"], "--grid weight: write it as"),
    (["ablate", "--grid", "weights=1"], "no such parameter"),
    (["ablate", "--policy", "best"], "best: use one of: lru"),
    (["ablate", "--workloads", "rag_burst:length=x"], "write 'length=x' as name=number"),
    (["advise", *MOONCAKE, "--memory", "1KiB"], "1024 bytes holds no block"),
    (["advise", *MOONCAKE, "--memory", "much"], "much"),
    (["trace", "--workload", "chat"], "chat: use one of: "),
    (["trace", "--workload", "rag_burst", "--quant", "fp4"], "fp4: use one of: fp16"),
    (["trace", "--workload", "rag_burst", "--out", "/nowhere/x.jsonl"], "--out /nowhere/x.jsonl: No such"),
    (["compare", "nowhere", "nowhere"], "nowhere: there is no such file"),
    (["compare", str(TRACES / "weka.jsonl"), str(TRACES / "weka.jsonl")], "is no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=[" ".join(row[0][-2:]) for row in WRONG]
)
def test_what_cannot_be_is_one_line_that_says_what_can(
    arguments: list[str], message: str, sim: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVLAB_TRACES", raising=False)
    code, out, err = sim(*arguments)
    assert code == 1, out
    (line,) = [
        line
        for line in err.splitlines()
        if line.startswith("kvlab: ") and " ..." not in line and "done in" not in line
    ]
    assert re.search(message, line), line
    assert not out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1: is no JSON"),
        ('{"timestamp": 0, "input_length": 5}\n', "line 1, hash_ids: is missing"),
        ('{"timestamp": 0, "input_length": -5, "hash_ids": []}\n', "line 1, input_length: is -5"),
        ("", "has no request"),
    ],
)
def test_a_malformed_row_names_file_line_and_field(
    text: str, message: str, sim: Run, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    code, _, err = sim("run", "--trace", path, "--format", "mooncake")
    assert code == 1
    assert f"{path}" in err
    assert message in err


def test_results_without_a_row_in_common_are_refused(sim: Run, tmp_path: Path) -> None:
    for name, policy in (("a", "lru"), ("b", "sieve")):
        _, out, _ = sim("run", *WEKA, "--policy", policy, "--json")
        (tmp_path / name).write_text(out, encoding="utf-8")
    assert "no row in common" in sim("compare", tmp_path / "a", tmp_path / "b")[2]
    (tmp_path / "c").write_text('{"rows": [{"policy": "lru"}]}', encoding="utf-8")
    assert "has no metric" in sim("compare", tmp_path / "c", tmp_path / "a")[2]
    assert "use one of" in sim("compare", tmp_path / "a", tmp_path / "a", "--metrics", "speed")[2]
