"""Why a prompt hits or misses: the places that an explanation names are the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_support import attach, extended, open_store, push_down, state
from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.near_misses import PromptIndex
from tiny_models import build, prompt


@settings(max_examples=20, deadline=None)
@given(
    cached=st.integers(17, 120),
    same=st.integers(0, 120),
    more=st.integers(1, 40),
    tier=st.sampled_from(["l1", "l2", "l3"]),
    seed=st.integers(0, 3),
)
def test_what_is_explained_is_what_a_request_then_finds(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    cached: int,
    same: int,
    more: int,
    tier: str,
    seed: int,
) -> None:
    model, known = build("llama"), prompt(cached, seed=seed)
    same = min(same, cached)
    asked = extended(known[:, :same], (prompt(more, seed=seed + 9) + 1) % 64)
    path = tmp_path_factory.mktemp("store")
    with open_store(path) as store, attach(model, store) as session:
        session.prefill(known)
        session.flush()
        push_down(store, tier)
        before = state(store)
        found = session.explain(asked, against=known)
        assert state(store) == before
        report = session.prefill(asked, keep=False).report
        assert found.matched_tokens == report.hit_tokens.total
        assert found.reusable_tokens == (asked.shape[1] - 1) // 16 * 16
        assert [span.start for span in found.spans] == [0, *(s.end for s in found.spans)][:-1]
        hit = [span for span in found.spans if span.tier is not None]
        assert sum(span.end - span.start for span in hit) == found.matched_tokens
        if found.divergence is not None:
            row, other = asked[0].tolist(), known[0].tolist()
            pairs = enumerate(zip(row, other, strict=False))
            first = next((at for at, (a, b) in pairs if a != b), min(len(row), len(other)))
            assert (found.divergence.first, found.divergence.last) == (first, first)
        else:
            assert found.matched_tokens == found.reusable_tokens


def test_in_memory_the_divergence_is_known_to_the_token_and_on_disk_to_the_block(
    tmp_path: Path,
) -> None:
    model, known = build("llama"), prompt(100)
    asked = known.clone()
    asked[0, 37] = (asked[0, 37] + 1) % 64
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(known)
        session.flush()
        exact = session.explain(asked).divergence
        assert exact is not None
        assert (exact.first, exact.last) == (37, 37)
        push_down(store, "l3")
        by_key = session.explain(asked).divergence
        assert by_key is not None
        assert (by_key.first, by_key.last) == (32, 47)


def test_the_same_prompt_under_another_salt_is_named(tmp_path: Path) -> None:
    model, known = build("llama"), prompt(70)
    with open_store(tmp_path) as store:
        with attach(model, store, salt="mine") as session:
            session.prefill(known)
            namespace = session.namespace.hex()
        store.flush()
        with attach(model, store, salt="yours") as session:
            found = session.explain(known)
            assert found.matched_tokens == 0
            assert [(other.namespace, other.tokens) for other in found.elsewhere] == [
                (namespace, 64)
            ]
            assert "another namespace" in found.reason
            with pytest.raises(InvalidArgumentError, match="empty"):
                session.explain(known[:, :0])


def test_blocks_behind_a_gap_are_said_to_be_out_of_reach(tmp_path: Path) -> None:
    model, known = build("llama"), prompt(120)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(known[:, :70])
        session.prefill(known)
        store.flush()
        push_down(store, "l3")
        assert session.explain(known).unreachable_tokens == 0
    # The first run's header goes: what follows it has nothing to hang from.
    segment = min(tmp_path.glob("*.seg"))
    content = bytearray(segment.read_bytes())
    at = content.index(b"KVLABRUN")
    content[at : at + 8] = bytes(8)
    segment.write_bytes(content)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(known, keep=False)
        found = session.explain(known)
        assert found.matched_tokens == 0
        assert found.unreachable_tokens > 0
        assert "cannot be reached" in found.reason


def test_prompts_that_a_session_saw_are_named_where_they_nearly_hit_and_not_to_other_salts(
    tmp_path: Path,
) -> None:
    model, known = build("llama"), prompt(100)
    asked = known.clone()
    asked[0, 37] = (asked[0, 37] + 1) % 64
    with (
        open_store(tmp_path) as store,
        attach(model, store, prompts=PromptIndex()) as session,
        attach(model, store) as forgetful,
    ):
        session.prefill(known)
        other = session.with_salt("yours")
        child = session.fork()
        for each, expected in ((session, [(37, 62)]), (child, [(37, 62)]), (other, [])):
            found = each.explain(asked).near_misses
            assert [(miss.shared_prefix, miss.lost_tokens) for miss in found] == expected
            assert list(found) == each.near_misses(asked)
        session.prefill(prompt(100, seed=5), keep=False)
        assert session.near_misses(prompt(120, seed=5)[:, 1:]) == []
        # What is served stays what is equal: the near miss gives its beginning and no more.
        assert session.prefill(asked).report.hit_tokens.total == 32
        assert forgetful.explain(asked).near_misses == ()
        with pytest.raises(ConfigError, match="prompts=PromptIndex"):
            forgetful.near_misses(asked)


def test_generated_answers_and_steps_are_remembered_by_their_prompts(tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store, attach(model, store, prompts=PromptIndex()) as session:
        prompts = [prompt(100, seed=seed) for seed in range(3)]
        session.generate(prompts[0], max_new_tokens=2)
        session.prefill(prompts[1])
        session.steps(prompts[2][0].numpy(), headroom=4).close()
        for known in prompts:
            (miss,) = session.near_misses(extended(known[:, :50], known[:, 51:]))
            assert (miss.shared_prefix, miss.lost_tokens) == (50, 49)
