"""The demo's measurements: one process that writes, and a new one that restores.

The parent prefills and evicts (`write`), then runs this module as a program (`restore`), which
opens the store anew and compares three ways to the first token of the second turn, interleaved:
restored from L3, continued on a cache that never left memory, and recomputed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvlab._core import Store
from kvlab.demo.prompt import prompt
from kvlab.hf.cache import PreallocatedCache
from kvlab.hf.layout import read_layout
from kvlab.hf.load import load
from kvlab.hf.session import Session, attach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HEADROOM = 96
_NEW_TOKENS = 40
_PREFETCH_LEADS_MS = (0, 50, 200)
STEP_MARK = "kvlab demo step: "
"""Begins each line that the new process writes to stderr when a step is done."""


@dataclass(frozen=True)
class Plan:
    """What the demo measures. Plain values: it crosses into the new process as JSON."""

    model: str
    store: str
    dtype: str
    lengths: list[int]
    repeats: int

    def restore_steps(self) -> int:
        """How many steps `restore` reports: each repeat, a warm-up, each prefetched one, and the texts."""
        a_length = 1 + self.repeats + len(_PREFETCH_LEADS_MS) * self.repeats + 1
        return len(self.lengths) * a_length


def open_store(plan: Plan) -> Store:
    """Open the demo's store with room for the longest prompt in every tier."""
    return Store.open(plan.store, l1="1GiB", l2="768MiB", l3="4GiB")


def write(plan: Plan, done: Callable[[], None]) -> dict[str, Any]:
    """Prefill prefix and first turn, write through, and evict all the way to L3.

    Args:
        plan: What to do.
        done: Called after each length.

    Returns:
        ``lengths``: per length the milliseconds of each step and what is left in L1 and L2;
        ``page_cache``: how the drop of the segments' pages went, checked by mincore.
    """
    model, tokenizer = load(plan.model, dtype=plan.dtype)
    beats: list[dict[str, Any]] = []
    with open_store(plan) as store:
        for length in plan.lengths:
            ids = prompt(tokenizer, length, 1)
            with _session(model, store, length) as session:
                session.prefill(prompt(tokenizer, 32, 1), keep=False)  # warm-up
                report = session.prefill(ids, headroom=_HEADROOM).report
                write_ms, _ = _timed(session.flush)
            evict_ms, _ = _timed(store.evict)
            stats = store.stats()
            beats.append(
                {
                    "prefix_tokens": length,
                    "cold_prefill_ms": report.ttft_ms,
                    "write_through_ms": write_ms,
                    "eviction_ms": evict_ms,
                    "l1_used_blocks": stats["caches"][0]["l1"]["used"],
                    "l2_used_bytes": stats["l2"]["used"],
                    "l3_used_bytes": stats["l3"]["used"],
                }
            )
            done()
        drop_ms, resident = _timed(store.drop_page_cache)
    return {
        "lengths": beats,
        "page_cache": {"drop_ms": drop_ms, "resident_bytes": resident},
    }


def restore(plan: Plan, done: Callable[[], None]) -> list[dict[str, Any]]:
    """In a new process: restore each length for the second turn and compare; one row a length.

    Args:
        plan: What to do.
        done: Called after each of `Plan.restore_steps` steps.
    """
    model, tokenizer = load(plan.model, dtype=plan.dtype)
    with open_store(plan) as store:
        return [
            _compare(model, tokenizer, store, plan, length=length, done=done)
            for length in plan.lengths
        ]


def _session(model: PreTrainedModel, store: Store, length: int) -> Session:
    # One salt a length: shorter prefixes would otherwise lend the longer ones their first blocks,
    # which were computed in a forward of another shape.
    return attach(model, store, salt=f"demo-{length}", restore="always")


