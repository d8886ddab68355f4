"""Workload files: what is written is read again, and what is wrong is named by file, line and field."""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import InvalidArgumentError, TraceFormatError
from kvlab.workload import Header, Message, Workload, WorkloadRequest, dump, dumps, load, starts
from workload_strategies import workloads

HEADER = {"kvlab_workload": 1, "name": "small", "texts": {"s": "You help."}}
FIRST = {
    "id": "a", "class": "chat", "session": "s1", "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 4,
}  # fmt: skip
SECOND = {**FIRST, "id": "b", "turn": 1, "after": "a", "append": True, "delay_ms": 5}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_what_is_written_is_read_again_and_written_the_same(workload: Workload) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.jsonl"
        dump(workload, path)
        assert load(path) == workload
        assert dumps(load(path)) == path.read_bytes().decode()


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_nothing_starts_before_what_it_comes_after(workload: Workload) -> None:
    def took(request: WorkloadRequest) -> float:
        return float(request.turn)

    begun = dict(zip(workload.by_id(), starts(workload.requests, took), strict=True))
    for request in workload.requests:
        if request.after is not None:
            for link in (request.after, *request.waits_for):
                end = begun[link] + took(workload.by_id()[link])
                assert begun[request.id] >= end + request.delay_ms


@settings(max_examples=40, deadline=None)
@given(workloads(), st.data())
def test_a_conversation_goes_on_from_the_one_it_appends_to(
    workload: Workload, data: st.DataObject
) -> None:
    said = {request.id: f"answer of {request.id}" for request in workload.requests}
    request = data.draw(st.sampled_from(workload.requests))
    whole = workload.conversation(request, said)
    assert whole[len(whole) - len(request.messages) :] == request.messages
    before = whole[: len(whole) - len(request.messages)]
    if request.append and request.after is not None:
        parent = workload.by_id()[request.after]
        answer = Message("assistant", said[parent.id])
        assert before == (*workload.conversation(parent, said), answer)
    else:
        assert before == ()


def test_gzip_is_read_and_references_stand_for_texts(tmp_path: Path) -> None:
    content = ["Please: ", {"text": "s"}, " Now."]
    rows = [HEADER, {**FIRST, "messages": [{"role": "user", "content": content}]}]
    path = tmp_path / "w.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (request,) = load(path).requests
    assert request.messages == (Message("user", "Please: You help. Now."),)
    assert '["Please: ",{"text":"s"}," Now."]' in dumps(load(path))


def test_an_unrecorded_answer_must_be_given(tmp_path: Path) -> None:
    workload = load(write(tmp_path / "w.jsonl", HEADER, FIRST, SECOND))
    with pytest.raises(InvalidArgumentError, match="request a has no recorded reply"):
        workload.conversation(workload.requests[1])
    assert workload.conversation(workload.requests[1], {"a": "ho"})[1].content == "ho"


def message(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"id": 7}, "id", "expected a string"),
        ({"id": ""}, "id", "is empty"),
        ({"id": "a"}, "id", "an earlier request"),
        ({"class": None}, "class", "expected a string"),
        ({"session": ""}, "session", "is empty"),
        ({"turn": -1}, "turn", "from 0 on"),
        ({"turn": 1.5}, "turn", "expected a whole number"),
        ({"turn": True}, "turn", "expected a whole number"),
        ({"after": "b"}, "after", "no earlier request"),
        ({"after": "later"}, "after", "no earlier request"),
        ({"after": None}, "append", "without after"),
        ({"append": 1}, "append", "true or false"),
        ({"waits_for": "a"}, "waits_for", "expected a list"),
        ({"waits_for": ["a", "c"]}, "waits_for[1]", "no earlier request"),
        ({"after": None, "append": False, "waits_for": ["a"]}, "waits_for", "without after"),
        ({"delay_ms": -1}, "delay_ms", "from 0 on"),
        ({"delay_ms": "5"}, "delay_ms", "expected a number"),
        ({"after": None, "append": False}, "delay_ms", "without after"),
        ({"arrival_ms": 3}, "arrival_ms", "beside after"),
        ({"messages": []}, "messages", "there are none"),
        ({"messages": ["hi"]}, "messages[0]", "expected an object"),
        (message(role="tool"), "messages[0].role", "'tool'"),
        (message(role="assistant"), "messages[0].role", "what the model answers to"),
        (message(content=None), "messages[0].content", "expected a list"),
        (message(content=[{"text": "t"}]), "messages[0].content[0]", "a key of the header's texts"),
        (message(content="\ud800"), "messages[0].content", "half of a character"),
        (message(name="x"), "messages[0].name", "is no field"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": "9"}, "max_tokens", "expected a whole number"),
        ({"reply": 3}, "reply", "expected a string"),
        ({"salt": 3}, "salt", "expected a string"),
        ({"max_token": 3}, "max_token", "is no field"),
    ],
)
def test_a_wrong_request_is_named_by_file_line_and_field(
    tmp_path: Path, change: dict[str, Any], field: str, problem: str
) -> None:
    path = write(tmp_path / "w.jsonl", HEADER, FIRST, {**SECOND, **change})
    with pytest.raises(TraceFormatError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}, line 3, {field}: ")
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kvlab_workload": 2}, "kvlab_workload"),
        ({"kvlab_workload": True}, "kvlab_workload"),
        ({"name": ""}, "name"),
        ({"seed": "x"}, "seed"),
        ({"options": []}, "options"),
        ({"options": {"x": float("nan")}}, "options"),
        ({"texts": {"s": 1}}, "texts.s"),
        ({"texts": {"s": ""}}, "texts.s"),
        ({"notes": [1]}, "notes[0]"),
        ({"sead": 1}, "sead"),
    ],
)
def test_a_wrong_header_is_named_by_file_line_and_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    path = write(tmp_path / "w.jsonl", {**HEADER, **change}, FIRST)
    with pytest.raises(TraceFormatError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}, line 1, {field}: ")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*HEADER, *SECOND, "waits_for", "reply", "salt"]), values)
def test_any_value_of_any_field_is_read_or_named(field: str, value: object) -> None:
    head = {**HEADER, field: value} if field in HEADER else HEADER
    last = SECOND if field in HEADER else {**SECOND, field: value}
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "w.jsonl", head, FIRST, last)
        try:
            workload = load(path)
        except TraceFormatError as error:
            assert f"{path}, line {1 if field in HEADER else 3}, " in str(error)  # noqa: PT017
        else:
            assert dumps(workload)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no header"),
        (json.dumps(HEADER), "has no request"),
        (json.dumps(FIRST), "line 1, kvlab_workload: is missing"),
        (json.dumps(HEADER) + "\n{", "line 2: is no JSON"),
        (json.dumps(HEADER) + "\n[]", "line 2: is [], expected a JSON object"),
    ],
)
def test_what_is_no_workload_is_said(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(text)
    with pytest.raises(TraceFormatError) as raised:
        load(path)
    assert problem in str(raised.value)


def test_an_invalid_workload_is_not_written(tmp_path: Path) -> None:
    workload = load(write(tmp_path / "w.jsonl", HEADER, FIRST, SECOND))
    first, second = workload.requests
    wrong = Workload(workload.header, (first, replace(second, after="x")))
    with pytest.raises(TraceFormatError, match=r"small, request 2 \(b\), after: is 'x'"):
        dump(wrong, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(TraceFormatError, match="small, header, requests: there are none"):
        Workload(workload.header, ()).validate()
    with pytest.raises(TraceFormatError, match="header, options: would be read as something else"):
        Workload(Header(name="x", options={"pair": (1, 2)}), workload.requests).validate()
