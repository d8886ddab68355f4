"""Requests side by side: the answers are those of each alone, and nothing stays held."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_support import open_store
from kvlab.errors import (
    EngineClosingError,
    GenerationError,
    InvalidArgumentError,
    PromptTooLongError,
    QueueFullError,
)
from kvlab.serve.engine import (
    Admitted,
    Cancelled,
    Chunk,
    EngineOptions,
    Failed,
    Finished,
    GenerationRequest,
    Sampling,
)
from kvlab.serve.engine.engine import Engine
from serve_support import PATIENCE, Answer, ask, byte_tokenizer, greedy, held_back, nothing_held
from tiny_models import build, prompt

TOKENIZER = byte_tokenizer()
TOKENS = 12


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


def request(
    name: str, tokens: int = 40, seed: int = 0, *, max_tokens: int = TOKENS, **more: Any
) -> GenerationRequest:
    more.setdefault("sampling", Sampling(0.0))
    return GenerationRequest(name, prompt(tokens, seed=seed)[0].numpy(), max_tokens, **more)


PROMPTS = [np.concatenate([prompt(80, seed=k % 2)[0], prompt(9, seed=k)[0]]) for k in range(6)]
"""Two families of prompts that share 80 tokens each."""


@pytest.fixture(scope="module")
def alone(model: Any) -> list[list[int]]:
    return [greedy(model, ids, TOKENS) for ids in PROMPTS]


PLAN = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),
        st.sampled_from(["", "a"]),  # salt
        st.one_of(st.none(), st.integers(0, TOKENS - 1)),  # cancelled after so many chunks
    ),
    min_size=1,
    max_size=10,
)


class Leaving(Answer):
    """Cancels its request after so many chunks of the answer."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self._after = after
        self.handle: Any = None
        self._handed = threading.Event()

    def submit(self, engine: Engine, asked: GenerationRequest) -> None:
        self.handle = engine.submit(asked, self)
        self._handed.set()

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        if self._after is not None and len(self.events) > self._after:
            assert self._handed.wait(PATIENCE)
            self.handle.cancel()


OPTIONS = st.builds(
    EngineOptions,
    prefill_chunk=st.sampled_from([16, 48]),
    chunk_tokens=st.sampled_from([0, 16]),
    max_active=st.integers(1, 3),
    restore=st.just("always"),
)


@settings(max_examples=8, deadline=None, database=None)
@given(PLAN, OPTIONS)
def test_answers_are_those_of_each_request_alone_whoever_leaves(
    model: Any,
    alone: list[list[int]],
    plan: list[tuple[int, str, int | None]],
    options: EngineOptions,
) -> None:
    with open_store(None) as store:
        with Engine(model, TOKENIZER, store, options) as engine:
            answers = [Leaving(after) for _, _, after in plan]
            for place, (answer, (which, salt, _)) in enumerate(zip(answers, plan, strict=True)):
                asked = GenerationRequest(
                    str(place), PROMPTS[which], TOKENS, Sampling(0.0), salt=salt
                )
                answer.submit(engine, asked)
            ends = [answer.wait() for answer in answers]
        nothing_held(store)
        counted = engine.snapshot()
    for answer, end, (which, _, after) in zip(answers, ends, plan, strict=True):
        expected = alone[which]
        assert answer.ids == expected[: len(answer.ids)]
        if isinstance(end, Finished):
            assert answer.ids == expected
            assert answer.text == TOKENIZER.decode(expected)
            assert end.usage.completion_tokens == end.timings.tokens == TOKENS
            assert end.usage.cached.total == answer.admitted.cached.total < len(PROMPTS[which])
            assert after != 0
        else:
            assert isinstance(end, Cancelled)
            assert after is not None
    assert counted.running == counted.queued == ()
    counters = counted.counters
    assert counters.submitted == len(plan) == counters.finished + counters.cancelled


@pytest.fixture
def engine(model: Any) -> Iterator[Engine]:
    options = EngineOptions(max_active=2, max_queue=1, prefill_chunk=16)
    with open_store(None) as store:
        with Engine(model, TOKENIZER, store, options) as engine:
            yield engine
        nothing_held(store)


class Observer:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, args))


