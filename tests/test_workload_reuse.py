"""The ideal reuse of a workload, against a search through all earlier prompts and against the policy lab."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import InvalidArgumentError
from kvlab.sim import prefix
from kvlab.sim.trace import load as load_trace
from kvlab.workload import (
    Header,
    Message,
    ModelTokenizer,
    Workload,
    WorkloadRequest,
    ideal_reuse,
    load,
    tokenizer,
)
from kvlab.workload.generators import generate
from kvlab.workload.trace import write_trace
from workload_strategies import workloads

COMMITTED = Path(__file__).parent.parent / "workloads"
CHARS = tokenizer("chars")


class Letters:
    """Every letter is a token, and so is every role; the assistant's comes before its answer."""

    name = "letters"

    def prompt(self, messages: Sequence[Message]) -> Sequence[int]:
        return self.text("".join(message.role[0] + message.content for message in messages) + "a")

    def text(self, text: str) -> Sequence[int]:
        return [ord(letter) for letter in text]


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


@settings(max_examples=40, deadline=None)
@given(workloads(), st.integers(1, 5), st.booleans(), st.data())
def test_it_is_the_longest_prefix_of_anything_earlier_in_whole_blocks(
    workload: Workload, block: int, answered: bool, data: st.DataObject
) -> None:
    ids = [request.id for request in workload.requests]
    answers = {name: f"{name} says ab" for name in ids}
    if not answered:
        recorded = (replace(request, reply=answers[request.id]) for request in workload.requests)
        workload = Workload(workload.header, tuple(recorded))
    order = data.draw(st.permutations(ids))
    letters = Letters()
    reuse = ideal_reuse(
        workload, letters, block_tokens=block, answers=answers if answered else None, order=order
    )
    assert [each.id for each in reuse.requests] == order
    seen: list[tuple[str, Sequence[int]]] = []
    for each in reuse.requests:
        request = workload.by_id()[each.id]
        prompt = letters.prompt(workload.conversation(request, answers))
        common = max((in_common(prompt, kept) for s, kept in seen if s == request.salt), default=0)
        assert each.prompt_tokens == len(prompt)
        assert each.reused_tokens == min(common, len(prompt) - 1) // block * block
        kept = [*prompt, *letters.text(answers[each.id])][:-1] if answered else prompt
        seen.append((request.salt, kept))
    total = sum(each.reused_tokens for each in reuse.requests)
    assert reuse.total.reused_tokens == total
    assert sum(t.reused_tokens for t in reuse.by_class().values()) == total


@pytest.mark.parametrize("name", ["session", "rag", "fanout", "subagent", "unique"])
def test_the_policy_lab_hits_the_same_tokens_without_limits(tmp_path: Path, name: str) -> None:
    workload = load(COMMITTED / f"{name}.jsonl")
    blocks = write_trace(workload, tmp_path / "t.jsonl", CHARS)
    trace = load_trace(tmp_path / "t.jsonl", "mooncake", block_tokens=16)
    ideal = ideal_reuse(workload, CHARS).total
    assert (len(trace), trace.tokens) == (ideal.requests, ideal.prompt_tokens)
    assert trace.unique_blocks == blocks
    replay = prefix.run(trace, policy="lru", capacity_blocks=None).as_dict()
    assert replay["hit_tokens"] == ideal.reused_tokens


def test_a_trace_has_times_sessions_and_classes(tmp_path: Path) -> None:
    workload = generate("planner", plans=2, steps=3)
    path = tmp_path / "t.jsonl"
    write_trace(workload, path, CHARS, block_tokens=8, token_ms=0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["type"] for row in rows} == {"plan", "step", "conclude"}
    assert {row["session_id"] for row in rows} == {"plan-00", "plan-01"}
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 8) for row in rows)
    one = [row for row in rows if row["session_id"] == "plan-00"]
    delays = [r.delay_ms for r in workload.requests if r.session == "plan-00"]
    assert [row["timestamp"] for row in one] == [sum(delays[: at + 1]) for at in range(3)]


@given(st.text(st.characters()))
def test_characters_are_numbered_by_fours(text: str) -> None:
    wanted = []
    for start in range(0, len(text), 4):
        value = 0
        for letter in text[start : start + 4]:
            value = value * 0x110000 + ord(letter)
        wanted.append(value % 0xFFFFFFFB)
    assert list(CHARS.text(text)) == wanted


def ask(id: str, text: str, **fields: object) -> WorkloadRequest:  # noqa: A002
    first = {"id": id, "klass": "k", "session": "s", "max_tokens": 3}
    return WorkloadRequest(messages=(Message("user", text),), **{**first, **fields})  # type: ignore[arg-type]


def test_the_last_token_and_other_salts_are_never_reused() -> None:
    same = "x" * 62  # 64 tokens with the two roles
    requests = (ask("a", same), ask("b", same), ask("c", same, salt="other"))
    reuse = ideal_reuse(Workload(Header(name="w"), requests), Letters(), block_tokens=16)
    assert [each.reused_tokens for each in reuse.requests] == [0, 48, 0]


def test_an_answer_is_reused_only_if_the_model_gave_it() -> None:
    reply = "y" * 40
    requests = (
        ask("a", "x" * 40, reply=reply),
        ask("b", "z" * 40, after="a", append=True, turn=1),
    )
    workload = Workload(Header(name="w"), requests)
    recorded = ideal_reuse(workload, Letters(), block_tokens=1)
    generated = ideal_reuse(workload, Letters(), block_tokens=1, answers={"a": reply})
    assert recorded.requests[1].reused_tokens == 42
    # The keys and values of an answer's last token are never computed.
    assert generated.requests[1].reused_tokens == 42 + 39


def test_an_answer_that_nobody_knows_is_assumed_and_counted() -> None:
    requests = (ask("a", "x"), ask("b", "y", after="a", append=True, turn=1))
    reuse = ideal_reuse(Workload(Header(name="w"), requests), CHARS)
    assert reuse.assumed_answers == 1


def test_what_cannot_be_is_refused() -> None:
    workload = Workload(Header(name="w"), (ask("a", "x"),))
    with pytest.raises(InvalidArgumentError, match="block_tokens = 0"):
        ideal_reuse(workload, CHARS, block_tokens=0)
    with pytest.raises(InvalidArgumentError, match="order: has 2 ids, and the workload 1"):
        ideal_reuse(workload, CHARS, order=["a", "a"])


@pytest.mark.usefixtures("smollm2")
def test_prompts_of_a_model_are_those_of_its_chat_template() -> None:
    transformers = pytest.importorskip("transformers", reason="the 'hf' extra is not installed")
    from kvlab import models

    own = transformers.AutoTokenizer.from_pretrained(models.resolve("smollm2-135m"))
    model = ModelTokenizer("own", own)
    text = own.decode(list(model.prompt([Message("system", "Be brief."), Message("user", "Hi")])))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
