"""Stores that share blocks through a real server: the same bytes, or a miss, whatever the server does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_support import attach
from kv_pattern import LAYOUT, serve
from kvlab import BlockStore, ConfigError, RemoteError, Store
from redis_support import Certificates, RedisServer, free_port
from tiny_models import build, prompt

SIZES: dict[str, Any] = {"l1": "1MiB", "l2": "4MiB", "l3": "8MiB", "free_reserve": 0}
A, B = b"a" * 32, b"b" * 32
PROMPT = list(range(1000, 1043))  # 8 whole blocks of 5, and 3 tokens


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.say("FLUSHALL")
    return shared_server


def open_store(path: Path | None, server: RedisServer, **settings: Any) -> Store:
    return Store.open(path, **(SIZES | {"remote": server.url} | settings))


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_one_store_computed_another_one_restores(
    tmp_path: Path, server: RedisServer, on_disk: bool
) -> None:
    paths = [tmp_path / name if on_disk else None for name in ("one", "other")]
    with open_store(paths[0], server) as one:
        assert serve(one.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)
        one.flush()
    with open_store(paths[1], server) as other:
        cache = other.prefix_cache(LAYOUT)
        assert serve(cache, B, PROMPT) == (0, 0, 0, 0)
        assert serve(cache, A, PROMPT) == (0, 0, 0, 40)
        assert serve(cache, A, PROMPT) == (40, 0, 0, 0)
        stats = other.stats()
        remote = stats["remote"]
        assert remote is not None
        assert stats["l4"]["hit_blocks"] == remote["found_blocks"] == 8
        assert [each["state"] for each in remote["servers"]] == ["closed"]
        other.evict("l2")
        expected = (0, 0, 40, 0) if on_disk else (0, 0, 0, 40)
        assert serve(cache, A, PROMPT) == expected
        cache.validate()


def test_two_processes_share_and_a_restarted_one_finds_it_again(
    tmp_path: Path, server: RedisServer
) -> None:
    child = (
        "import sys; from kvlab import Store; from kv_pattern import LAYOUT, serve\n"
        f"with Store.open(sys.argv[1], remote=sys.argv[2], **{SIZES!r}) as store:\n"
        f"    print(serve(store.prefix_cache(LAYOUT), {A!r}, {PROMPT!r}))\n"
    )

    def run(name: str) -> str:
        command = [sys.executable, "-c", child, str(tmp_path / name), server.url]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert run("one") == "(0, 0, 0, 0)"
    assert run("other") == "(0, 0, 0, 40)"
    assert run("other") == "(0, 0, 40, 0)"


def test_answers_from_another_stores_blocks_are_those_of_a_cold_model(
    tmp_path: Path, server: RedisServer
) -> None:
    model, ids = build("llama"), prompt(113)

    def answer(path: Path | None, **settings: Any) -> Any:
        with (
            Store.open(path, **(SIZES | {"l1": "16MiB"} | settings)) as store,
            attach(model, store, chunk_tokens=16) as session,
        ):
            out = session.generate(ids, max_new_tokens=8, do_sample=False)
            store.flush()
            return out.report, out.sequences

    cold = answer(None)[1]
    computed, sequences = answer(tmp_path / "one", remote=server.url)
    assert computed.hit_tokens.total == 0
    assert torch.equal(sequences, cold)
    restored, sequences = answer(tmp_path / "other", remote=server.url)
    assert restored.hit_tokens.l4 == 112
    assert restored.bytes_read > 0
    assert torch.equal(sequences, cold)


def test_a_server_that_is_not_there_costs_nothing_but_the_hits(tmp_path: Path) -> None:
    with RedisServer(tmp_path, port=free_port()) as server:
        with open_store(tmp_path / "one", server) as one:
            cache = one.prefix_cache(LAYOUT)
            serve(cache, A, PROMPT)
            one.flush()
            server.stop()
            assert serve(cache, A, [*PROMPT, *range(40)]) == (40, 0, 0, 0)
            health = one.remote_health()
            assert health is not None
            assert not health["healthy"]
            assert health["servers"][0]["latency_ms"] is None
            one.evict("l2")
            assert serve(cache, A, PROMPT) == (0, 0, 40, 0)
        # A store opens without it, and uses it once it answers.
        with open_store(None, server, remote_timeout=0.2) as other:
            cache = other.prefix_cache(LAYOUT)
            assert serve(cache, A, PROMPT) == (0, 0, 0, 0)
            server.start()
            health = other.remote_health()
            assert health is not None
            assert health["healthy"], health
            assert serve(cache, B, PROMPT) == (0, 0, 0, 0)
            other.flush()
        with open_store(None, server) as third:
            assert serve(third.prefix_cache(LAYOUT), B, PROMPT) == (0, 0, 0, 40)


def test_a_server_that_hangs_is_waited_for_once(tmp_path: Path, server: RedisServer) -> None:
    with open_store(tmp_path / "one", server, remote_timeout=0.1) as store:
        cache = store.prefix_cache(LAYOUT)
        serve(cache, A, PROMPT)
        store.flush()
        server.freeze()
        try:
            for seed in range(20):
                assert serve(cache, A, [seed, *PROMPT]) == (0, 0, 0, 0)
            remote = store.stats()["remote"]
            assert remote is not None
            assert 1 <= remote["errors"]["timeouts"] <= 4
            assert remote["servers"][0]["opened"] >= 1
            began = time.monotonic()
            store.close(timeout=20.0)
            assert time.monotonic() - began < 20.0
        finally:
            server.thaw()


def test_settings_that_cannot_be_are_errors(tmp_path: Path) -> None:
    for settings, message in (
        ({"remote": "http://localhost"}, "http"),
        ({"remote": "redis://localhost:notaport"}, "remote"),
        ({"remote": []}, "redis://"),
        ({"remote": "redis://localhost", "remote_prefix": "a b"}, "remote_prefix"),
        ({"remote_key_file": tmp_path / "key"}, "remote_key_file"),
        ({"remote_ca_file": tmp_path / "ca"}, "remote_ca_file"),
        ({"remote": "rediss://localhost", "remote_ca_file": tmp_path / "ca"}, "remote_ca_file"),
        (
            {"remote": "rediss://localhost", "remote_private_key_file": tmp_path / "key"},
            "remote_certificate_file",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            Store.open(None, **settings)
    with pytest.raises(ConfigError) as refused:
        Store.open(None, remote="redis://me:hunter2@localhost:notaport")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(TypeError, match="URL"):
        Store.open(None, remote=6379)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="remote_timeout"):
        BlockStore.open(None, remote_timeout="soon")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="remot_ttl"):
        BlockStore.open(None, remot_ttl=1)  # type: ignore[call-arg]


def test_tls_with_certificates_of_a_private_authority(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    port = free_port()
    options = ("--tls-port", str(port), *files.options)
    url = f"rediss://127.0.0.1:{port}"
    trusted: dict[str, Any] = {
        "remote_ca_file": files.authority,
        "remote_certificate_file": files.certificate,
        "remote_private_key_file": files.key,
    }
    with RedisServer(tmp_path, *options) as server:
        with open_store(None, server, remote=url, **trusted) as one:
            assert serve(one.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)
            one.flush()
        with open_store(None, server, remote=url, **trusted) as other:
            assert serve(other.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 40)
        # It wants a certificate; the request goes on without it.
        with open_store(None, server, remote=url, remote_ca_file=files.authority) as stranger:
            assert serve(stranger.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)
            health = stranger.remote_health()
            assert health is not None
            error = health["servers"][0]["error"]
            assert error is not None
            assert "remote_certificate_file" in error


def test_what_is_sent_can_be_encrypted(tmp_path: Path, server: RedisServer) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4, "utf-8")
    other_key = tmp_path / "other"
    other_key.write_text("f" * 64, "utf-8")
    with open_store(None, server, remote_key_file=key) as one:
        serve(one.prefix_cache(LAYOUT), A, PROMPT)
        one.flush()
    # Who cannot read a run replaces it.
    for file, expected in ((key, 40), (other_key, 0), (None, 0), (key, 0)):
        with open_store(None, server, remote_key_file=file) as other:
            assert serve(other.prefix_cache(LAYOUT), A, PROMPT)[3] == expected, file
            if expected == 0:
                server_stats = other.stats()["remote"]
                assert server_stats is not None


def test_opaque_blocks_are_shared_and_removed_for_everybody(server: RedisServer) -> None:
    settings: dict[str, Any] = {"l2": "1MiB", "l3": 0, "remote": server.url}
    keys = [bytes([number]) * 32 for number in range(6)]
    blocks = [bytes([number]) * 3000 for number in range(6)]
    with BlockStore.open(None, **settings) as one, BlockStore.open(None, **settings) as other:
        for key, block in zip(keys, blocks, strict=True):
            one.put(key, block)
        one.flush()
        assert keys[0] not in other
        assert other.get_many(keys) == blocks
        assert other.lookup(keys) == ["l2"] * 6
        buffer = bytearray(4096)
        assert other.get_into(keys[:1], [buffer]) == [3000]
        assert other.remove(keys[:2]) == 2
        one.clear()
        assert one.get_many(keys) == [None, None, *blocks[2:]]
        health = one.remote_health()
        assert health is not None
        assert health["healthy"]
        assert health["servers"][0]["address"].startswith("127.0.0.1:")
        assert (health["servers"][0]["used_memory"] or 0) > 0


def test_a_server_that_will_not_remove_is_an_error(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        settings: dict[str, Any] = {"l2": "1MiB", "l3": 0, "remote": server.url}
        with BlockStore.open(None, **settings) as store:
            store.put(A, b"bytes")
            store.flush()
            server.stop()
            with pytest.raises(RemoteError, match=r"127\.0\.0\.1"):
                store.remove([A])
            assert A not in store


def test_a_wrong_password_is_said_and_costs_nothing_but_the_hits(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--requirepass", "right") as server:
        right = server.url.replace("redis://", "redis://:right@")
        wrong = server.url.replace("redis://", "redis://:wrong@")
        with Store.open(None, **SIZES, remote=right) as one:
            serve(one.prefix_cache(LAYOUT), A, PROMPT)
            one.flush()
            stats = one.stats()["remote"]
            assert stats is not None
            assert "right" not in stats["servers"][0]["address"]
        with Store.open(None, **SIZES, remote=wrong) as other:
            assert serve(other.prefix_cache(LAYOUT), A, PROMPT) == (0, 0, 0, 0)
            health = other.remote_health()
            assert health is not None
            error = health["servers"][0]["error"]
            assert error is not None
            assert (
                "wrong" not in error.replace("wrong password", "").lower() or "WRONGPASS" in error
            )
