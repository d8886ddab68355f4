"""Generators of pages and requests, and page traces in files."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import ConfigError, FormatError, InvalidArgumentError
from kvlab.sim.page_trace import read_page_trace, write_page_trace
from kvlab.sim.workloads import PAGE_WORKLOADS, REQUEST_WORKLOADS, Access, PageWorkload, agents
from kvlab.sim.workloads.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvlab.sim import Request

pieces = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=8)


def ids(text: Sequence[tuple[str, int]], block_tokens: int) -> tuple[int, ...]:
    prompt = Prompt(block_tokens)
    for name, tokens in text:
        prompt.append(name, tokens)
    assert prompt.tokens == sum(tokens for _, tokens in text)
    return prompt.blocks()


@given(pieces, pieces, pieces, st.integers(1, 20))
def test_prompts_share_the_blocks_of_what_they_have_in_common(
    common: list[tuple[str, int]],
    one: list[tuple[str, int]],
    other: list[tuple[str, int]],
    block_tokens: int,
) -> None:
    shared = sum(tokens for _, tokens in common) // block_tokens
    first = ids([*common, ("one", 1), *one], block_tokens)
    second = ids([*common, ("other", 1), *other], block_tokens)
    assert first[:shared] == second[:shared]
    assert not set(first[shared:]) & set(second)
    tokens = sum(tokens for _, tokens in common) + 1 + sum(tokens for _, tokens in one)
    assert len(first) == -(-tokens // block_tokens)
    assert len(set(first)) == len(first)


@given(pieces, pieces)
def test_a_fork_grows_as_the_whole_would(
    common: list[tuple[str, int]], rest: list[tuple[str, int]]
) -> None:
    prompt = Prompt()
    for name, tokens in common:
        prompt.append(name, tokens)
    before = prompt.blocks()
    fork = prompt.fork()
    for name, tokens in rest:
        fork.append(name, tokens)
    assert fork.blocks() == ids([*common, *rest], 16)
    assert prompt.blocks() == before


@pytest.mark.parametrize("name", REQUEST_WORKLOADS)
def test_requests_come_in_order_and_are_the_same_from_the_same_seed(name: str) -> None:
    make = REQUEST_WORKLOADS[name].make
    requests = make()
    assert requests == make(seed=REQUEST_WORKLOADS[name].seed)
    assert requests != make(seed=1)
    assert requests == sorted(requests, key=lambda request: request.at_ms)
    for request in requests:
        assert len(request.blocks) == -(-request.tokens // 16)
        assert all(0 <= block < 1 << 64 for block in request.blocks)
        assert request.output_tokens > 0
        assert request.category


def reuse(requests: Sequence[Request]) -> float:
    """The part of blocks that an earlier request had in the same prefix."""
    seen: set[int] = set()
    hits = total = 0
    for request in requests:
        hits += sum(block in seen for block in request.blocks)
        total += len(request.blocks)
        seen.update(request.blocks)
    return hits / total


def test_agents_share_what_their_shape_says() -> None:
    chat = agents.shared_system_prompt(users=3, turns=2)
    assert len({request.blocks[:125] for request in chat}) == 1
    workers = [r for r in agents.planner_fanout(plans=1, workers=4) if r.category == "worker"]
    planner = agents.planner_fanout(plans=1, workers=4)[0]
    full = planner.tokens // 16
    assert {worker.blocks[:full] for worker in workers} == {planner.blocks[:full]}
    subs = [r for r in agents.sub_agents(roles=2) if r.category.startswith("role")]
    assert len({request.blocks[:187] for request in subs}) == 2
    tools = agents.multi_turn_tools(sessions=2)
    gaps = {"tool": [], "human": []}  # type: dict[str, list[float]]
    for session in ("session-0", "session-1"):
        own = [request for request in tools if request.session == session]
        for before, after in itertools.pairwise(own):
            assert after.tokens > before.tokens
            gaps[after.category].append(after.at_ms - before.at_ms)
    assert sum(gaps["human"]) / len(gaps["human"]) > 10 * sum(gaps["tool"]) / len(gaps["tool"])
    assert reuse(agents.multi_turn_tools()) > 0.9
    sorted_passages, shuffled = (reuse(agents.rag_reordered(reorder=part)) for part in (0.0, 1.0))
    assert sorted_passages > shuffled + 0.02


def test_requests_become_pages_in_the_order_of_their_use() -> None:
    generator = REQUEST_WORKLOADS["planner_fanout"]
    requests = generator.make()
    workload = PAGE_WORKLOADS["planner_fanout"].make(scheme="int4")
    blocks = [block for request in requests for block in request.blocks]
    assert len(workload.trace) == len(blocks)
    assert len(workload.pages) == len(set(blocks))
    named = dict(zip(workload.trace, blocks, strict=True))
    assert [named[page] for page in workload.trace] == blocks
    assert {page.scheme for page in workload.pages} == {"int4"}
    assert workload.name == "planner_fanout"


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("rag_burst", {"num_pages": 21}, "at least 22"),
        ("long_tail_mix", {"num_pages": 10}, "num_pages = 10"),
        ("chat_continuation", {"num_pages": 0}, "num_pages = 0"),
        ("prefetch_friendly", {"length": -1}, "length = -1"),
        ("periodic_reuse", {"period": 0}, "period = 0"),
        ("adversarial_burst", {"burst_size": 0}, "burst_size = 0"),
        ("sub_agents", {"steps": 0}, "steps = 0"),
        ("rag_reordered", {"passages": 4}, "passages_a_request = 5 of 4"),
        ("multi_turn_tools", {"block_tokens": 0}, "block_tokens = 0"),
    ],
)
def test_parameters_that_cannot_be_are_refused(
    name: str, params: dict[str, int], said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        PAGE_WORKLOADS[name].make(**params)
    with pytest.raises(ConfigError, match="fp16"):
        PAGE_WORKLOADS["rag_burst"].make(scheme="fp1")


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(list(PAGE_WORKLOADS)[:8]),
    length=st.integers(0, 60),
    hints=st.sets(st.integers(0, 59)),
    data=st.data(),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    length: int,
    hints: set[int],
    data: st.DataObject,
) -> None:
    made = PAGE_WORKLOADS[name].make(length=length)
    accesses = [
        replace(
            access,
            step=2 * access.step,
            prefetch_hint=access.step in hints,
            metadata=data.draw(st.dictionaries(st.text(max_size=3), st.integers(), max_size=1)),
        )
        for access in made.accesses()
    ]
    pages = [replace(made.pages[0], tier="host_ram"), *made.pages[1:]]
    workload = PageWorkload.of(made.name, pages, accesses, made.seed)
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    write_page_trace(workload, path)
    read = read_page_trace(path)
    assert (read.name, read.seed, list(read.pages)) == (made.name, made.seed, pages)
    assert list(read.accesses()) == accesses
    again = path.with_suffix(".again")
    write_page_trace(read, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (1, "", "line 1 is no JSON"),
        (1, '{"kvlab_page_trace": 2}', "is not 1"),
        (1, "[1]", "line 1 is no JSON object"),
        (2, '{"page": 1}', "line 2: page = 1 stands at place 0"),
        (2, '{"page": 0, "tokens": [0]}', "tokens = "),
        (2, '{"page": 0, "tokens": [0, 16], "scheme": "fp1"}', "scheme = 'fp1' is unknown"),
        (24, '{"step": 0, "page": 22}', "line 24: page = 22 is not one of the 22 pages"),
        (24, '{"step": true, "page": 2}', "line 24: step = True is no int"),
        (24, '{"step": -1, "page": 2}', "step = -1 is negative"),
        (24, '{"page": 2}', "line 24: step = None is no int"),
        (25, "", "line 25 is no JSON"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: int, text: str, said: str) -> None:
    path = tmp_path / "trace.jsonl"
    write_page_trace(PAGE_WORKLOADS["rag_burst"].make(num_pages=22, length=20), path)
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FormatError, match=said.replace("[", r"\[")) as caught:
        read_page_trace(path)
    assert str(path) in str(caught.value)


def test_a_trace_that_was_cut_or_is_empty_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_page_trace(PAGE_WORKLOADS["rag_burst"].make(num_pages=22, length=20), path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(FormatError, match="19 were found"):
        read_page_trace(path)
    path.write_text("")
    with pytest.raises(FormatError, match="is empty"):
        read_page_trace(path)


def test_pages_that_are_not_numbered_by_place_are_refused() -> None:
    pages = PAGE_WORKLOADS["rag_burst"].make().pages
    with pytest.raises(InvalidArgumentError, match="page 1 stands at place 0"):
        PageWorkload.of("odd", pages[1:], [Access(0, 0)])
