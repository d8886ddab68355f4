"""The measurement: text is scored behind a prefix that came back through a codec, and behind the exact one."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvlab._core import KvCodec, KvLayout, Store
from kvlab.codec_bench.arms import ARMS, values_per_scale
from kvlab.errors import InvalidArgumentError, KvlabError
from kvlab.hf.attach import attach
from kvlab.hf.cache import PreallocatedCache
from kvlab.hf.layout import ModelLayout, read_layout
from kvlab.hf.load import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BLOCK_TOKENS = 16
CODECS = ("exact", "int8")
"""Codecs of L3: measured through a real store."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        model: Name, path or hub id.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        text: What is scored.
        prefix: Tokens that go through the codec; whole blocks.
        score: Tokens scored behind them, 2 or more.
        windows: How many places of the text are measured.
        store: A directory for the store.
    """

    model: str
    dtype: str
    text: str
    prefix: int
    score: int
    windows: int
    store: Path


@dataclass
class _Sums:
    """What one arm added up over its windows."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    same_top: list[float] = field(default_factory=list)
    restore_ms: list[float] = field(default_factory=list)

    def add(self, logits: Tensor, reference: Tensor, targets: Tensor) -> None:
        """Adds a window: logits ``[tokens, vocabulary]`` and the token ids that really followed."""
        ours = torch.log_softmax(logits.float(), -1)
        theirs = torch.log_softmax(reference.float(), -1)
        self.nll += (-ours.gather(1, targets[:, None])[:, 0]).tolist()
        self.kl += (theirs.exp() * (theirs - ours)).sum(-1).tolist()
        self.same_top += (ours.argmax(-1) == theirs.argmax(-1)).double().tolist()

    @property
    def perplexity(self) -> float:
        """Over all scored tokens."""
        return math.exp(statistics.fmean(self.nll))


