"""What must never be shared: other salts, other weights, other models of the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import attach, forward, hits, live_cache, open_store, push_down
from tiny_models import build, prompt


def hit(session: Any, ids: Any) -> int:
    return int(session.prefill(ids, keep=False).report.hit_tokens.total)


@pytest.mark.parametrize("tier", ["l1", "l3"])
def test_two_salts_never_share(tier: str, tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(60)
    with open_store(tmp_path) as store:
        one, two = attach(model, store, salt="one"), attach(model, store, salt="two")
        one.prefill(ids)
        push_down(store, tier)
        assert one.namespace != two.namespace
        assert hit(two, ids) == 0
        assert two.prefetch(ids).progress()["wanted"] == 0
        assert hit(attach(model, store, salt="one"), ids) == 48


def test_two_models_of_one_layout_share_the_cache_but_no_block(tmp_path: Path) -> None:
    ids = prompt(60)
    first, second = build("llama", seed=0), build("llama", seed=1)
    with open_store(tmp_path) as store:
        one, two = attach(first, store), attach(second, store)
        one.prefill(ids)
        assert hit(two, ids) == 0
        answer = two.prefill(ids)
        store.flush()
        assert len(store.stats()["caches"]) == 1
        # Three whole blocks each, and a tail each.
        assert one.cache.stats()["l1"]["used"] == 8
        assert torch.equal(answer.logits, forward(second, ids, live_cache(second, ids, 0)))
        assert (hit(one, ids), hit(two, ids)) == (48, 48)


def add(parameter: Any) -> None:
    with torch.no_grad():
        parameter.add_(0.25)


def copy(parameter: Any) -> None:
    parameter.data.copy_(parameter.data + 0.25)


@pytest.mark.parametrize("change", [add, copy])
def test_weights_changed_in_place_are_another_model(change: Any, tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(60)
    with open_store(tmp_path) as store, attach(model, store) as session:
        session.prefill(ids)
        before = session.namespace
        parameter = model.model.layers[1].self_attn.k_proj.weight
        original = parameter.detach().clone()
        change(parameter)
        assert session.namespace != before
        changed = session.prefill(ids)
        assert changed.report.hit_tokens.total == 0
        assert torch.equal(changed.logits, forward(model, ids, live_cache(model, ids, 0)))
        with torch.no_grad():
            parameter.copy_(original)
        assert session.namespace == before
        assert hits(session.prefill(ids).report) == (48, 0, 0)


def test_another_grid_or_block_size_is_another_namespace(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(60)
    with open_store(tmp_path) as store:
        plain = attach(model, store, l1="4MiB")
        grid = attach(model, store, chunk_tokens=32)
        other = attach(model, store, block_tokens=8, l1="4MiB")
        plain.prefill(ids)
        store.flush()
        assert (hit(plain, ids), hit(grid, ids), hit(other, ids)) == (48, 0, 0)
