"""Requests that are served, and those that are left to plain transformers with the reason."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from hf_support import attach, extended, forward, hits, live_cache, open_store, same_rows, state
from kvlab.errors import (
    ConfigError,
    StoreClosedError,
    UnsupportedModelError,
    UnsupportedRequestError,
)
from tiny_models import build, prompt

SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


class Ban(LogitsProcessor):
    """Never the same token as plain greedy decoding would take at first."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores[:, self.token] = -float("inf")
        return scores


def embedded(model: Any, ids: Any) -> dict[str, Any]:
    return {"inputs_embeds": model.get_input_embeddings()(ids).detach()}


LEFT_ALONE: dict[str, tuple[Any, str]] = {
    "batch": (
        lambda _model, ids: {"input_ids": torch.cat([ids, ids + 1])},
        "the batch is 2",
    ),
    "padding": (
        lambda _model, ids: {
            "input_ids": ids,
            "attention_mask": torch.cat([torch.zeros(1, 3), torch.ones(1, 37)], dim=1).long(),
        },
        "hides tokens",
    ),
    "padding without a mask": (
        lambda _model, ids: {"input_ids": extended(torch.zeros(1, 3).long(), ids)},
        "the padding token 0",
    ),
    "beams": (lambda _model, ids: {"input_ids": ids, "num_beams": 2}, "beam search"),
    "no cache": (
        lambda _model, ids: {"input_ids": ids, "use_cache": False},
        "turns the KV cache off",
    ),
    "own cache": (
        lambda _model, ids: {"input_ids": ids, "past_key_values": DynamicCache()},
        "past_key_values of its own",
    ),
    "embeddings": (embedded, "input_ids is not a tensor"),
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_cannot_be_served_is_answered_by_plain_transformers(kind: str, tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    make, reason = LEFT_ALONE[kind]
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids)
        session.flush()
        before = state(store)
        streamed, plain_streamed = Collector(), Collector()
        streams = kind not in {"batch", "beams"}
        more: dict[str, Any] = {"streamer": streamed} if streams else {}
        plain_more = {"streamer": plain_streamed} if streams else {}
        out = session.generate(**make(model, ids), **SETTINGS, **more)
        expected = model.generate(**make(model, ids), **SETTINGS, **plain_more)
        assert torch.equal(out.sequences, expected)
        assert streamed.tokens == plain_streamed.tokens
        assert reason in str(out.report.fallback)
        assert out.report.hit_tokens.total == 0
        assert state(store) == before


def test_a_padding_token_under_a_mask_of_ones_is_a_token_like_others(tmp_path: Path) -> None:
    model, ids = build("llama"), extended(torch.zeros(1, 3).long(), prompt(40))
    mask = torch.ones_like(ids)
    with open_store(tmp_path) as store, attach(model, store) as session:
        out = session.generate(ids, attention_mask=mask, **SETTINGS)
        assert out.report.fallback is None
        assert torch.equal(out.sequences, model.generate(ids, attention_mask=mask, **SETTINGS))


def test_processors_criteria_and_streamers_are_passed_on_and_left_as_they_were(
    tmp_path: Path,
) -> None:
    model, ids = build("llama"), prompt(40)
    first = int(model.generate(ids, **SETTINGS)[0, 40])

    def extras() -> dict[str, Any]:
        return {
            "logits_processor": LogitsProcessorList([Ban(first)]),
            "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(44)]),
            "streamer": Collector(),
            "past_key_values": None,
            "attention_mask": None,
        }

    mine, other = extras(), extras()
    with open_store(tmp_path) as store, attach(model, store) as session:
        for _ in range(2):  # cold, then warm
            keys = list(mine)
            out = session.generate(ids, **SETTINGS, **mine)
            assert out.report.fallback is None
            assert list(mine) == keys
            assert len(mine["logits_processor"]) == len(mine["stopping_criteria"]) == 1
            assert mine["past_key_values"] is None
        assert hits(out.report) == (32, 0, 0)
        expected = model.generate(ids, **SETTINGS, **other)
        assert out.sequences.shape == (1, 44)
        assert int(out.sequences[0, 40]) != first
        assert torch.equal(out.sequences, expected)
        assert mine["streamer"].tokens == other["streamer"].tokens * 2
        assert mine["streamer"].ended


def test_a_generation_config_is_read_and_left_alone(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    make_config: Any = GenerationConfig
    config = make_config(max_new_tokens=9, do_sample=False, pad_token_id=0)
    before = config.to_dict()
    with open_store(tmp_path) as store, attach(model, store) as session:
        out = session.generate(ids, generation_config=config)
        assert out.report.fallback is None
        assert torch.equal(out.sequences, model.generate(ids, generation_config=config))
        assert config.to_dict() == before


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
def test_without_any_length_generation_ends_where_that_of_transformers_does(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    with open_store(tmp_path) as store, attach(model, store) as session:
        out = session.generate(ids, do_sample=False)
        assert out.report.fallback is None
        assert torch.equal(out.sequences, model.generate(ids, do_sample=False))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("inference", [True, False])
def test_ids_of_any_integer_dtype_are_one_prompt(
    dtype: Any, inference: bool, tmp_path: Path
) -> None:
    model = build("llama")
    expected = model.generate(prompt(40), **SETTINGS)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(prompt(40))
        with torch.inference_mode(inference):
            ids = prompt(40).to(dtype)
            out = session.generate(ids, **SETTINGS)
            assert hits(session.prefill(ids).report) == (32, 0, 0)
        assert hits(out.report) == (32, 0, 0)
        assert torch.equal(out.sequences.long(), expected)


def test_a_model_output_comes_back_whole_with_a_cache_that_can_be_gone_on_with(
    tmp_path: Path,
) -> None:
    model, ids = build("llama"), prompt(40)
    asked = SETTINGS | {"return_dict_in_generate": True, "output_scores": True}
    expected = model.generate(ids, past_key_values=live_cache(model, ids, 0), **asked)
    with open_store(tmp_path, l1="2MiB") as store, attach(model, store) as session:
        out = session.generate(ids, **asked)
        assert type(out.output) is type(expected)
        assert torch.equal(out.output.sequences, expected.sequences)
        assert len(out.output.scores) == 8
        kept = out.output.past_key_values
        # Its memory is not handed to others while it lives.
        for seed in range(1, 5):
            session.generate(prompt(40, seed=seed), **SETTINGS)
        assert same_rows(kept, expected.past_key_values, 47)
        token = out.sequences[:, -1:]
        assert torch.equal(
            forward(model, token, kept), forward(model, token, expected.past_key_values)
        )


def test_cache_memory_is_free_again_without_a_garbage_collection(tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store, attach(model, store) as session:
        gc.collect()
        gc.disable()
        try:
            for seed in range(3):
                session.generate(prompt(40, seed=seed), **SETTINGS)
                session.prefill(prompt(40, seed=seed))
                session.flush()
                stats = session.cache.stats()
                let_go = stats["buffers"]["idle"] + stats["residents"]["bytes"]
                assert let_go == stats["buffers"]["mapped"] > 0
        finally:
            gc.enable()


def test_a_prompt_of_one_token_is_computed(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(1)
    with open_store(tmp_path) as store, attach(model, store) as session:
        for _ in range(2):
            turn = session.prefill(ids)
            assert turn.cache.length == 1
            assert turn.report.computed_tokens == 1
            assert torch.equal(turn.logits, forward(model, ids, live_cache(model, ids, 0)))
        assert torch.equal(
            session.generate(ids, **SETTINGS).sequences, model.generate(ids, **SETTINGS)
        )


def test_a_request_too_large_for_the_cache_buffers_is_computed_without_them(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(300)
    with open_store(tmp_path, l1="512KiB") as store, attach(model, store) as session:
        out = session.generate(ids, **SETTINGS)
        assert "cache buffers" in str(out.report.fallback)
        assert torch.equal(out.sequences, model.generate(ids, **SETTINGS))
        small = session.generate(ids[:, :40], **SETTINGS)
        assert small.report.fallback is None
        session.flush()
        session.cache.validate()


def test_a_model_that_can_no_longer_be_served_is_still_answered(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.generate(ids, **SETTINGS)
        handle = model.model.layers[0].register_forward_hook(lambda *_: None)
        out = session.generate(ids, **SETTINGS)
        assert "forward hook" in str(out.report.fallback)
        with pytest.raises(UnsupportedModelError, match="forward hook"):
            session.prefill(ids)
        handle.remove()
        assert hits(session.generate(ids, **SETTINGS).report) == (32, 0, 0)


def test_an_error_inside_generation_leaves_session_and_store_as_they_were(tmp_path: Path) -> None:
    class Broken(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            raise RuntimeError("out of ideas")

    model, ids = build("llama"), prompt(40)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids)
        session.flush()
        before = state(store)
        with pytest.raises(RuntimeError, match="out of ideas"):
            session.generate(ids, logits_processor=[Broken()], **SETTINGS)
        assert state(store) == before
        assert hits(session.generate(ids, **SETTINGS).report) == (32, 0, 0)


@pytest.mark.parametrize("what", ["session", "store"])
def test_a_closed_session_or_store_says_so(what: str, tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(40)
    store = open_store(tmp_path)
    session = attach(model, store)
    turn = session.prefill(ids)
    (session if what == "session" else store).close()
    for call in (session.generate, session.prefill, session.prefetch):
        for length in (1, 10, 40):
            with pytest.raises(StoreClosedError, match=f"the {what} is closed"):
                call(ids[:, :length])
    if what == "store":
        with pytest.raises(StoreClosedError):
            turn.commit(ids)
        with pytest.raises(StoreClosedError):
            attach(model, store)
    store.close()


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store:
        bad: list[dict[str, Any]] = [
            {"block_tokens": 0},
            {"chunk_tokens": 24},
            {"chunk_tokens": -16},
        ]
        for settings in bad:
            with pytest.raises(ConfigError, match=rf"{next(iter(settings))} = "):
                attach(model, store, **settings)
        session = attach(model, store)
        with pytest.raises(ConfigError, match="headroom"):
            session.prefill(prompt(10), headroom=-1)
        with pytest.raises(UnsupportedRequestError, match="the prompt is empty"):
            session.prefill(prompt(10)[:, :0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_to_open_a_store_of_its_own(tmp_path: Path) -> None:
    # Only the request's front is entered in the child: torch's threads do not survive a fork.
    from kvlab.errors import ForkedProcessError

    with open_store(tmp_path) as store, attach(build("llama"), store) as session:
        session.prefill(prompt(40))
        session.flush()
        ids, namespace = prompt(40)[0].numpy(), session.namespace
        child = os.fork()
        if child == 0:
            try:
                session.cache.begin(ids, namespace)
            except ForkedProcessError:
                os._exit(7)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert hits(session.prefill(prompt(40)).report) == (32, 0, 0)