def windows_of(tokens: int, length: int, count: int) -> list[int]:
    """Return where ``count`` windows of ``length`` begin, spread evenly over ``tokens``.

    Raises:
        InvalidArgumentError: The text is shorter than one window.
    """
    if tokens < length:
        message = (
            f"the text has {tokens} tokens, a window of prefix and score takes {length}; "
            "give a longer --text or smaller --prefix and --score"
        )
        raise InvalidArgumentError(message)
    last = tokens - length
    return sorted({last * index // max(count - 1, 1) for index in range(count)})


@torch.inference_mode()
def measure(plan: Plan, done: Callable[[], None]) -> list[dict[str, Any]]:
    """Measure all codecs and reference arms in one dtype.

    Args:
        plan: What to do.
        done: Called after each window.

    Returns:
        One row an arm: ``arm``, ``stored`` (whether a store did it), ``ratio`` to the exact bytes,
        ``perplexity`` and its ``change`` in per cent, mean ``kl`` in nats of exact against it,
        ``top1`` agreement (0 to 1); for stored ones also ``encode_gbps`` and ``decode_gbps`` (exact bytes a second,
        one thread, memory to memory) and ``restore_ms`` (median).

    Raises:
        InvalidArgumentError: The text is too short.
        KvlabError: The store did not give back all of the prefix, or not what was stored.
    """
    model, tokenizer = load(plan.model, dtype=plan.dtype)
    layout = read_layout(model)
    ids = torch.tensor([tokenizer(plan.text)["input_ids"]])
    starts = windows_of(ids.shape[1], plan.prefix + plan.score, plan.windows)
    sums = {name: _Sums() for name in ("plain", *CODECS, *ARMS)}
    payload = b""
    need = layout.bytes_per_token * (plan.prefix + plan.score + 64)
    sizes: dict[str, Any] = {"l1": 8 * need, "l2": 0, "l3": max(64 << 20, 8 * need * len(starts))}
    with Store.open(plan.store, free_reserve="64MiB", **sizes) as store:
        for start in starts:
            window = ids[:, start : start + plan.prefix + plan.score]
            targets = window[0, plan.prefix + 1 :]
            cache = PreallocatedCache.allocate(layout.layers, window.shape[1], layout.dtype)
            model(input_ids=window[:, : plan.prefix], past_key_values=cache, use_cache=True)
            payload = payload or _payload(cache, plan.prefix)
            reference = _score(model, window, cache, plan.prefix)
            sums["plain"].add(reference, reference, targets)
            for name in ARMS:
                changed = _through(cache, name, plan.prefix, layout)
                sums[name].add(_score(model, window, changed, plan.prefix), reference, targets)
            for name in CODECS:
                logits, restore_ms = _restored(model, store, name, window, plan.prefix)
                sums[name].add(logits, reference, targets)
                sums[name].restore_ms.append(restore_ms)
            done()
    return [_row(name, sums, plan, layout, payload) for name in (*CODECS, *ARMS)]


def _score(model: Any, window: Tensor, cache: PreallocatedCache, prefix: int) -> Tensor:
    """Logits ``[score - 1, vocabulary]`` behind a cached prefix, the first one alone as a request does it."""
    first = model(input_ids=window[:, prefix : prefix + 1], past_key_values=cache, use_cache=True)
    rest = model(input_ids=window[:, prefix + 1 : -1], past_key_values=cache, use_cache=True)
    logits = torch.cat([first.logits[0], rest.logits[0]])
    cache.crop(prefix - cache.get_seq_length())
    return logits


def _restored(
    model: Any, store: Store, codec: Any, window: Tensor, prefix: int
) -> tuple[Tensor, float]:
    """Write the prefix through to L3, drop it from memory, restore it and score behind it."""
    with attach(model, store, salt="codec-bench", codec=codec, restore="always") as session:
        session.prefill(window[:, :prefix])
        session.flush()
        store.evict()
        store.drop_page_cache()
        turn = session.prefill(window[:, : prefix + 1], headroom=window.shape[1], keep=False)
        if turn.report.hit_tokens.l3 != prefix:
            message = f"{turn.report.hit_tokens} of {prefix} prefix tokens came back from L3"
            raise KvlabError(message)
        rest = model(
            input_ids=window[:, prefix + 1 : -1], past_key_values=turn.cache, use_cache=True
        )
        logits = torch.cat([turn.logits, rest.logits[0]])
        restore_ms = turn.report.restore_ms
    # Windows of one text overlap: the next one's prefix is stored anew.
    store.clear()
    return logits, restore_ms


def _through(
    cache: PreallocatedCache, arm: str, prefix: int, layout: ModelLayout
) -> PreallocatedCache:
    """Copy a cache's prefix through a reference arm."""
    out = PreallocatedCache.allocate(layout.layers, cache.layers[0].capacity, layout.dtype)
    change_k, change_v = ARMS[arm]
    for index, layer in enumerate(cache.layers):
        key, value = layer.keys[:, :, :prefix], layer.values[:, :, :prefix]
        out.update(change_k(key), change_v(value), index)
    return out


def _payload(cache: PreallocatedCache, prefix: int) -> bytes:
    """K and V of the first layers as bytes, up to 8 MiB: what the codec's speed is measured on."""
    parts: list[bytes] = []
    for layer in cache.layers:
        for rows in (layer.keys, layer.values):
            raw = rows[:, :, :prefix].contiguous().view(torch.uint8)
            parts.append(raw.numpy().tobytes())
        if sum(map(len, parts)) > 8 << 20:
            break
    return b"".join(parts)


def _row(
    name: str, sums: dict[str, _Sums], plan: Plan, layout: ModelLayout, payload: bytes
) -> dict[str, Any]:
    ours, plain = sums[name], sums["plain"].perplexity
    row: dict[str, Any] = {
        "arm": name,
        "dtype": plan.dtype,
        "stored": name in CODECS,
        "perplexity": ours.perplexity,
        "change": (ours.perplexity / plain - 1) * 100,
        "kl": statistics.fmean(ours.kl),
        "top1": statistics.fmean(ours.same_top),
        "scored": len(ours.nll),
    }
    if name in CODECS:
        layers = [(s.k_heads, s.k_dim, s.v_heads, s.v_dim) for s in layout.layers]
        shape = KvLayout(layers, element_bytes=layout.element_bytes, block_tokens=BLOCK_TOKENS)
        codec = KvCodec(name, shape, dtype=plan.dtype)
        encode, decode = codec.measure(payload)
        return row | {
            "ratio": len(payload) / codec.stored_bytes(len(payload)),
            "encode_gbps": len(payload) / encode / 1e9,
            "decode_gbps": len(payload) / decode / 1e9,
            "restore_ms": statistics.median(ours.restore_ms),
        }
    return row | {"ratio": _ratio(name, plan.prefix, layout)}


def _ratio(arm: str, tokens: int, layout: ModelLayout) -> float:
    """Exact bytes of an element to those of an integer and its share of a scale, over all layers."""
    exact = stored = 0.0
    for layer in layout.layers:
        for half, heads, dim in ((0, layer.k_heads, layer.k_dim), (1, layer.v_heads, layer.v_dim)):
            group = values_per_scale(arm, tokens, heads, dim)[half]
            element = layout.element_bytes
            exact += heads * dim * element
            stored += heads * dim * (1 + element / group if group else element)
    return exact / stored
