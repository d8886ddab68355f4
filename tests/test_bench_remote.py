"""Runs over a shared tier, on a tiny model and a real server: another machine finds what the first one computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="the 'hf' extra is not installed")

import tiny_models
from bench_support import chatting, sessions
from kvlab.bench.local import LocalBackend, LocalOptions
from kvlab.bench.run import RunOptions, ideal, run
from kvlab.bench.schedule import Plan
from kvlab.serve.engine.modes import TierSizes
from redis_support import RedisServer
from serve_support import byte_tokenizer

SIZES = TierSizes("32MiB", "32MiB", "64MiB")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return tiny_models.build("llama"), chatting(byte_tokenizer())


def test_another_machine_goes_on_from_the_shared_tier_alone(
    server: RedisServer, tiny: tuple[Any, Any]
) -> None:
    options = LocalOptions(
        model="tiny", sizes=SIZES, ignore_eos=True, restore="always", remote=server.url
    )
    backend, made = LocalBackend(options, tiny), sessions()
    said: dict[str, dict[str, str]] = {}

    def done(mode: str, outcome: Any) -> None:
        said.setdefault(mode, {})[outcome.request] = outcome.answer.text

    before = server.network()
    reports = run(
        backend,
        made,
        RunOptions(modes=("baseline", "remote"), rounds=2, plan=Plan(replies="recorded")),
        done=done,
    )
    taken, given = (
        after - earlier for after, earlier in zip(server.network(), before, strict=True)
    )
    ideal(made, backend.chat, backend.block_tokens, list(reports.values()))
    remote = reports["remote"]
    assert said["remote"] == said["baseline"]
    # Each round begins with nothing on a server that is not emptied, and the second machine lacks nothing.
    assert remote["cached_token_ratio"] == pytest.approx(remote["ideal_reuse"]["ratio"])
    split = remote["cached_tokens_by_source"]
    assert split["l1"] > 0
    assert split["l2"] == split["l3"] == 0
    rows = [
        dict(zip(remote["samples"], row, strict=True))
        for row in zip(*remote["samples"].values(), strict=True)
    ]
    assert [row["cached_remote"] > 0 for row in rows] == 2 * [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert len(remote["restart_seconds"]) == 2
    # Its own count is that of the bytes that the server saw, but for the protocol's words and the warm-up.
    stores = [
        facts[part]["remote"]
        for facts in remote["facts"]
        for part in ("store", "store_before_restart")
    ]
    read = sum(store["read_bytes"] for store in stores)
    written = sum(store["write_bytes"] for store in stores)
    assert 0 < read <= given <= 1.2 * read
    assert 0 < written <= taken
    for store in stores:
        assert not store["errors"]
        assert not store["refusals"]
    first, second = remote["facts"][0]["store_before_restart"], remote["facts"][0]["store"]
    assert first["remote"]["read_bytes"] == 0 < second["remote"]["read_bytes"]
