"""Generators of workloads: valid and the same from the same seed, with the reuse that their shape has."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.workload import dump, dumps, ideal_reuse, load, tokenizer
from kvlab.workload.generators import GENERATORS, generate

COMMITTED = Path(__file__).parent.parent / "workloads"
CHARS = tokenizer("chars")
NAMES = [*GENERATORS]


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, dict[str, float]]:
    """A generator with some options that are not the usual ones."""
    name = draw(st.sampled_from(NAMES))
    options: dict[str, float] = {}
    for option, usual in GENERATORS[name].options.items():
        if option.endswith("_ms"):
            options[option] = draw(st.sampled_from([0.0, 1.5, 1e6]))
        elif option in {"tool_share", "reorder"}:
            options[option] = draw(st.floats(0, 1))
        elif option.endswith("_tokens"):
            options[option] = draw(st.integers(1, 90))
        elif option != "passages_a_request":
            assert isinstance(usual, int)
            options[option] = draw(st.integers(4 if option == "passages" else 1, 5))
    if "roles" in options:
        options["roles"] = min(4, options["roles"])
    return name, options


@settings(max_examples=60, deadline=None)
@given(asked(), st.integers(0, 2**32))
def test_any_options_give_a_valid_workload_the_same_each_time(
    asked: tuple[str, dict[str, Any]], seed: int
) -> None:
    name, options = asked
    workload = generate(name, seed=seed, **options)
    workload.validate()
    text = dumps(workload)
    assert text == dumps(generate(name, seed=seed, **options))
    assert workload.header.seed == seed
    assert {**options}.items() <= dict(workload.header.options).items()
    # The header alone is enough to make it again.
    header = workload.header
    again = generate(header.generator, seed=header.seed, name=header.name, **header.options)
    assert dumps(again) == text
    # Whoever plays it has every answer that a later prompt contains.
    for request in workload.requests:
        workload.conversation(request)
        if request.after is None:
            assert request.arrival_ms is not None or options["arrival_ms"] == 0
    if name != "unique":
        assert text != dumps(generate(name, seed=seed + 1, **options))


@pytest.mark.parametrize("name", NAMES)
def test_the_usual_options_are_written_and_read(tmp_path: Path, name: str) -> None:
    workload = generate(name)
    dump(workload, tmp_path / "w.jsonl")
    assert load(tmp_path / "w.jsonl") == workload
    about = GENERATORS[name].about
    assert about.endswith(".")
    documented = inspect.getdoc(GENERATORS[name].make) or ""
    assert all(f"{option}: " in documented for option in GENERATORS[name].options)


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.jsonl")), ids=lambda path: path.name)
def test_a_committed_workload_is_what_its_header_makes(path: Path) -> None:
    header = load(path).header
    assert header.name == path.stem
    made = generate(header.generator, seed=header.seed, name=header.name, **header.options)
    assert dumps(made).encode() == path.read_bytes()
    assert path.stat().st_size < 100_000


def test_every_generator_has_a_committed_workload_and_the_transcripts_are_read() -> None:
    assert set(NAMES) <= {path.stem for path in COMMITTED.glob("*.jsonl")}
    transcripts = load(COMMITTED / "swe_agent.jsonl.gz")
    assert transcripts.header.generator == "import transcripts"
    assert len(transcripts.requests) == 84


def shares(name: str, **options: Any) -> dict[str, float]:
    reuse = ideal_reuse(generate(name, **options), CHARS)
    return {"all": reuse.total.share} | {
        klass: total.share for klass, total in reuse.by_class().items()
    }


def test_the_control_shares_nothing() -> None:
    assert shares("unique", requests=200, prompt_tokens=20)["all"] == 0


def test_a_shared_system_prompt_is_computed_once() -> None:
    reuse = ideal_reuse(generate("shared_system_chat", requests=20), CHARS)
    first, *later = reuse.requests
    assert first.reused_tokens == 0
    assert all(each.prompt_tokens - each.reused_tokens < 50 for each in later)


def test_another_order_of_passages_costs_reuse() -> None:
    assert shares("rag", reorder=0)["all"] > shares("rag", reorder=1)["all"] + 0.1


def test_forks_reuse_the_whole_context_that_they_come_from() -> None:
    workload = generate("fanout")
    reuse = {each.id: each for each in ideal_reuse(workload, CHARS).requests}
    by_id = workload.by_id()
    forks = [r for r in workload.requests if r.append and r.session != by_id[r.after or ""].session]
    assert len(forks) == 15
    for fork in forks:
        context = reuse[fork.after or ""].prompt_tokens
        assert reuse[fork.id].reused_tokens >= context // 16 * 16 - 16
    joins = [request for request in workload.requests if request.klass == "join"]
    assert all(len(join.waits_for) == 5 for join in joins)


def test_a_main_agent_waits_for_its_sub_agent() -> None:
    workload = generate("subagent")
    by_id = workload.by_id()
    for request in workload.requests:
        if request.klass == "main" and request.turn:
            (waited,) = request.waits_for
            assert by_id[waited].klass in {"researcher", "tester", "reviewer", "writer"}
    roles = [request for request in workload.requests if request.klass == "researcher"]
    assert len({request.messages[0] for request in roles if request.turn == 0}) == 1


def test_gaps_of_a_session_are_of_two_kinds() -> None:
    workload = generate("session", sessions=30)
    gaps = {
        klass: median(r.delay_ms for r in workload.requests if r.klass == klass and r.turn)
        for klass in ("tool", "human")
    }
    assert 1_000 < gaps["tool"] < 2_250
    assert 80_000 < gaps["human"] < 180_000


@pytest.mark.usefixtures("smollm2")
def test_lengths_are_those_asked_for_in_tokens_of_the_model() -> None:
    pytest.importorskip("transformers", reason="the 'hf' extra is not installed")
    model = tokenizer("smollm2-135m")
    for seed in range(4):
        workload = generate("shared_system_chat", seed=seed, requests=100)
        assert len(model.text(workload.header.texts["system"])) == pytest.approx(2_000, rel=0.12)
        questions = {request.messages[-1].content for request in workload.requests}
        assert max(len(model.text(question)) for question in questions) <= 32
    for name, option in (("unique", "prompt_tokens"), ("session", "tool_tokens")):
        usual = GENERATORS[name].options[option]
        lengths = [
            len(model.text(request.messages[-1].content))
            for request in generate(name).requests
            if request.klass in {"unique", "tool"}
        ]
        assert median(lengths) == pytest.approx(usual, rel=0.25)


def test_what_cannot_be_asked_for_is_said() -> None:
    with pytest.raises(ConfigError, match=r"generator = chat: use one of: .*planner"):
        generate("chat")
    with pytest.raises(ConfigError, match="users = 3: generator planner has plans, steps"):
        generate("planner", users=3)
    with pytest.raises(ConfigError, match=r"steps = 1\.5: give a whole number"):
        generate("planner", steps=1.5)
    with pytest.raises(InvalidArgumentError, match="steps = 0: use at least 1"):
        generate("planner", steps=0)
    with pytest.raises(InvalidArgumentError, match="tool_share = 2"):
        generate("session", tool_share=2)
    with pytest.raises(InvalidArgumentError, match="human_gap_ms = -1"):
        generate("session", human_gap_ms=-1)
    with pytest.raises(InvalidArgumentError, match="arrival_ms = inf"):
        generate("unique", arrival_ms=math.inf)
    with pytest.raises(InvalidArgumentError, match="roles = 5: there are 4"):
        generate("subagent", roles=5)
    with pytest.raises(InvalidArgumentError, match="passages_a_request = 9 of 8"):
        generate("rag", passages=8, passages_a_request=9)
