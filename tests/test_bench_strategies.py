"""`kvlab bench strategies` on a tiny model, with processes and a server that are real."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")

import tiny_models
from bench_support import chatting, request, workload
from kvlab import cli
from kvlab.bench.local import LocalOptions
from kvlab.bench.machine import Machine
from kvlab.bench.report import read
from kvlab.bench.strategies import STRATEGIES
from kvlab.bench.summary import read as read_summary
from kvlab.errors import GenerationError, ModelUnavailableError, StateError, TraceFormatError
from kvlab.workload.schema import Workload, dump
from redis_support import RedisServer
from serve_support import byte_tokenizer

ROUNDS = 2


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "strategies", *(str(argument) for argument in arguments)])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@dataclass
class Ran:
    """What a run left, and what the server saw of it."""

    folder: Path
    taken: int
    given: int

    def summary(self, name: str) -> dict[str, Any]:
        return read_summary(self.folder / f"strategies_{name}.json")

    def facts(self, name: str, strategy: str) -> list[dict[str, Any]]:
        """Of each machine in each round, what its store says of L4."""
        report = read(self.folder / f"strategies_{name}-{strategy}.json").content
        return [
            machine["store"]["remote"] for facts in report["facts"] for machine in facts["machines"]
        ]


def talk() -> Workload:
    """Conversations with a past of their own, behind what all share; L4 has time to take it in between."""
    requests = []
    for name in ("a", "b", "c", "d"):
        text = "rule " * 20 + name * 100
        first = request(f"{name}0", text=text, session=name, reply="fine")
        again = request(
            f"{name}1", after=f"{name}0", append=True, session=name, turn=1, delay_ms=400
        )
        requests += [first, again]
    return workload(*requests)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("strategies")
    model = folder / "model"
    tiny_models.build("llama").save_pretrained(model)
    chatting(byte_tokenizer()).save_pretrained(model)
    dump(talk(), folder / "talk.jsonl")
    different = [request(f"u{at}", text=f"{at} " * 100) for at in range(4)]
    dump(workload(*different), folder / "unique.jsonl")
    out = folder / "out"
    with RedisServer(folder) as server:
        before = server.network()
        code = command(
            *("--workload", folder / "talk.jsonl", "--workload", folder / "unique.jsonl"),
            *("--model", model, "--l1", "32MiB", "--l2", "32MiB", "--threads", 1),
            *("--restore", "always", "--rounds", ROUNDS, "--remote", server.url),
            *("--delay-scale", 1),
            *("--machine-price", 3.6, "--report", out, "--charts", out / "charts"),
        )
        taken, given = (
            after - earlier for after, earlier in zip(server.network(), before, strict=True)
        )
    assert code == 0
    return Ran(out, taken, given)


def test_hits_come_from_where_the_strategy_has_them(ran: Ran) -> None:
    rows = ran.summary("talk")["strategies"]
    assert list(rows) == list(STRATEGIES)
    ideal = rows["local"]["ideal_reuse"]["ratio"]
    assert rows["none"]["cached_token_ratio"] == 0
    for name in ("local", "local+redis"):
        assert rows[name]["cached_token_ratio"] == pytest.approx(ideal)
        assert rows[name]["hit_rates"]["l1"] == pytest.approx(ideal)
    # A machine of two lacks what the other one computed, but for what both share.
    assert 0 < rows["apart"]["cached_token_ratio"] < ideal
    assert rows["apart"]["cached_token_ratio"] < rows["full"]["cached_token_ratio"]
    for name, row in rows.items():
        assert (row["hit_rates"]["remote"] > 0) == (name == "full")
        assert row["machines"] == STRATEGIES[name].machines
        assert (row["completed"], row["failed"]) == (8 * ROUNDS, 0)
    assert all(facts["found_blocks"] > 0 for facts in ran.facts("talk", "full"))


def test_answers_are_the_same_under_every_strategy(ran: Ran) -> None:
    for name, requests in (("talk", 8), ("unique", 4)):
        for strategy, row in ran.summary(name)["strategies"].items():
            report = read(ran.folder / f"strategies_{name}-{strategy}.json").content
            assert len(report["answers"]) == requests * ROUNDS
            assert row["answers_that_differ"] == 0
        assert len(set(report["answers"].values())) > 1


def test_prompts_that_share_nothing_gain_nothing_and_are_written_all_the_same(ran: Ran) -> None:
    for name, row in ran.summary("unique")["strategies"].items():
        assert row["cached_token_ratio"] == 0
        assert not any(row["hit_rates"].values())
        assert row["bytes_a_round"]["from_l4"] == 0
        assert (row["bytes_a_round"]["to_l4"] > 0) == STRATEGIES[name].shared


def test_bytes_moved_are_those_that_the_server_counted(ran: Ran) -> None:
    written = read_ = 0.0
    for name in ("talk", "unique"):
        for strategy, row in ran.summary(name)["strategies"].items():
            moved = row["bytes_a_round"]
            assert moved["to_disk"] == moved["from_disk"] == 0
            written += ROUNDS * moved["to_l4"]
            read_ += ROUNDS * moved["from_l4"]
            if STRATEGIES[strategy].shared:
                facts = ran.facts(name, strategy)
                assert sum(each["write_bytes"] for each in facts) == ROUNDS * moved["to_l4"]
                assert not any(each["errors"] or each["refusals"] for each in facts)
    # The server sees the protocol, too, and what the warm-ups write, a few prompts of the many.
    assert 0 < written <= ran.taken <= 2.5 * written
    assert 0 < read_ <= ran.given <= 1.5 * read_


def test_costs_are_machines_over_throughput(ran: Ran) -> None:
    summary = ran.summary("talk")
    rows = summary["strategies"]
    first = rows["none"]["machine_seconds_per_1000_tokens"]
    for name, row in rows.items():
        seconds = 1e3 * STRATEGIES[name].machines / row["total_token_throughput"]
        assert row["machine_seconds_per_1000_tokens"] == pytest.approx(seconds)
        assert row["machine_seconds_low"] <= seconds * 1.001
        assert seconds <= row["machine_seconds_high"] * 1.001
        # 3.6 an hour is 0.001 a second: a million tokens cost as much as 1,000 take.
        assert row["cost_per_million_tokens"] == pytest.approx(seconds)
        assert row["cost_of_first"] == pytest.approx(seconds / first)


def test_a_page_and_a_picture_of_all_workloads(ran: Ran) -> None:
    pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")
    page = (ran.folder / "strategies.html").read_text()
    assert page.count("<svg") == 1
    assert page.count("<table") == 2
    assert 'href="http' not in page
    assert (ran.folder / "charts" / "strategies.svg").read_text().startswith("<?xml")
    assert str(ran.folder.parent / "talk.jsonl") not in page


def test_a_table_of_something_else_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "strategies_a.json"
    for text in ("{", "[]", '{"kvlab_strategies": 2}'):
        path.write_text(text)
        with pytest.raises(TraceFormatError, match=r"strategies_a\.json"):
            read_summary(path)


def test_a_machine_that_cannot_load_or_ends_says_so() -> None:
    machine = Machine(LocalOptions(model="/nowhere/model"), threads=1)
    try:
        with pytest.raises(ModelUnavailableError, match="/nowhere/model"):
            machine.load().result()
        with pytest.raises(StateError, match="not loaded"):
            machine._call("open", "baseline", {}).result()
        machine._process.kill()
        with pytest.raises((GenerationError, StateError), match="ended"):
            machine._call("facts").result()
    finally:
        machine.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--strategies", "fast"], "use some of: none, local"),
        (["--strategies", "none,none"], "each once"),
        (["--strategies", ","], "at least one"),
        (["--workload", "nothing"], "none of agent, chat, unique"),
        (["--workload", "agent", "--workload", "agent"], "already"),
        (["--num-prompts", "0"], "--num-prompts 0"),
        (["--machine-price", "0"], "--machine-price 0"),
        (["--machine-price", "nan"], "--machine-price nan"),
        (["--charts", "charts"], "--report"),
        (["--strategies", "none,local", "--remote", "redis://127.0.0.1:9"], "shared tier"),
        (["--remote", "localhost"], "localhost"),
        (["--remote", "redis://127.0.0.1:9"], "127.0.0.1:9 does not answer"),
        (["--l1", "much"], "much"),
    ],
)
def test_what_cannot_be_run_names_the_cause(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*options) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err


def test_without_a_server_to_start_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvlab.remote.server.find_program", lambda: None)
    assert command("--quick") == 1
    assert "install one of them" in capsys.readouterr().err


def test_the_help_of_the_group_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "strategies" in capsys.readouterr().out
