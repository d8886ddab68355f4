"""What the tests of transformers sessions share: a small store, and the model without kvlab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kvlab import Store, hf
from kvlab.hf.cache import PreallocatedCache
from kvlab.hf.layout import read_layout

TIERS = ("l1", "l2", "l3")
BLOCK = 16


def open_store(path: Path | None, **settings: Any) -> Store:
    sizes: dict[str, Any] = {"l1": "16MiB", "l2": "8MiB", "l3": "256MiB", "free_reserve": "1MiB"}
    return Store.open(path, **(sizes | settings))


def attach(model: Any, store: Store, **settings: Any) -> hf.Session:
    """A session that restores all that is found, so that what comes back follows from the prompt alone."""
    return hf.attach(model, store, **({"restore": "always"} | settings))


def push_down(store: Store, tier: str) -> None:
    """Makes ``tier`` the highest one that holds anything."""
    if tier != "l1":
        store.evict("l1" if tier == "l2" else "l2")


def hits(report: Any) -> tuple[int, int, int]:
    return report.hit_tokens.l1, report.hit_tokens.l2, report.hit_tokens.l3


def all_in(tier: str, tokens: int) -> tuple[int, ...]:
    return tuple(tokens if name == tier else 0 for name in TIERS)


def forward(model: Any, ids: Any, cache: Any) -> Any:
    """The next token's logits ``[1, vocabulary]``."""
    with torch.inference_mode():
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1]


def live_cache(model: Any, ids: Any, keep: int, capacity: int = 512) -> PreallocatedCache:
    """A cache of plain transformers that computed ``ids`` in one go and was cut to ``keep`` tokens."""
    layout = read_layout(model)
    cache = PreallocatedCache.allocate(layout.layers, capacity, layout.dtype)
    forward(model, ids, cache)
    if keep < ids.shape[1]:
        cache.crop(keep - ids.shape[1])
    return cache


def same_rows(ours: Any, reference: Any, tokens: int) -> bool:
    return all(
        torch.equal(mine.keys[:, :, :tokens], other.keys[:, :, :tokens])
        and torch.equal(mine.values[:, :, :tokens], other.values[:, :, :tokens])
        for mine, other in zip(ours.layers, reference.layers, strict=True)
    )


def extended(ids: Any, more: Any) -> Any:
    return torch.cat([ids, more], dim=1)


def state(store: Store) -> dict[str, Any]:
    """What every tier holds, without the counters of what was done."""
    stats = store.stats()
    held: dict[str, Any] = {
        tier: {name: stats[tier][name] for name in ("runs", "blocks")} for tier in ("l2", "l3")
    }
    held["l1"] = [
        {name: cache["l1"][name] for name in ("used", "nodes", "evictable", "protected", "private")}
        for cache in stats["caches"]
    ]
    return held


def damage_last_record(path: Path) -> None:
    """Inverts the first payload bytes of the run that was written last."""
    segment = max(path.glob("*.seg"))
    with segment.open("r+b") as file:
        content = file.read()
        payload = content.rindex(b"KVLABRUN") + 4096  # behind a header of one page
        file.seek(payload)
        file.write(bytes(255 - byte for byte in content[payload : payload + 64]))
