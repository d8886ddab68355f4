"""Servers that share one Redis: what one computed another one answers from, each tenant for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")

from redis_support import RedisServer
from serve_api_support import MODEL, make_model, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from serve_api_support import Running

KEYS = "sk-anna-0001 anna\nsk-bert-0001 bert\n"
PROMPT = "the same instructions for all who ask, " * 8


def ask(server: Running, key: str, **more: Any) -> tuple[str, int]:
    """An answer, and how many tokens of its prompt came from a cache."""
    asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | more
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{server.url}/v1/completions", json=asked, headers=headers, timeout=120)
    answer.raise_for_status()
    body = answer.json()
    return body["choices"][0]["text"], body["usage"]["prompt_tokens_details"]["cached_tokens"]


def written(server: Running) -> int:
    """Runs that it has brought to Redis."""
    assert server.service.store is not None
    remote = server.service.store.stats()["remote"]
    assert remote is not None
    return int(remote["writes"])


@pytest.mark.parametrize("encrypted", [False, True])
def test_two_machines_share_by_tenant(tmp_path: Path, encrypted: bool) -> None:
    model = str(make_model(tmp_path / "model"))
    (tmp_path / "keys").write_text(KEYS)
    (tmp_path / "secret").write_text("5a" * 32)
    (tmp_path / "secret").chmod(0o600)
    shared: dict[str, Any] = {"model": model, "api_keys": tmp_path / "keys"}
    if encrypted:
        shared["remote_key_file"] = tmp_path / "secret"
    for name in ("redis", "one", "other", "stranger"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "redis") as redis:
        shared["remote"] = (redis.url,)
        with (
            running(tmp_path / "one", **shared) as one,
            running(tmp_path / "other", **shared) as other,
        ):
            anna, cached = ask(one, "sk-anna-0001")
            assert cached == 0
            assert ask(one, "sk-bert-0001") == (anna, 0)  # answers are the model's, not the cache's
            until(lambda: written(one) >= 2)
            again, cached = ask(other, "sk-anna-0001")
            assert again == anna
            assert cached > 0
            # A salt of her own leads to nobody's blocks, nor does calling herself another.
            assert ask(other, "sk-anna-0001", cache_salt="new") == (anna, 0)
            assert ask(other, "sk-anna-0001", cache_salt="bert") == (anna, 0)
        if encrypted:
            # The same tenant without the key, or with another one.
            (tmp_path / "secret").write_text("a5" * 32)
            with running(tmp_path / "stranger", **shared) as stranger:
                assert ask(stranger, "sk-anna-0001") == (anna, 0)
