"""What a session asks of the tiers (time to live, quota, persistence), and stores that are only read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hf_support import all_in, attach, hits, open_store, push_down
from kvlab import ConfigError, InvalidArgumentError, Store, inspect_store
from kvlab.errors import FormatError, ReadOnlyStoreError, UnsafeDirectoryError
from tiny_models import build, prompt


def test_what_outlives_its_ttl_is_a_miss_in_every_tier_and_in_a_new_process(tmp_path: Path) -> None:
    model, below, above = build("llama"), prompt(70), prompt(70, seed=1)
    with open_store(tmp_path) as store:
        brief = attach(model, store, salt="brief", ttl="2s", codec="int8")
        lasting = attach(model, store, salt="lasting", ttl="1h", codec="int8")
        for session in (brief, lasting):
            session.prefill(below)
        push_down(store, "l3")
        brief.prefill(above)
        brief.flush()
        stored = {each["namespace"]: each for each in inspect_store(tmp_path)["namespaces"]}
        assert stored[brief.namespace]["ttl_seconds"] == 2
        assert stored[lasting.namespace]["ttl_seconds"] == 3600
        assert {each["codec"] for each in stored.values()} == {"int8"}
        time.sleep(3.1)
        for ids in (below, above):
            assert brief.prefill(ids, keep=False).report.hit_tokens.total == 0
        assert hits(lasting.prefill(below, keep=False).report) == all_in("l3", 64)
    with open_store(tmp_path) as store:
        brief = attach(model, store, salt="brief", ttl="2s", codec="int8")
        assert brief.prefill(below, keep=False).report.hit_tokens.total == 0


@pytest.mark.parametrize("given", ["session", "store"])
def test_a_salt_over_its_quota_evicts_its_own_prompts(tmp_path: Path, given: str) -> None:
    model = build("llama")
    quota = 256 << 10
    settings = {"l3_quota_per_salt": quota} if given == "store" else {}
    with open_store(tmp_path, l2=0, **settings) as store:
        asked = {"quota": quota} if given == "session" else {}
        greedy = attach(model, store, salt="greedy", **asked)
        modest = attach(model, store, salt="modest")
        modest.prefill(prompt(113, seed=99))
        for seed in range(5):
            greedy.prefill(prompt(113, seed=seed))
            greedy.flush()
            store.evict()
        store.evict()
        stats = store.stats()["l3"]
        assert stats["evictions"] > 0
        assert hits(modest.prefill(prompt(113, seed=99), keep=False).report) == all_in("l3", 112)
        kept = [
            greedy.prefill(prompt(113, seed=seed), keep=False).report.hit_tokens.l3
            for seed in range(5)
        ]
        # A prompt takes 112 tokens of 1 KiB; the latest stay.
        assert sum(kept) * 1024 <= quota
        assert kept[0] == 0
        assert kept[-1] == 112


def test_what_may_not_persist_never_reaches_the_disk(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(113)
    with open_store(tmp_path) as store:
        with attach(model, store, salt="secret", persist=False) as session:
            session.prefill(ids)
            session.flush()
            push_down(store, "l2")
            assert hits(session.prefill(ids, keep=False).report) == all_in("l2", 112)
        store.evict()
        assert store.stats()["l3"]["runs"] == 0
    assert all(b"KVLABRUN" not in path.read_bytes() for path in tmp_path.glob("*.seg"))


@pytest.mark.parametrize(
    ("asked", "named", "error"),
    [
        ({"ttl": "soon"}, "soon", InvalidArgumentError),
        ({"ttl": -1}, "-1", InvalidArgumentError),
        ({"ttl": 0}, "0", InvalidArgumentError),
        ({"quota": "much", "salt": "s"}, "much", InvalidArgumentError),
        ({"quota": -1, "salt": "s"}, "-1", InvalidArgumentError),
        ({"quota": "1MiB"}, r"quota = 1MiB .*give this one a salt", ConfigError),
        ({"codec": "int4"}, "codec = int4.*exact or int8", ConfigError),
    ],
)
def test_terms_that_cannot_be_are_named_and_take_no_memory(
    asked: dict[str, Any], named: str, error: type[Exception]
) -> None:
    model = build("llama")
    with open_store(None) as store:
        with pytest.raises(error, match=named):
            attach(model, store, **asked)
        assert store.stats()["caches"] == []


@pytest.mark.parametrize(
    "bad", [{"l3_quota_per_salt": "lots"}, {"l3_read_limit": "fast"}, {"l3_read_limit": -1}]
)
def test_limits_that_cannot_be_are_named(tmp_path: Path, bad: dict[str, Any]) -> None:
    ((_, value),) = bad.items()
    with pytest.raises((ConfigError, InvalidArgumentError), match=str(value)):
        Store.open(tmp_path / "store", **bad)
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_only_read_serves_prefixes_and_is_left_as_it_was(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(113)
    with open_store(tmp_path) as store, attach(model, store) as session:
        cold = session.prefill(ids)
        session.flush()
    before = content(tmp_path)
    with (
        open_store(tmp_path, read_only=True) as store,
        open_store(tmp_path, read_only=True) as other,
    ):
        for each in (store, other):
            session = attach(model, each)
            warm = session.prefill(ids)
            assert hits(warm.report) == all_in("l3", 112)
            assert torch.allclose(warm.logits, cold.logits, atol=1e-4)
            session.prefill(prompt(80, seed=5))
            session.flush()
        assert attach(model, store).prefill(prompt(80, seed=5)).report.hit_tokens.l1 == 64
        with pytest.raises(ReadOnlyStoreError):
            store.clear()
        with pytest.raises(ReadOnlyStoreError):
            attach(model, store, salt="s", quota="1MiB").prefill(ids)
    assert content(tmp_path) == before
    with pytest.raises(FormatError, match="without read_only"):
        open_store(tmp_path / "none", read_only=True)


def content(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file): file.read_bytes() for file in files}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("unsafe", ["link", "writable"])
def test_a_directory_that_others_can_write_to_is_refused_unless_allowed(
    tmp_path: Path, unsafe: str, *, read_only: bool
) -> None:
    real = tmp_path / "real"
    open_store(real).close()
    path = real
    if unsafe == "link":
        path = tmp_path / "link"
        path.symlink_to(real)
        reason = "symbolic link"
    else:
        real.chmod(real.stat().st_mode | 0o002)
        reason = "written by everybody"
    with pytest.raises(UnsafeDirectoryError, match=f"{path}.*{reason}.*allow_unsafe_directory"):
        open_store(path, read_only=read_only)
    open_store(path, read_only=read_only, allow_unsafe_directory=True).close()
