"""Keys and values of a prefix on a Redis server: `DistributedKVCache` against what one would write by hand.

The small model's keys and values of a prompt lie on a server of this machine, written by each arm in float16. An arm
reads all layers back as float32 tensors; the arms take turns. By hand is `torch.save` and gzip, one value and one GET a
layer with redis-py, or without gzip. kvlab's arms have no memory of their own, so that every read goes to the server.
"""

from __future__ import annotations

import argparse
import gzip
import io
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import redis
import torch
from report import Report

from kvlab import hf
from kvlab.demo.prompt import prompt
from kvlab.remote import DistributedKVCache
from kvlab.remote.server import local_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    KeyValue = tuple[Tensor, Tensor]


class Arm(Protocol):
    """One way of keeping keys and values on a server."""

    name: str

    def write(self, prefix: list[int], layers: Sequence[KeyValue]) -> None:
        """Bring them to the server; back when it has them."""

    def read(self, prefix: list[int], layers: int) -> list[KeyValue] | None:
        """Fetch them as float32."""


class ByHand:
    """`torch.save`, gzip or not, one value a layer."""

    def __init__(self, client: redis.Redis, *, compress: bool) -> None:
        self.name = "torch.save + gzip, a GET a layer" if compress else "torch.save, a GET a layer"
        self._client = client
        self._compress = compress

    def _key(self, prefix: list[int], layer: int) -> str:
        return f"{self.name}:{hash(tuple(prefix))}:{layer}"

    def write(self, prefix: list[int], layers: Sequence[KeyValue]) -> None:
        """As the arm's name says."""
        for layer, (keys, values) in enumerate(layers):
            file = io.BytesIO()
            torch.save((keys.half(), values.half()), file)
            data = file.getvalue()
            if self._compress:
                data = gzip.compress(data, compresslevel=1)
            self._client.set(self._key(prefix, layer), data, ex=3600)

    def read(self, prefix: list[int], layers: int) -> list[KeyValue] | None:
        """As the arm's name says."""
        found = []
        for layer in range(layers):
            data: Any = self._client.get(self._key(prefix, layer))
            if data is None:
                return None
            plain = gzip.decompress(data) if self._compress else data
            keys, values = torch.load(io.BytesIO(plain), weights_only=True)
            found.append((keys.float(), values.float()))
        return found


class Distributed:
    """kvlab, for the whole prefix or a layer at a time."""

    def __init__(self, name: str, cache: DistributedKVCache, *, whole: bool = True) -> None:
        self.name = name
        self._cache = cache
        self._whole = whole

    def write(self, prefix: list[int], layers: Sequence[KeyValue]) -> None:
        """As the arm's name says."""
        if self._whole:
            self._cache.cache_prefix(prefix, layers)
        else:
            for layer, (keys, values) in enumerate(layers):
                self._cache.cache_kv(prefix, layer, keys, values)
        self._cache.flush()

    def read(self, prefix: list[int], layers: int) -> list[KeyValue] | None:
        """As the arm's name says."""
        if self._whole:
            return self._cache.get_cached_prefix(prefix, layers)
        found = []
        for layer in range(layers):
            pair = self._cache.get_cached_kv(prefix, layer)
            if pair is None:
                return None
            found.append(pair)
        return found


def check(found: list[KeyValue] | None, expected: Sequence[KeyValue], name: str) -> None:
    """Raises if an arm did not bring what was written, as float16 has it."""
    if found is None:
        raise RuntimeError(f"{name} found nothing")
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            if not torch.equal(one, other.half().float()):
                raise RuntimeError(f"{name} brought other numbers than were written")


def measure(
    report: Report, arms: list[Arm], ids: list[int], layers: Sequence[KeyValue], rounds: int
) -> None:
    """Lets the arms take turns; every read is checked off the clock."""
    milliseconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for round_ in range(rounds + 1):
        # The order turns, so that no arm always follows the same one.
        turn = round_ % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            start = time.perf_counter()
            found = arm.read(ids, len(layers))
            took = time.perf_counter() - start
            check(found, layers, arm.name)
            if round_:
                milliseconds[arm.name].append(took * 1e3)
    first = milliseconds[arms[0].name]
    for name, times in milliseconds.items():
        report.add(f"read, {name}", [times], unit="ms")
    for name, times in list(milliseconds.items())[1:]:
        ratios = [other / own for own, other in zip(first, times, strict=True)]
        report.add(f"{name} / {arms[0].name}", [ratios], unit="x")


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds after the warm-up")
    parser.add_argument("--tokens", type=int, default=2048, help="of the prefix")
    parser.add_argument("--model", default="smollm2-135m", help="name, path or hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    report = Report("A prefix on a Redis server", vars(arguments))
    model, tokenizer = hf.load(arguments.model)
    tokens = prompt(tokenizer, arguments.tokens, 1)[:, : arguments.tokens]
    with torch.inference_mode():
        computed = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
    layers = [(layer.keys, layer.values) for layer in computed.layers]
    with ExitStack() as stack:
        server = stack.enter_context(local_server())
        client = stack.enter_context(redis.Redis(server.host, server.port))

        def cache(*, compress: bool, salt: str) -> DistributedKVCache:
            return stack.enter_context(
                DistributedKVCache(server.host, server.port, compress=compress, memory=0, salt=salt)
            )

        arms: list[Arm] = [
            Distributed("get_cached_prefix, zstd", cache(compress=True, salt="whole")),
            Distributed("get_cached_prefix, uncompressed", cache(compress=False, salt="plain")),
            Distributed(
                "get_cached_kv a layer, zstd", cache(compress=True, salt="layers"), whole=False
            ),
            ByHand(client, compress=True),
            ByHand(client, compress=False),
        ]
        ids = tokens[0].tolist()
        for arm in arms:
            before: Any = client.info("memory")["used_memory"]
            start = time.perf_counter()
            arm.write(ids, layers)
            took = time.perf_counter() - start
            after: Any = client.info("memory")["used_memory"]
            report.add(f"write, {arm.name}", [[took * 1e3]], unit="ms")
            report.add(f"on the server, {arm.name}", [[(after - before) / 1e6]], unit="MB")
        measure(report, arms, ids, layers, arguments.rounds)
    report.remarks.append(
        "Ratios are taken round by round. A write is until the server has it; all arms write once, before the first "
        "read. Every read is compared with what was written, off the clock."
    )
    report.print(as_json=arguments.json)


if __name__ == "__main__":
    main()