def test_a_full_queue_is_said_and_others_go_on(engine: Engine) -> None:
    observer = Observer()
    engine.add_observer(observer)
    with held_back(engine) as first:
        others = [Answer() for _ in range(2)]
        for place, answer in enumerate(others):
            engine.submit(request(str(place), seed=place), answer)
        state = engine.snapshot()
        assert [sequence.phase for sequence in state.queued] == ["waiting"] * 2
        assert len(state.running) == 1
        with pytest.raises(QueueFullError, match="may; try again"):
            engine.submit(request("late"), Answer())
    for answer in (first, *others):
        assert isinstance(answer.wait(), Finished)
    assert ("rejected", ("queue_full",)) in observer.calls
    assert engine.snapshot().counters.rejected == 1


def test_observers_are_told_each_step_and_cannot_break_an_answer(engine: Engine) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    observer = Observer()
    engine.add_observer(Broken())
    engine.add_observer(observer)
    end = ask(engine, request("one", max_tokens=3)).wait()
    names = [name for name, _ in observer.calls]
    assert names == ["admitted", "first_token", "token", "token", "finished"]
    assert isinstance(observer.calls[0][1][0], Admitted)
    assert observer.calls[-1][1] == (end,)
    gaps = tuple(args[1] for name, args in observer.calls if name == "token")
    assert gaps == end.timings.inter_token_s
    assert end.timings.first_token_s == observer.calls[1][1][1]
    assert end.timings.predicted_s == pytest.approx(sum(gaps))


def test_bad_prompts_are_refused_at_once(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError, match=r"1024 tokens, and prompt and answer together"):
        engine.submit(request("long", 1024), Answer())
    ids = np.array([3, 4, 256])
    with pytest.raises(InvalidArgumentError, match="token id 256 is not one of the model's"):
        engine.submit(GenerationRequest("foreign", ids, 4), Answer())
    with pytest.raises(InvalidArgumentError, match="token id -2"):
        engine.submit(GenerationRequest("negative", ids - 5, 4), Answer())


def test_an_answer_ends_with_the_context(engine: Engine) -> None:
    answer = ask(engine, request("long", 1021, max_tokens=50))
    end = answer.wait()
    assert (end.reason, end.usage.completion_tokens) == ("length", 3)


def test_an_answer_ends_at_its_end_token_unless_told_not_to(model: Any) -> None:
    ids = prompt(40)[0].numpy()
    expected = greedy(model, ids, TOKENS)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(expected[4])
    until = expected.index(expected[4]) + 1
    with Engine(model, tokenizer, None) as engine:
        answer = ask(engine, request("ends"))
        assert answer.wait().reason == "stop"
        assert answer.ids == expected[:until]
        assert answer.text == TOKENIZER.decode(expected[: until - 1])
        on = ask(engine, request("goes on", ignore_eos=True))
        assert on.wait().reason == "length"
        assert on.ids == expected


def test_an_answer_ends_at_a_stop_string_across_tokens(engine: Engine, model: Any) -> None:
    text = str(TOKENIZER.decode(greedy(model, request("").prompt, TOKENS)))
    stop = text[4:7]
    assert "\ufffd" not in stop
    answer = ask(engine, request("stops", stop=("never", stop)))
    assert answer.wait().reason == "stop"
    assert answer.text == text[: text.index(stop)]
    assert len(answer.ids) == answer.wait().usage.completion_tokens < TOKENS


def test_a_seed_gives_the_same_answer_whatever_runs_beside(model: Any) -> None:
    sampling = Sampling(1.0, 0.9, 11)
    options = EngineOptions(chunk_tokens=16, prefill_chunk=16)
    with open_store(None) as store, Engine(model, TOKENIZER, store, options) as engine:
        first = ask(engine, request("first", sampling=sampling))
        beside = [Answer() for _ in range(3)]
        for place, answer in enumerate(beside):
            seed = Sampling(1.0, 1.0, place)
            engine.submit(request(str(place), seed=place, sampling=seed), answer)
        again = ask(engine, request("again", sampling=sampling))
        assert again.ids == first.ids
        other = ask(engine, request("other", sampling=Sampling(1.0, 0.9, 12)))
        assert other.ids != first.ids
        for answer in beside:
            answer.wait()