@torch.inference_mode()
def _compare(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    store: Store,
    plan: Plan,
    *,
    length: int,
    done: Callable[[], None],
) -> dict[str, Any]:
    first, second = prompt(tokenizer, length, 1), prompt(tokenizer, length, 2)
    capacity = max(first.shape[1], second.shape[1]) + _HEADROOM
    shapes = read_layout(model).layers
    with _session(model, store, length) as session:
        hit = session.prefill(second, headroom=_HEADROOM, keep=False).report.hit_tokens.total
        # Never evicted: prefix and first turn in plain transformers, cut to the hit length.
        live = PreallocatedCache.allocate(shapes, capacity, model.dtype)
        _forward(model, first, live)
        live.crop(hit - first.shape[1])
        scratch = PreallocatedCache.allocate(shapes, capacity, model.dtype)
        times: dict[str, list[float]] = {"restored": [], "never_evicted": [], "recomputed": []}
        reports = []
        exact = True
        for repeat in range(plan.repeats + 1):
            store.drop_page_cache()
            restored = session.prefill(second, headroom=_HEADROOM, keep=False)
            never_ms, logits = _timed(lambda: _forward(model, second[:, hit:], live))
            live.crop(hit - second.shape[1])
            exact = exact and torch.equal(logits, restored.logits)
            scratch.reset()
            recomputed_ms, _ = _timed(lambda: _forward(model, second, scratch))
            done()
            if repeat == 0:
                continue  # warm-up
            reports.append(restored.report)
            times["restored"].append(restored.report.ttft_ms)
            times["never_evicted"].append(never_ms)
            times["recomputed"].append(recomputed_ms)
        del restored
        prefetched = _prefetched(store, session, second, plan.repeats, done)
        # Before anything of this turn is kept: both texts start from the same hit length.
        new = slice(second.shape[1], None)
        settings = {
            "max_new_tokens": _NEW_TOKENS,
            "do_sample": False,
            "attention_mask": torch.ones_like(second),
        }
        out = session.generate(second, **settings)
        text = tokenizer.decode(out.sequences[0, new], skip_special_tokens=True)
        generate: Any = model.generate
        plain = generate(second, past_key_values=live, **settings)
        never_text = tokenizer.decode(plain[0, new], skip_special_tokens=True)
        pool = _share(session, second)
        done()
    report = reports[-1]
    return {
        "dtype": plan.dtype,
        "prefix_tokens": length,
        "prompt_tokens": report.prompt_tokens,
        "hit_tokens": asdict(report.hit_tokens),
        "computed_tokens": report.computed_tokens,
        "blocks_reused": report.blocks_reused,
        "bytes_read": report.bytes_read,
        "restore_ms": _spread(r.restore_ms for r in reports),
        "restore_wait_ms": _spread(r.restore_wait_ms for r in reports),
        "suffix_prefill_ms": _spread(r.prefill_ms for r in reports),
        "ttft_ms": {name: _spread(values) for name, values in times.items()},
        "ratios": {
            "recomputed_over_restored": _ratio(times["recomputed"], times["restored"]),
            "restored_over_never_evicted": _ratio(times["restored"], times["never_evicted"]),
        },
        "prefetched_ttft_ms": prefetched,
        "pool": pool,
        "bit_exact": exact,
        "same_text": text == never_text,
        "text": {"restored": text, "never_evicted": never_text},
    }


def _prefetched(
    store: Store, session: Session, ids: Tensor, repeats: int, done: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """TTFT where a prefetch ticket was issued so many milliseconds before the request."""
    result = {}
    for lead in _PREFETCH_LEADS_MS:
        values = []
        for _ in range(repeats):
            store.evict()
            store.drop_page_cache()
            ticket = session.prefetch(ids)
            time.sleep(lead / 1e3)
            values.append(session.prefill(ids, headroom=_HEADROOM, keep=False).report.ttft_ms)
            ticket.cancel()
            done()
        result[str(lead)] = _spread(values)
    store.evict()
    return result


def _share(session: Session, ids: Tensor) -> dict[str, int]:
    """Two agents go on from one context: what the live pool says of it."""
    session.prefill(ids, headroom=_HEADROOM)
    session.flush()
    before = session.cache.stats()["l1"]
    with session.fork() as other:
        other.prefill(ids, headroom=_HEADROOM)
        other.flush()
        after = session.cache.stats()["l1"]
    return {
        "blocks_used": after["used"],
        "blocks_reused": after["reused_blocks"] - before["reused_blocks"],
        "blocks_shared": after["shared"],
        "blocks_saved": after["saved_blocks"],
    }


def _forward(model: PreTrainedModel, ids: Tensor, cache: PreallocatedCache) -> Tensor:
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: Tensor = out.logits
    return logits[:, -1]


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what the call gave back."""
    began = time.perf_counter()
    value = call()
    return (time.perf_counter() - began) * 1e3, value


def _spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def _ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """The ratio pair by pair, so that the machine's drift between repeats falls out."""
    return _spread(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    """Be the new process: a plan on stdin, rows to the file that the argument names, steps to stderr."""
    plan = Plan(**json.loads(sys.stdin.read()))
    numbers = count(1)

    def done() -> None:
        print(f"{STEP_MARK}{next(numbers)}", file=sys.stderr, flush=True)

    Path(sys.argv[1]).write_text(json.dumps(restore(plan, done)), encoding="utf-8")


if __name__ == "__main__":
    main()
