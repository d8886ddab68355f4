"""Recorded conversations and requests become workloads; what is cut or left out is counted."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import ConfigError, InvalidArgumentError, TraceFormatError
from kvlab.workload import Message, Workload, dump, ideal_reuse, load, tokenizer
from kvlab.workload.importers import FORMATS, read

FILES = Path(__file__).parent / "fixtures" / "workloads"
CHARS = tokenizer("chars")


def sessions(workload: Workload) -> dict[str, int]:
    names = [request.session for request in workload.requests]
    return {name: names.count(name) for name in names}


def test_each_answer_of_a_transcript_is_one_call(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (FILES / "swe_agent.jsonl").read_text().splitlines()]
    workload = read(FILES / "swe_agent.jsonl", "transcripts", gap_ms=250)
    answers = [sum(m["role"] == "assistant" for m in row["messages"]) for row in rows]
    assert list(sessions(workload).values()) == answers
    for row, name in zip(rows, sessions(workload), strict=True):
        *_, last = (request for request in workload.requests if request.session == name)
        whole = workload.conversation(last)
        until = max(at for at, m in enumerate(row["messages"]) if m["role"] == "assistant")
        assert len(whole) == until
        for message, original in zip(whole, row["messages"], strict=False):
            assert message.content.endswith(original["content"] or "")
            for call in original.get("tool_calls") or ():
                assert call["function"]["name"] in message.content
        assert last.delay_ms == 250
    dump(workload, tmp_path / "w.jsonl")
    assert load(tmp_path / "w.jsonl") == workload
    # What a conversation repeats of itself is most of it.
    assert ideal_reuse(workload, CHARS).by_class()["later"].share > 0.7


def test_demonstrations_are_part_of_the_prompt(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "example", "is_demo": True},
        {"role": "assistant", "content": "shown", "is_demo": True},
        {"role": "user", "content": "q", "is_demo": False},
        {"role": "assistant", "content": "a", "is_demo": False},
    ]
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"messages": messages}).encode()))
    (request,) = read(path, "transcripts").requests
    assert [message.content for message in request.messages] == ["s", "example", "shown", "q"]
    assert request.reply == "a"
    assert request.session == "row 1"


def test_long_conversations_are_cut_and_counted() -> None:
    path = FILES / "swe_agent.jsonl"
    whole = read(path, "transcripts")
    longest = max(each.prompt_tokens for each in ideal_reuse(whole, CHARS).requests)
    for context in (longest, longest * 3 // 4, longest // 2):
        cut = read(path, "transcripts", context_tokens=context)
        for request in cut.requests:
            prompt = CHARS.prompt(cut.conversation(request))
            assert len(prompt) + request.max_tokens <= context
        (note,) = (note for note in cut.header.notes if "conversations are cut" in note)
        left = int(note.rsplit(": ", 1)[1].split()[0])
        gone = sum(count for name, count in sessions(whole).items() if name not in sessions(cut))
        assert len(cut.requests) + left + gone == len(whole.requests)
    with pytest.raises(InvalidArgumentError, match="nothing to send: 3 of 3 rows are left out"):
        read(path, "transcripts", context_tokens=20)


def test_sharegpt_is_a_list_or_lines(tmp_path: Path) -> None:
    workload = read(FILES / "sharegpt.json", "sharegpt")
    assert sessions(workload) == {"share-1": 2, "share-2": 1}
    hello = workload.requests[2]
    assert hello.messages == (
        Message("assistant", "Hello! What can I do?"),
        Message("user", "Name a tier."),
    )
    assert hello.reply == "L2, host memory.\nOr L3, local NVMe."
    notes = " ".join(workload.header.notes)
    assert "1 conversations without an answer" in notes
    assert "1 answers that follow another" in notes
    rows = json.loads((FILES / "sharegpt.json").read_text())
    lines = tmp_path / "sharegpt.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(lines, "sharegpt").requests == workload.requests


def test_requests_keep_their_times_and_limits() -> None:
    workload = read(FILES / "requests.jsonl", "requests", max_tokens=99)
    assert [request.arrival_ms for request in workload.requests] == [0, 1000, 2500]
    green, files, sky = workload.requests
    assert (green.session, green.reply, green.max_tokens) == ("one", "Green.", 2)
    assert files.messages[-1] == Message("user", "a.py\nb.py")
    assert '"name": "ls"' in files.messages[1].content
    assert files.max_tokens == 12
    assert sky.messages[0].role == "system"
    assert sky.messages[1].content == "What colour\nis the sky?"
    assert (sky.max_tokens, sky.reply) == (40, None)
    assert any("1 results of tools" in note for note in workload.header.notes)
    assert len(read(FILES / "requests.jsonl", "requests", limit=2).requests) == 2


def test_texts_that_come_back_are_written_once(tmp_path: Path) -> None:
    shared = "You are a helper. " * 40
    rows = [
        {"messages": [{"role": "system", "content": shared}, {"role": "user", "content": f"{n}"}]}
        for n in range(5)
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workload = read(path, "requests")
    assert list(workload.header.texts.values()) == [shared]
    dump(workload, tmp_path / "w.jsonl")
    assert (tmp_path / "w.jsonl").read_text().count(shared) == 1
    assert load(tmp_path / "w.jsonl") == workload


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("format", "row", "problem"),
    [
        ("transcripts", {}, "messages: is missing"),
        ("transcripts", {"messages": "no"}, "messages: is 'no', expected a list"),
        ("transcripts", {"messages": [{"content": "x"}]}, "messages[0].role: is missing"),
        ("transcripts", {"messages": [{"role": "bard"}]}, "messages[0].role: is 'bard'"),
        ("transcripts", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("requests", {"messages": [{"role": "assistant", "content": "x"}]}, "has no question"),
        ("requests", {"messages": [USER], "max_tokens": -3}, "max_tokens: is -3"),
        ("requests", {"messages": [USER], "timestamp": "soon"}, "timestamp: is 'soon'"),
        ("requests", {"messages": [USER], "timestamp": 1e308}, "timestamp: is 1e+308"),
        ("requests", {"messages": [{**USER, "content": "\udc00"}]}, "half of a character"),
        ("requests", {"body": 3}, "body: is 3, expected an object"),
        ("sharegpt", {"conversations": [{"from": "me", "value": "x"}]}, "[0].from: is 'me'"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "[0].value: is missing"),
    ],
)
def test_a_wrong_row_is_named_by_file_line_and_field(
    tmp_path: Path,
    format: str,  # noqa: A002
    row: dict[str, Any],
    problem: str,
) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(f"\n{json.dumps(row)}\n")
    with pytest.raises(TraceFormatError) as raised:
        read(path, format)
    assert str(raised.value).startswith(f"{path}, line 2, ")
    assert problem in str(raised.value)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "from", "value"]), inner)
    ),
    max_leaves=8,
)
rows = st.dictionaries(
    st.sampled_from(["messages", "body", "conversations", "timestamp", "id", "max_tokens"]), values
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, max_size=3), st.sampled_from([*FORMATS]), st.booleans())
def test_any_rows_are_read_or_named(rows: list[object], format: str, lines: bool) -> None:  # noqa: A002
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        path.write_text(text)
        try:
            workload = read(path, format)
        except TraceFormatError as error:
            assert f"{path}, line " in str(error)  # noqa: PT017
        except InvalidArgumentError as error:
            assert "nothing to send" in str(error)  # noqa: PT017
        else:
            workload.validate()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "line 1: is no JSON"),
        ('[{"conversations": []},\n\n 3]', "line 3: is 3, expected an object"),
        ('[{"conversations": []},\n {"x"]', "line 2: is no JSON"),
        ("[", "line 1: is no JSON"),
        ('[{"conversations": [{"from": "cat"}]}', "line 1, conversations[0].from"),
    ],
)
def test_damaged_json_is_named_by_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(TraceFormatError) as raised:
        read(path, "sharegpt")
    assert problem in str(raised.value)


def test_unknown_formats_and_empty_files_are_said(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("")
    with pytest.raises(ConfigError, match="format = chatml: use one of: transcripts, sharegpt"):
        read(path, "chatml")
    with pytest.raises(InvalidArgumentError, match="it has no row"):
        read(path, "requests")
    with pytest.raises(InvalidArgumentError, match="limit = 0"):
        read(path, "requests", limit=0)
    with pytest.raises(InvalidArgumentError, match="context_tokens = 0"):
        read(path, "requests", context_tokens=0)
