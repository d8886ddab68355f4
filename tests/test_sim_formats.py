"""Importers: what they read, and what they say of rows that are not like that."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kvlab.errors import ConfigError, InvalidArgumentError, TraceFormatError
from kvlab.sim import Request, formats, prefix
from kvlab.sim.formats.chain import chain_ids
from kvlab.sim.runs import Runs
from kvlab.sim.trace import find, load

TRACES = Path(__file__).parent / "fixtures" / "traces"


def read(name: str, format: str, **options: object) -> tuple[list[Request], formats.TraceInfo]:  # noqa: A002
    source = formats.read(TRACES / name, format, **options)
    return list(source), source.info


def write(folder: Path, *rows: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def mooncake(**changes: object) -> dict[str, object]:
    return {
        "timestamp": 0,
        "input_length": 700,
        "output_length": 3,
        "hash_ids": [1, 2],
    } | changes


def test_mooncake() -> None:
    requests, info = read("mooncake.jsonl", "mooncake")
    assert len(requests) == 40
    first = requests[0]
    assert (first.at_ms, first.tokens, first.output_tokens) == (0, 6758, 500)
    assert list(first.blocks) == list(range(14))
    assert (info.block_tokens, info.prefix_ids, info.has_blocks) == (512, True, True)
    assert any("partial block" in note for note in info.notes)


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_bytes(gzip.compress((TRACES / "mooncake.jsonl").read_bytes()))
    assert len(list(formats.read(path, "mooncake"))) == 40


def test_weka_merges_sessions_and_keeps_their_ids_apart() -> None:
    requests, info = read("weka.jsonl", "weka")
    assert info.block_tokens == 64
    times = [request.at_ms for request in requests]
    assert times == sorted(times)
    assert times[0] == 0
    sessions = {request.session: set[int]() for request in requests}
    assert len(sessions) == 2
    for request in requests:
        sessions[request.session].update(request.blocks)
        assert len(request.blocks) == request.tokens // 64
    first, second = sessions.values()
    assert not first & second
    assert {request.category for request in requests} >= {"tool_use", "subagent tool_use"}


def test_weka_takes_the_sessions_that_are_asked_for() -> None:
    requests, _ = read("weka.jsonl", "weka", sessions=["trace_0002"])
    assert {request.session for request in requests} == {"trace_0002"}
    assert len(requests) == 6
    with pytest.raises(InvalidArgumentError, match="trace_9999"):
        read("weka.jsonl", "weka", sessions=["trace_9999"])


def test_weka_leaves_subagents_out_and_says_so() -> None:
    whole, _ = read("weka.jsonl", "weka")
    requests, info = read("weka.jsonl", "weka", subagents=False)
    assert 0 < len(requests) < len(whole)
    assert any("subagents" in note for note in info.notes)


def test_weka_reads_plain_ids_and_folders_of_sessions(tmp_path: Path) -> None:
    for line in (TRACES / "weka.jsonl").read_text().splitlines():
        session = json.loads(line)
        for request in session["requests"]:
            for one in request.get("requests", [request]):
                one["hash_ids"] = list(Runs(one.pop("hash_runs")))
        (tmp_path / f"{session['id']}.json").write_text(json.dumps(session))
    plain = list(formats.read(tmp_path, "weka"))
    runs, _ = read("weka.jsonl", "weka")
    assert [len(request.blocks) for request in plain] == [len(request.blocks) for request in runs]
    assert {request.session for request in plain} == {request.session for request in runs}


def test_bailian_follows_a_chat_to_its_root() -> None:
    requests, info = read("bailian.jsonl", "bailian")
    assert [request.session for request in requests] == ["1", "1", "3", "1", "8"]
    assert [request.at_ms for request in requests] == [0, 2750, 3000, 8500, 9500]
    assert requests[2].category == "file"
    assert info.block_tokens == 16
    assert any("1 requests go on from a chat" in note for note in info.notes)


def test_ragpulse_sorts_times_written_as_strings_and_keeps_components_apart() -> None:
    requests, info = read("ragpulse.jsonl", "ragpulse")
    times = [request.at_ms for request in requests]
    assert times == sorted(times)
    assert times[0] == 0
    assert any("1 rows came before" in note for note in info.notes)
    assert not info.prefix_ids
    assert info.block_lengths is not None
    for request in requests:
        assert sum(info.block_lengths[block] for block in request.blocks) <= request.tokens
    rows = [json.loads(line) for line in (TRACES / "ragpulse.jsonl").read_text().splitlines()]
    pieces = {
        (component, piece)
        for row in rows
        for component, ids in row["hash_ids"].items()
        for piece in ids
    }
    assert len({block for request in requests for block in request.blocks}) == len(pieces)


def test_ragpulse_without_lengths_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes((TRACES / "ragpulse.jsonl").read_bytes())
    source = formats.read(path, "ragpulse")
    assert source.info.block_lengths is None
    assert any("no lengths" in note for note in source.info.notes)
    lengths = formats.read(path, "ragpulse", lengths=TRACES / "ragpulse_lengths.json")
    assert lengths.info.block_lengths


@pytest.mark.parametrize(("name", "format"), [("azure.csv", "azure"), ("burstgpt.csv", "burstgpt")])
def test_arrivals_only(name: str, format: str) -> None:  # noqa: A002
    requests, info = read(name, format)
    assert not info.has_blocks
    assert all(len(request.blocks) == 0 and request.tokens > 0 for request in requests)
    assert requests[0].at_ms == 0
    assert any("no hit ratio" in note for note in info.notes)


def test_azure_keeps_what_is_behind_the_sixth_digit() -> None:
    requests, _ = read("azure.csv", "azure")
    assert requests[1].at_ms == pytest.approx(52.0, abs=0.01)
    assert (requests[0].tokens, requests[0].output_tokens) == (4808, 10)


def test_burstgpt_sorts_and_counts_failures() -> None:
    requests, info = read("burstgpt.csv", "burstgpt")
    assert [request.at_ms for request in requests] == [0, 40_000, 85_000, 113_000]
    assert any("1 requests have no answer" in note for note in info.notes)


def stored(hashes: list[Any], parent: Any, **changes: object) -> dict[str, object]:
    event: dict[str, object] = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": [],
        "block_size": 16,
    }
    return event | changes


def test_kv_events_are_requests_for_what_was_stored_and_all_before_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"ts": 5.0, "events": [stored([10, 11], None)]},
        [6.5, [["BlockStored", [12], 11, [1] * 16, 16, None], ["BlockRemoved", [12]]]],
        {"ts": 7.0, "events": [{"type": "AllBlocksCleared"}, stored(["0xab"], -4)]},
    )
    source = formats.read(path, "kv_events")
    requests = list(source)
    assert [request.at_ms for request in requests] == [0, 1500, 2000]
    assert list(requests[1].blocks) == [10, 11, 12]
    assert requests[1].tokens == 48
    assert len(requests[2].blocks) == 2
    notes = " ".join(source.info.notes)
    assert "lower bounds" in notes
    assert "2 removals" in notes
    assert "1 blocks hang" in notes


VLLM = (
    "INFO 03-14 10:00:0{} [logger.py:42] Received request cmpl-{}: prompt: 'x', params: "
    "SamplingParams(n=1), prompt_token_ids: {}, prompt_embeds shape: None, lora_request: None.\n"
)


def test_vllm_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tokens = list(range(40))
    path.write_text(
        "INFO 03-14 09:59:58 starting\n"
        + VLLM.format(1, "a", tokens)
        + VLLM.format(3, "b", tokens[:35])
    )
    source = formats.read(path, "vllm_log")
    requests = list(source)
    assert [request.at_ms for request in requests] == [0, 2000]
    assert list(requests[0].blocks) == list(requests[1].blocks) == chain_ids(tokens, 16)
    assert [request.tokens for request in requests] == [40, 35]
    assert any("1 lines" in note for note in source.info.notes)


def test_request_logs_as_json(tmp_path: Path) -> None:
    tokens = list(range(130))
    received = {"event": "request.received", "timestamp": "2026-01-02T03:04:05"}
    path = write(
        tmp_path,
        received | {"rid": "a", "obj": {"input_ids": tokens, "text": None}},
        {"event": "request.finished", "rid": "a"},
        received | {"rid": "b", "obj": {"text": "hello", "input_ids": None}},
    )
    source = formats.read(path, "sglang_log")
    (request,) = source
    assert list(request.blocks) == chain_ids(tokens, 64)
    assert any("1 requests have their text only" in note for note in source.info.notes)
    row = {"arrival_time": 3.5, "prompt_token_ids": tokens, "output_tokens": 4, "lora_name": "sql"}
    (request,) = formats.read(write(tmp_path, row), "vllm_log", block_tokens=100)
    assert (len(request.blocks), request.output_tokens, request.category) == (1, 4, "sql")


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("bailian", ("text", "file", "search")),
        ("weka", ("tool_use", "end_turn", "subagent tool_use")),
        ("ragpulse", ("rag", "web")),
    ],
)
def test_what_a_format_says_of_a_requests_kind_is_kept(
    name: str, categories: tuple[str, ...]
) -> None:
    assert load(TRACES / f"{name}.jsonl", name).categories == categories


def test_categories_reach_the_policy_that_asks_for_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for turn in range(300):
        # Chats come back after ten other requests, API calls never.
        chat = turn % 2 == 0
        ids = [turn // 2 % 5 * 4 + n if chat else 10_000 + turn * 4 + n for n in range(4)]
        rows.append(
            {"chat_id": turn, "timestamp": turn, "input_length": 64, "hash_ids": ids,
             "type": "chat" if chat else "api"}
        )  # fmt: skip
    hits = []
    for each in (rows, [{**row, "type": ""} for row in rows]):
        trace = load(write(tmp_path, *each), "bailian")
        hits.append(prefix.run(trace, policy="workload-aware", capacity_blocks=28).hits)
    assert hits[0] > 2 * hits[1]


def test_sglang_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(
        "[2026-01-02 03:04:05] Receive: obj=GenerateReqInput(rid='a', text='x, y', "
        f"input_ids={list(range(64))}, sampling_params={{}})\n"
    )
    (request,) = formats.read(path, "sglang_log")
    assert len(request.blocks) == 1


def test_a_log_without_requests_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("nothing\nof interest\n")
    with pytest.raises(TraceFormatError, match="2 lines, but none of a request"):
        list(formats.read(path, "vllm_log"))


def chat(*contents: str, **fields: object) -> dict[str, object]:
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    ]
    return {"messages": messages} | fields


def test_chat_requests_share_the_prefix_that_they_share(tmp_path: Path) -> None:
    common = "You are a helpful assistant. " * 20
    path = write(
        tmp_path,
        chat(common, "hello", timestamp=4),
        {"body": chat(common, "bye"), "timestamp": 2.5},
    )
    source = formats.read(path, "chat")
    later, earlier = source
    assert (later.at_ms, earlier.at_ms) == (0, 1500)
    shared = [a == b for a, b in zip(later.blocks, earlier.blocks, strict=False)]
    assert shared.count(True) >= len(common) // 64 - 1
    assert any("pieces of 4 characters" in note for note in source.info.notes)


def test_chat_sessions_have_a_request_for_every_answer(tmp_path: Path) -> None:
    long = "word " * 100
    row = chat(long, long, long, long, long, id="s")
    messages: Any = row["messages"]
    messages.insert(1, {"role": "assistant", "content": long, "is_demo": True})
    path = write(tmp_path, row)
    first, second = formats.read(path, "chat", rows="sessions", block_tokens=8)
    assert list(second.blocks)[: len(first.blocks)] == list(first.blocks)
    assert first.session == second.session == "s"
    assert first.output_tokens > 0
    count = formats.read(path, "chat", tokenizer=lambda text: [len(text)])
    assert [request.tokens for request in count] == [6]


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"hash_ids": 5}, "hash_ids", "expected a list"),
        ({"hash_ids": [1, None]}, r"hash_ids\[1\]", "id of a block"),
        ({"input_length": -1}, "input_length", "is -1"),
        ({"input_length": 2.5}, "input_length", "is 2.5"),
        ({"input_length": "many"}, "input_length", "'many'"),
        ({"timestamp": float("nan")}, "timestamp", "finite"),
        ({"timestamp": True}, "timestamp", "True"),
        ({"block_size": 16}, "block_size", "block_tokens=16"),
    ],
)
def test_a_malformed_row_names_file_line_and_field(
    tmp_path: Path, changes: dict[str, object], field: str, problem: str
) -> None:
    path = write(tmp_path, mooncake(), mooncake(**changes))
    with pytest.raises(TraceFormatError, match=rf"{path.name}, line 2, {field}: .*{problem}"):
        list(formats.read(path, "mooncake"))


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    row = mooncake()
    del row["hash_ids"]
    path = write(tmp_path, row)
    with pytest.raises(
        TraceFormatError, match="line 1, hash_ids: is missing; the row has timestamp"
    ):
        list(formats.read(path, "mooncake"))


@pytest.mark.parametrize("text", ["{", "[1, 2]", '"x"', "{} {}"])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{json.dumps(mooncake())}\n\n{text}\n")
    with pytest.raises(TraceFormatError, match="line 3: is"):
        list(formats.read(path, "mooncake"))


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress((TRACES / "mooncake.jsonl").read_bytes())[:-40])
    with pytest.raises(TraceFormatError, match="cannot be read"):
        list(formats.read(path, "mooncake"))


def test_a_csv_column_or_cell_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,5\n")
    with pytest.raises(TraceFormatError, match="line 1, GeneratedTokens: is missing"):
        list(formats.read(path, "azure"))
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,5\n")
    with pytest.raises(TraceFormatError, match="line 2, GeneratedTokens: is missing"):
        list(formats.read(path, "azure"))
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,6\n")
    with pytest.raises(TraceFormatError, match="line 2, TIMESTAMP: is 'yesterday'"):
        list(formats.read(path, "azure"))


def test_unknown_formats_and_options_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="mooncake, ragpulse"):
        formats.read(TRACES / "mooncake.jsonl", "moonshine")
    with pytest.raises(ConfigError, match="block_size = 4: format mooncake has block_tokens"):
        formats.read(TRACES / "mooncake.jsonl", "mooncake", block_size=4)


def test_wide_ids_become_64_bits(tmp_path: Path) -> None:
    wide = [2**64 + 7, -1, "0f" * 32, 2**64 - 1]
    path = write(tmp_path, mooncake(hash_ids=wide), mooncake(hash_ids=wide))
    first, second = formats.read(path, "mooncake")
    assert list(first.blocks) == list(second.blocks)
    assert first.blocks[3] == first.blocks[1] == 2**64 - 1
    assert len(set(first.blocks)) == 3


def test_runs_are_the_ids_they_stand_for() -> None:
    runs = Runs([5, 3, 1, 0, 100, 2])
    ids = [5, 6, 7, 100, 101]
    assert list(runs) == ids
    assert [runs[index] for index in range(-5, 5)] == ids + ids
    assert runs[1:4] == ids[1:4]
    assert list(Runs([5, 1], offset=1 << 40)) == [(1 << 40) + 5]
    with pytest.raises(IndexError, match="5 of 5"):
        runs[5]
    with pytest.raises(ValueError, match="pairs"):
        Runs([1])


def test_a_trace_is_found_in_the_folder_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLAB_TRACES", str(TRACES))
    assert find("mooncake") == TRACES / "mooncake.jsonl"
    assert len(load("mooncake", "mooncake")) == 40
    with pytest.raises(InvalidArgumentError, match="neither here nor in"):
        find("absent")
    monkeypatch.delenv("KVLAB_TRACES")
    with pytest.raises(InvalidArgumentError, match="KVLAB_TRACES is not set"):
        find("mooncake")
