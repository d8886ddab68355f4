"""`kvlab bench` and `kvlab report`, end to end: estimates, a real model, and a server."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench_support import chatting, request, workload
from kvlab import cli
from kvlab.bench.backend import Mode
from kvlab.bench.report import read
from kvlab.workload.schema import Workload, dump

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = sorted((ROOT / "workloads").glob("*.jsonl*"))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """Three sessions of two turns behind one system prompt, in classes."""
    requests = []
    for name in ("a", "b", "c"):
        text = "rule " * 60 + name
        first = request(f"{name}0", text=text, session=name, klass=name, reply="fine")
        again = request(
            f"{name}1", after=f"{name}0", append=True, session=name, klass=name, turn=1, delay_ms=50
        )
        requests += [first, again]
    path = tmp_path / "sessions.jsonl"
    dump(workload(*requests), path)
    return path


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_workload_can_be_estimated(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = ["baseline", "prefix_reuse", "cpu_offload", "nvme"]
    out = tmp_path / "r.json"
    # The transcripts are long: some of them will do.
    some = ("--num-prompts", 24) if path.suffix == ".gz" else ()
    code = command("bench", "--workload", path, "--modes", ",".join(modes), "--report", out, *some)
    assert code == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "estimated by a cost model; nothing was measured" in printed
    reports = {mode: read(tmp_path / f"r-{mode}.json").content for mode in modes}
    ratios = {mode: report["cached_token_ratio"] for mode, report in reports.items()}
    assert ratios["baseline"] == 0
    for mode, report in reports.items():
        assert report["kind"] == "estimated"
        assert report["failed"] == report["skipped"] == 0
        assert not report["cache_check"]["disagreements"]
        assert report["median_ttft_ms"] <= reports["baseline"]["median_ttft_ms"], mode
        lines = (tmp_path / f"r-{mode}.requests.jsonl").read_text().splitlines()
        assert len(lines) == report["completed"]
        rows = (tmp_path / f"r-{mode}.csv").read_text().splitlines()[1:]
        assert all(row.startswith("estimated,") for row in rows)
    assert ratios["cpu_offload"] >= ratios["prefix_reuse"]
    if path.name.startswith("unique"):
        assert ratios["nvme"] < 0.1


def test_estimates_are_the_same_again(
    sessions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        options = ("--mode", "nvme", "--rate", 2.0, "--rounds", 2, "--seed", 4)
        assert (
            command(
                "bench", "--workload", sessions, *options, "--report", tmp_path / f"{name}.json"
            )
            == 0
        )
    for end in ("json", "csv", "requests.jsonl"):
        assert (tmp_path / f"one.{end}").read_bytes() == (tmp_path / f"two.{end}").read_bytes()
    assert "gaps of tools and people between turns are left out" in capsys.readouterr().out


def test_a_restart_leaves_what_is_on_disk(
    sessions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    assert (
        command("bench", "--workload", sessions, "--mode", "nvme", "--report", out, "--json") == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == read(out).content
    rows = read(out).samples()
    split = [row["half"] for row in rows].index("second")
    assert split == 3
    for at, row in enumerate(rows):
        # b1 goes on from b0, of before the restart; c shares what comes behind it with L1 only as it was restored.
        assert (row["cached_l3"] > 0) == (at == split), row["request"]


def test_a_page_of_reports(
    sessions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")
    out = tmp_path / "r.json"
    assert (
        command("bench", "--workload", sessions, "--modes", "baseline,nvme", "--report", out) == 0
    )
    files = [tmp_path / f"r-{mode}.json" for mode in ("baseline", "nvme")]
    pages = []
    for name in ("one.html", "two.html"):
        out = tmp_path / name
        assert command("report", *files, "--out", out, "--charts", tmp_path / "charts") == 0
        pages.append(out.read_text())
    assert pages[0] == pages[1]
    page = pages[0]
    assert len(page.encode()) < 300_000
    assert not re.findall(r'(?:src|href)="(?!#)', page)  # nothing is fetched
    assert page.count("<svg") == 6
    assert "estimated" in page
    assert "nvme: the first token comes" in page
    samples = re.search(r'<script type="application/json" id="samples">(.*?)</script>', page)
    assert samples is not None
    assert set(json.loads(samples[1])) == {"baseline", "nvme"}
    assert len(list((tmp_path / "charts").glob("*.svg"))) == 6
    assert "after the restart" in capsys.readouterr().out


def test_formulas_need_no_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("bench", "--formulas") == 0
    printed = capsys.readouterr().out
    assert "(e2el - ttft) / (output tokens - 1)" in printed


def test_a_config_stands_behind_the_command_line(
    sessions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'workload = "{sessions}"\nmodes = "prefix_reuse"\nnum-prompts = 2\n')
    assert command("bench", "--config", config, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["mode"], content["completed"]) == ("prefix_reuse", 2)
    assert command("bench", "--config", config, "--mode", "baseline", "--json") == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "baseline"
    config.write_text("wrokload = 5\n")
    assert command("bench", "--config", config) == 1
    assert "wrokload: is no option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mode", "remote"], "knows no network"),
        (["--mode", "nvme", "--remote", "redis://127.0.0.1:9"], "only mode remote"),
        (["--mode", "remote", "--backend", "local", "--remote", "localhost"], "localhost"),
        (["--mode", "remote", "--backend", "local", "--remote", "redis://127.0.0.1:9"], "does not answer"),
        (["--mode", "remote", "--endpoint", "http://127.0.0.1:9/v1"], "--serve"),
        (["--mode", "remote", "--endpoint", "http://127.0.0.1:9/v1", "--serve", "serve"], "{remote}"),
        (["--mode", "fast"], "use one of: baseline"),
        (["--mode", ""], "name at least one"),
        (["--mode", "generate"], "real model"),
        (["--rate", "0"], "rate = 0.0"),
        (["--rate", "1", "--recorded-arrivals"], "a request arrives but once"),
        (["--recorded-arrivals"], "has no arrival_ms"),
        (["--goodput", "itl:5"], "--goodput itl:5"),
        (["--percentiles", "101"], "--percentiles"),
        (["--num-prompts", "0"], "--num-prompts 0"),
        (["--l1", "much"], "much"),
        (["--endpoint", "localhost"], "--endpoint localhost"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--mode", "nvme"], "--restart-command"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--modes", "baseline,nvme"], "--serve"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--extra-body", "[]"], "--extra-body"),
        (["--backend", "live"], "--endpoint"),
        (["--backend", "local", "--endpoint", "http://127.0.0.1:9/v1"], "--backend live"),
        (["--costs", "nothing.json"], "--costs"),
        (["--workload", ""], "--workload"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_names_the_cause(
    sessions: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("bench", "--workload", sessions, *options) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err


def test_a_workload_that_is_none_names_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text('{"kvlab_workload": 1, "name": "w"}\n{"id": 5}\n')
    assert command("bench", "--workload", path) == 1
    assert f"{path}" in capsys.readouterr().err
    assert command("bench", "--workload", tmp_path / "none.jsonl") == 1
    assert "--workload" in capsys.readouterr().err


def test_a_server_is_run_against(
    sessions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("httpx", reason="the 'serve' extra is not installed")
    from faulty_server import endpoint, serving

    out = tmp_path / "r.json"
    with serving() as server:
        server.usage = "null"
        options = ("--endpoint", endpoint(server), "--model", "tiny", "--concurrency", 3)
        assert command("bench", "--workload", sessions, *options, "--report", out) == 0
    content = read(out).content
    assert content["kind"] == "measured"
    assert content["completed"] == 6
    assert content["total_cached_tokens"] is None
    assert content["cached_tokens_absent"] == 6
    assert content["config"]["model"] == "tiny"
    assert "6 answers did not say how much" in capsys.readouterr().out
    assert read(out).samples()[0]["cached_tokens"] is None


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    pytest.importorskip("torch", reason="the 'hf' extra is not installed")
    pytest.importorskip("transformers", reason="the 'hf' extra is not installed")
    import tiny_models
    from serve_support import byte_tokenizer

    return tiny_models.build("llama"), chatting(byte_tokenizer())


def test_a_real_model_reuses_what_an_ideal_cache_would(
    sessions: Path, tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    from kvlab.bench.local import LocalBackend, LocalOptions
    from kvlab.bench.run import RunOptions, ideal, run
    from kvlab.serve.engine.modes import TierSizes
    from kvlab.workload.schema import load

    sizes = TierSizes("32MiB", "32MiB", "64MiB")
    options = LocalOptions(
        model="tiny", sizes=sizes, ignore_eos=True, folder=tmp_path, restore="always"
    )
    backend = LocalBackend(options, tiny)
    made: Workload = load(sessions)
    modes: tuple[Mode, ...] = ("baseline", "prefix_reuse", "cpu_offload", "nvme", "generate")
    reports = run(backend, made, RunOptions(modes=modes, rounds=2))
    ideal(made, backend.chat, backend.block_tokens, list(reports.values()))
    for mode, report in reports.items():
        assert report["completed"] == 12, report["errors"]
        assert report["total_output_tokens"] == 12 * 4
        cached = report["cached_token_ratio"]
        if mode in ("baseline", "generate"):
            assert cached == 0
        else:
            assert cached == pytest.approx(report["ideal_reuse"]["ratio"])
            assert cached > 0.7
    nvme = reports["nvme"]
    assert len(nvme["restart_seconds"]) == 2
    assert nvme["cached_tokens_by_source"]["l3"] > 0
    assert reports["prefix_reuse"]["cached_tokens_by_source"]["l3"] == 0
    assert max(nvme["samples"]["held_l3_bytes"]) > 0
    # The answers are the model's own, whatever came from where.
    assert len({report["run"] for report in reports.values()}) == 1
    assert not list(tmp_path.glob("kvlab-bench-*"))


def test_answers_are_the_same_in_every_mode(sessions: Path, tiny: tuple[Any, Any]) -> None:
    from kvlab.bench.local import LocalBackend, LocalOptions
    from kvlab.bench.run import RunOptions, run
    from kvlab.bench.schedule import Plan
    from kvlab.workload.schema import load

    backend = LocalBackend(LocalOptions(model="tiny", ignore_eos=True), tiny)
    said: dict[str, dict[str, str]] = {}

    def done(mode: str, outcome: Any) -> None:
        said.setdefault(mode, {})[outcome.request] = outcome.answer.text

    plan = Plan(concurrency=3, replies="model")
    run(
        backend,
        load(sessions),
        RunOptions(modes=("generate", "prefix_reuse", "baseline"), plan=plan),
        done=done,
    )
    assert said["generate"] == said["prefix_reuse"] == said["baseline"]


def test_scripts_of_the_familiar_names(sessions: Path, tmp_path: Path) -> None:
    def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for mode, out in (("baseline", one), ("prefix-reuse", two)):
        ran = script("run_workload", "--workload", sessions, "--mode", mode, "--report", out)
        assert ran.returncode == 0, ran.stderr
    compared = script("compare_results", "--baseline", one, "--candidate", two)
    assert "estimated: baseline -> prefix_reuse" in compared.stdout
    asked = script("run_live_workload", "--workload", sessions, "--model", "m")
    assert asked.returncode == 1
    assert "give the server's --endpoint" in asked.stderr


def test_our_own_server_is_started_and_restarted(
    sessions: Path, tiny: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn", reason="the 'serve' extra is not installed")
    model, tokenizer = tiny
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [
        sys.executable, "-m", "kvlab", "serve", "--model", str(folder), "--name", "tiny", "--port", str(port),
        "--mode", "{mode}", "--store", "{store}", "--l1", "32MiB", "--l2", "32MiB", "--l3", "64MiB",
        "--restore", "always", "{remote}",
    ]  # fmt: skip
    out = tmp_path / "r.json"
    options = ["--endpoint", f"http://127.0.0.1:{port}/v1", "--serve", shlex.join(serve)]
    options += ["--modes", "nvme", "--ignore-eos", "--report", str(out)]
    assert command("bench", "--workload", sessions, *options) == 0, capsys.readouterr().err
    content = read(out).content
    assert content["completed"] == 6, content["errors"]
    split = content["cached_tokens_by_source"]
    assert split["l1"] > 0
    assert split["l3"] > 0
    assert content["cached_tokens_absent"] == 0
    assert content["config"]["server"] == {"started_as": Path(sys.executable).name}
    assert str(tmp_path) not in out.read_text()
    assert content["facts"][0]["server_counters"]
