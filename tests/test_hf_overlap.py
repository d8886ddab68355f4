"""A forward that begins while its prefix still arrives: exact, and given up where bytes are bad."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from hf_support import all_in, forward, hits, live_cache, open_store, same_rows
from kvlab.hf import attach, load
from tiny_models import build, prompt

PAGE = 4096
LAST = 3
"""The last layer of the tiny models."""


def damage(path: Path, run: int, layer: int, *, cut: bool = False) -> None:
    """Inverts bytes within a layer of a run (counted in the order of writing), or ends the file there."""
    segment = max(path.glob("*.seg"))
    content = segment.read_bytes()
    start = -1
    for _ in range(run + 1):
        start = content.index(b"KVLABRUN", start + 1)
    (header,) = struct.unpack_from("<I", content, start + 20)
    blocks, _layers = struct.unpack_from("<II", content, start + 68)
    lengths = [
        struct.unpack_from("<I", content, start + 168 + 32 * blocks + 16 * index)[0]
        for index in range(layer + 1)
    ]
    at = start + header + sum(-(-length // PAGE) * PAGE for length in lengths[:layer])
    at += lengths[layer] // 2
    with segment.open("r+b") as file:
        if cut:
            file.truncate(at)
        else:
            file.seek(at)
            file.write(bytes(255 - byte for byte in content[at : at + 16]))


class Streamed(BaseStreamer):
    def __init__(self) -> None:
        self.puts: list[list[int]] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.puts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


class Processed(LogitsProcessor):
    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.lengths.append(input_ids.shape[1])
        return scores


class Stopping(StoppingCriteria):
    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.lengths.append(input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize("place", [(0, 0), (0, LAST), (1, 0), (1, 2), (1, LAST)])
@pytest.mark.parametrize("cut", [False, True], ids=["flipped", "cut"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_bad_layer_ends_the_forward_and_the_prompt_is_computed_again(
    place: tuple[int, int], cut: bool, dtype: Any, tmp_path: Path
) -> None:
    run, layer = place
    left = 64 * run
    model, ids = build("llama", dtype=dtype), prompt(120)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids[:, :70])
        store.flush()  # or both are written at once, in either order
        session.prefill(ids)  # a second run, from token 64 on
        store.evict()
        damage(tmp_path, run, layer, cut=cut)
        live = live_cache(model, ids[:, :70], left)
        expected = forward(model, ids[:, left:], live)
        turn = session.prefill(ids, keep=False)
        assert turn.report.aborted_forwards == 1
        assert hits(turn.report) == all_in("l3", left)
        assert turn.report.computed_tokens == 120 - left
        assert "could not be read" in turn.report.missed
        assert torch.equal(turn.logits, expected)
        assert same_rows(turn.cache, live, 120)
        again = session.prefill(ids, keep=False)
        assert again.report.aborted_forwards == 0
        assert torch.equal(again.logits, expected)
        session.cache.validate()


@pytest.mark.parametrize("chunk", [0, 32])
def test_an_aborted_forward_is_seen_by_nobody(chunk: int, tmp_path: Path) -> None:
    """What the caller hands to generate() and torch's random numbers see one generation, token for token."""
    model, ids = build("llama"), prompt(120)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "top_k": 0}

    def ask(session: Any) -> tuple[Any, list[Any]]:
        seen = [Streamed(), Processed(), Stopping()]
        torch.manual_seed(7)
        out = session.generate(
            ids,
            streamer=seen[0],
            logits_processor=[seen[1]],
            stopping_criteria=[seen[2]],
            **settings,
        )
        return out, seen

    plain_path, path = tmp_path / "plain", tmp_path / "damaged"
    with open_store(plain_path) as store, attach(model, store, chunk_tokens=chunk) as session:
        session.prefill(ids[:, :70])
        store.evict()
        expected, expected_seen = ask(session)
    with open_store(path) as store, attach(model, store, chunk_tokens=chunk) as session:
        session.prefill(ids[:, :70])
        store.flush()  # or both are written at once, in either order
        session.prefill(ids)
        store.evict()
        damage(path, 1, LAST)
        out, seen = ask(session)
    assert (out.report.aborted_forwards, expected.report.aborted_forwards) == (1, 0)
    assert hits(out.report) == hits(expected.report) == (0, 0, 64)
    assert torch.equal(out.sequences, expected.sequences)
    assert seen[0].puts == expected_seen[0].puts
    assert seen[0].ended == expected_seen[0].ended == 1
    assert seen[1].lengths == expected_seen[1].lengths == list(range(120, 126))
    assert seen[2].lengths == expected_seen[2].lengths


def test_what_was_computed_again_is_kept(tmp_path: Path) -> None:
    model, ids = build("qwen2"), prompt(120)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids[:, :70])
        store.flush()  # or both are written at once, in either order
        session.prefill(ids)
        store.evict()
        damage(tmp_path, 1, 2)
        out = session.generate(ids, max_new_tokens=5, do_sample=False)
        assert (out.report.aborted_forwards, out.report.not_kept) == (1, None)
        store.evict()
        assert hits(session.prefill(ids, keep=False).report) == (0, 0, 112)


def test_an_error_of_the_callers_while_a_prefix_arrives_leaves_the_session_whole(
    tmp_path: Path,
) -> None:
    class Wrong(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            raise ValueError("the caller's own")

    model, ids = build("llama"), prompt(120)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids)
        store.evict()
        with pytest.raises(ValueError, match="the caller's own"):
            session.generate(ids, max_new_tokens=5, logits_processor=[Wrong()])
        turn = session.prefill(ids, keep=False)
        assert hits(turn.report) == (0, 0, 112)
        assert torch.equal(turn.logits, forward(model, ids[:, 112:], live_cache(model, ids, 112)))


def test_a_cache_too_small_for_the_suffix_grows_while_its_prefix_arrives(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(300)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids[:, :200])
        store.evict()
        turn = session.prefill(ids, headroom=0, keep=False)
        live = live_cache(model, ids[:, :200], 192)
        assert torch.equal(turn.logits, forward(model, ids[:, 192:], live))
        more = prompt(200, seed=3)
        assert torch.equal(forward(model, more, turn.cache), forward(model, more, live))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_overlapped_equals_never_evicted(dtype: str, tmp_path: Path) -> None:
    model, _ = load("smollm2-135m", dtype=dtype)
    ids = prompt(300)

    def live(keep: int) -> Any:
        """Two forwards, as the session made them, cut to ``keep`` tokens."""
        cache = live_cache(model, ids[:, :128], 128, capacity=320)
        forward(model, ids[:, 128:272], cache)
        cache.crop(keep - 272)
        return cache

    with open_store(tmp_path, l1="192MiB", l2=0) as store, attach(model, store) as session:
        session.prefill(ids[:, :128])
        store.flush()  # or both are written at once, in either order
        session.prefill(ids[:, :272])
        store.evict()
        store.drop_page_cache()
        turn = session.prefill(ids, keep=False)
        assert (hits(turn.report), turn.report.aborted_forwards) == ((0, 0, 272), 0)
        assert torch.equal(turn.logits, forward(model, ids[:, 272:], live(272)))
        # Layers are read in several jobs: the forward is under way when the bad one comes.
        damage(tmp_path, 1, 20)
        turn = session.prefill(ids, keep=False)
        assert (hits(turn.report), turn.report.aborted_forwards) == ((0, 0, 128), 1)
        assert torch.equal(turn.logits, forward(model, ids[:, 128:], live(128)))