def test_a_request_that_the_model_fails_on_fails_alone(model: Any) -> None:
    with open_store(None) as store:
        with Engine(model, TOKENIZER, store, EngineOptions(prefill_chunk=16)) as engine:
            inner, bad = model.forward, 2  # a token that no prompt has

            def forward(*args: Any, **kwargs: Any) -> Any:
                if int(kwargs["input_ids"][0, 0]) == bad:
                    raise RuntimeError("out of luck")
                return inner(*args, **kwargs)

            model.forward = forward
            try:
                ids = request("").prompt.copy()
                ids[16] = bad
                failed, fine = Answer(), Answer()
                with held_back(engine):  # none of them is alone, and has longer chunks
                    engine.submit(GenerationRequest("failed", ids, 4), failed)
                    engine.submit(request("fine", seed=3), fine)
                end = failed.wait()
                assert isinstance(end, Failed)
                assert isinstance(end.error, GenerationError)
                assert "RuntimeError: out of luck" in str(end.error)
                assert isinstance(fine.wait(), Finished)
            finally:
                del model.forward
            # What was computed before is good, and was kept.
            again = ask(engine, GenerationRequest("again", ids, 4))
            assert again.admitted.cached.l1 == 16
        nothing_held(store)


def test_a_prompt_that_is_alone_has_longer_chunks(model: Any) -> None:
    lengths: list[int] = []
    with Engine(model, TOKENIZER, None, EngineOptions(prefill_chunk=16)) as engine:
        inner = model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            lengths.append(kwargs["input_ids"].shape[1])
            return inner(*args, **kwargs)

        model.forward = forward
        try:
            prompt = np.arange(3, 83, dtype=np.int64)
            alone = ask(engine, GenerationRequest("alone", prompt, 1, Sampling(0.0)))
            assert lengths == [32, 32, 16]
            lengths.clear()
            beside = Answer()
            with held_back(engine, GenerationRequest("held", prompt[:20], 40, Sampling(0.0))):
                engine.submit(GenerationRequest("beside", prompt, 1, Sampling(0.0)), beside)
            beside.wait()
            assert max(lengths) == 16
            assert beside.ids == alone.ids
        finally:
            del model.forward


def test_a_sink_that_fails_cancels_its_request_alone(engine: Engine) -> None:
    def broken(event: Any) -> None:
        if isinstance(event, Chunk):
            raise BrokenPipeError("the client is gone")

    engine.submit(request("gone", max_tokens=500), broken)
    assert isinstance(ask(engine, request("fine", seed=1)).wait(), Finished)
    for _ in range(100):
        if engine.snapshot().counters.cancelled:
            break
        ask(engine, request("more", seed=1, max_tokens=1))
    assert engine.snapshot().counters.cancelled == 1


@pytest.mark.parametrize("drain", [0.0, 60.0])
def test_a_close_ends_what_runs_in_time_and_takes_no_more(model: Any, drain: float) -> None:
    with open_store(None) as store:
        engine = Engine(model, TOKENIZER, store, EngineOptions(max_active=1, prefill_chunk=16))
        answers = [Answer(), Answer()]
        tokens = 800 if drain == 0 else 3
        for place, answer in enumerate(answers):
            engine.submit(request(str(place), seed=place, max_tokens=tokens), answer)
        engine.close(drain)
        kinds = {type(answer.wait()) for answer in answers}
        assert kinds == ({Cancelled} if drain == 0 else {Finished})
        with pytest.raises(EngineClosingError):
            engine.submit(request("late"), Answer())
        engine.close()
        nothing_held(store)


def test_answers_that_outgrow_the_memory_wait_for_each_other(model: Any) -> None:
    """Cache buffers for 512 tokens: two answers of 300 cannot both grow."""
    with open_store(None, l1="1MiB") as store:
        with Engine(model, TOKENIZER, store, EngineOptions(prefill_chunk=64)) as engine:
            answers = [Answer() for _ in range(3)]
            for place, answer in enumerate(answers):
                engine.submit(request(str(place), 30, place, max_tokens=300), answer)
            for place, answer in enumerate(answers):
                end = answer.wait()
                assert isinstance(end, Finished), end
                expected = greedy(model, request("", 30, place).prompt, 300)
                assert answer.ids == expected
            assert isinstance(ask(engine, request("huge", 600)).wait(), Failed)
        nothing_held(store)
