"""Comparisons of reports: spreads, limits, what is named better or worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab import cli
from kvlab.bench.compare import compare, parse_limit
from kvlab.bench.outcome import Answer, Outcome
from kvlab.bench.report import Report, Round, make, read, write
from kvlab.errors import InvalidArgumentError, TraceFormatError

HEAD: dict[str, Any] = {
    "run": "abc",
    "workload": {"name": "w", "sha256": "0"},
    "config": {"backend": "local", "kv_bytes_per_token": 100},
    "environment": {},
}


def report(
    rounds: list[list[float]], *, mode: str = "baseline", estimated: bool = False, **head: Any
) -> Report:
    """Of TTFTs in milliseconds, by round."""
    made = [
        Round(
            tuple(
                Outcome(
                    request=f"r{at}",
                    klass="even" if at % 2 == 0 else "odd",
                    session="s",
                    turn=at,
                    half="first" if at < len(times) / 2 else "second",
                    status="ok",
                    sent=float(at),
                    answer=Answer(
                        text="", ttft=ms / 1e3, e2el=ms / 1e3 + 0.3, itls=(0.1,) * 3,
                        prompt_tokens=100, output_tokens=4, cached_tokens=0,
                    ),
                    round=number,
                )
                for at, ms in enumerate(times)
            ),
            duration=sum(times) / 1e3,
            restart=None,
            most_in_flight=1,
        )
        for number, times in enumerate(rounds)
    ]  # fmt: skip
    content = make(
        made, mode=mode, estimated=estimated, head={**HEAD, **head}, percentiles=(50.0, 99.0), goodput={},
    )  # fmt: skip
    return Report(mode, content)


times = st.lists(st.floats(1, 1e4), min_size=3, max_size=20)


@settings(deadline=None, max_examples=15)
@given(times)
def test_a_report_beside_itself_has_changed_nothing(values: list[float]) -> None:
    one = report([values])
    found = compare(one, one, limits=[parse_limit("median_ttft_ms>+0%")])
    assert all(delta.change == 0 for delta in found.deltas)
    assert all(delta.better is None for delta in found.deltas)
    assert not found.broken
    assert not found.notes


@settings(deadline=None, max_examples=15)
@given(values=times, factor=st.sampled_from([0.25, 0.5, 2.0, 3.0]))
def test_a_factor_is_found_with_its_sign_and_no_spread(values: list[float], factor: float) -> None:
    before, after = report([values]), report([[value * factor for value in values]])
    (whole,) = [
        delta for delta in compare(before, after, metrics=["median_ttft_ms"]).deltas if delta.part == "all"
    ]  # fmt: skip
    assert whole.percent == pytest.approx(100 * (factor - 1), abs=0.5)
    # In pairs every resample changes by the same factor.
    assert whole.spread == "paired bootstrap"
    assert whole.low == pytest.approx(whole.high, abs=0.5)
    assert whole.better == (factor < 1)


@settings(deadline=None, max_examples=15)
@given(
    values=st.lists(st.lists(st.floats(10, 1e3), min_size=4, max_size=4), min_size=3, max_size=6)
)
def test_rounds_give_the_spread_where_there_are_three(values: list[list[float]]) -> None:
    before = report(values)
    after = report([[each * 1.5 for each in part] for part in values])
    (whole,) = [
        delta for delta in compare(before, after, metrics=["mean_ttft_ms"]).deltas if delta.part == "all"
    ]  # fmt: skip
    assert whole.spread == "rounds"
    assert whole.low is not None
    assert whole.high is not None
    assert whole.low - 1e-6 <= 50.0 <= whole.high + 1e-6


def test_different_requests_are_resampled_apart() -> None:
    before, after = report([[100.0, 110.0, 120.0]]), report([[300.0, 310.0, 320.0, 330.0]])
    whole = compare(before, after, metrics=["mean_ttft_ms"]).deltas[0]
    assert whole.spread == "bootstrap"
    assert whole.better is False


def test_what_cannot_be_told_is_neither_better_nor_worse() -> None:
    before, after = report([[100.0, 900.0, 500.0, 20.0]]), report([[110.0, 860.0, 400.0, 90.0]])
    whole = compare(before, after, metrics=["mean_ttft_ms"]).deltas[0]
    assert whole.low is not None
    assert whole.high is not None
    assert whole.low < 0 < whole.high
    assert whole.better is None
    # A measured rate of one round has no spread at all.
    rate = compare(before, after, metrics=["request_throughput"]).deltas[0]
    assert (rate.spread, rate.better) == ("", None)


def test_estimates_are_exact() -> None:
    before = report([[100.0] * 3], estimated=True)
    after = report([[100.0, 100.0, 130.0]], estimated=True)
    rate = compare(before, after, metrics=["request_throughput"]).deltas[0]
    assert rate.better is False
    assert compare(before, after).estimated


@pytest.mark.parametrize(
    ("limit", "broken"),
    [
        ("median_ttft_ms>+10%", True),
        ("median_ttft_ms>+30%", False),
        ("median_ttft_ms>+15", True),
        ("median_ttft_ms>+25", False),
        ("median_ttft_ms>110", True),
        ("median_ttft_ms > 130", False),
        ("request_throughput<-10%", True),
        ("request_throughput<-30%", False),
        ("failed>0", False),
        ("class:odd/median_ttft_ms>+10%", True),
        ("half:first/median_ttft_ms>+90%", False),
    ],
)
def test_limits(limit: str, broken: bool) -> None:
    found = compare(report([[100.0] * 4]), report([[120.0] * 4]), limits=[parse_limit(limit)])
    assert bool(found.broken) == broken
    assert all(sentence.startswith(limit) for sentence in found.broken)


@pytest.mark.parametrize("text", ["", "ttft", "median_ttft_ms>10%", "a=5", "x>+", "half/ttft>5"])
def test_limits_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--fail-on"):
        parse_limit(text)


@pytest.mark.parametrize("text", ["nothing>5", "class:other/median_ttft_ms>5"])
def test_limits_on_what_is_not_there(text: str) -> None:
    one = report([[1.0, 2.0, 3.0]])
    with pytest.raises(InvalidArgumentError, match="there are"):
        compare(one, one, limits=[parse_limit(text)])


def test_a_figure_that_is_not_known_breaks_its_limit() -> None:
    before = report([[100.0] * 3])
    after = Report("nvme", {**before.content, "median_ttft_ms": None})
    (sentence,) = compare(before, after, limits=[parse_limit("median_ttft_ms>+10%")]).broken
    assert "median_ttft_ms of nvme is not known" in sentence


def test_what_makes_reports_hard_to_compare_is_said() -> None:
    before = report([[1.0, 2.0, 3.0]])
    after = report(
        [[1.0, 2.0, 3.0]], run="other", workload={"name": "v", "sha256": "1"}, config={"backend": "local", "rate": 2.0}
    )  # fmt: skip
    notes = " ".join(compare(before, after).notes)
    assert "different workloads: w and v" in notes
    assert "not of one interleaved run" in notes
    assert "rate differs: None and 2.0" in notes


def test_reports_are_read_as_they_were_written(tmp_path: Path) -> None:
    one = report([[100.0, 200.0, 50.0], [70.0, 80.0, 90.0]])
    path = tmp_path / "in" / "r.json"
    write(one.content, path)
    again = read(path)
    assert again.content == json.loads(json.dumps(one.content))
    assert [row["ttft_ms"] for row in again.samples()] == [100.0, 200.0, 50.0, 70.0, 80.0, 90.0]
    header, first, *_ = (tmp_path / "in" / "r.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    assert cells["median_ttft_ms"] == "85.0"
    assert cells["kind"] == "measured"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[]", "kvlab_bench"),
        ('{"kvlab_bench": 2}', "kvlab_bench"),
        ('{"kvlab_bench": 1, "kind": 5}', "kind"),
    ],
)
def test_files_that_are_no_reports(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(TraceFormatError, match=said):
        read(path)


def test_damaged_samples_are_refused(tmp_path: Path) -> None:
    content = dict(report([[1.0, 2.0]]).content)
    content["samples"] = {**content["samples"], "ttft_ms": [1.0]}
    write(content, tmp_path / "r.json")
    with pytest.raises(TraceFormatError, match="samples"):
        read(tmp_path / "r.json")


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    for name, value in (("a", 100.0), ("b", 150.0)):
        write(report([[value] * 4]).content, tmp_path / f"{name}.json")
    return str(tmp_path / "a.json"), str(tmp_path / "b.json")


@pytest.mark.parametrize("named", [False, True])
def test_the_command_fails_on_a_regression(
    two: tuple[str, str], named: bool, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    files = ["--baseline", two[0], "--candidate", two[1]] if named else list(two)
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *files, "--fail-on", "median_ttft_ms>+10%", "--json"])
    assert ended.value.code == 1
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert found["broken"]
    assert (found["baseline"], found["candidate"]) == ("baseline (a)", "baseline (b)")
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *files, "--fail-on", "median_ttft_ms>+60%", "--markdown"])
    assert ended.value.code == 0
    assert "| median_ttft_ms | 100.0 | 150.0 | +50.0 % |" in capsys.readouterr().out


def test_one_report_is_nothing_to_compare(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", two[0]])
    assert ended.value.code == 1
    assert "at least two reports" in capsys.readouterr().err
