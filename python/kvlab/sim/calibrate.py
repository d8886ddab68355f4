"""Measures what reads and forwards cost on this machine, by the live store's own estimates."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

import kvlab
from kvlab import hf
from kvlab.errors import InvalidArgumentError, StateError
from kvlab.hf.layout import read_layout
from kvlab.sim.cost_file import CostModel
from kvlab.sim.tiers import Costs, Read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["calibrate", "steps"]

_BLOCK = 16
_LENGTHS = (0.25, 0.5, 1.0)
_DECODED = 8


def steps(rounds: int) -> int:
    """How many requests a calibration makes, for a bar."""
    return rounds * (len(_LENGTHS) + 3) + rounds + 1


def calibrate(
    model: Any,
    directory: Path,
    *,
    source: str,
    tokens: int = 512,
    rounds: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> CostModel:
    """Sends requests to a store of its own and takes over what the store has learnt (`kvlab.Store.costs`).

    Each round computes prompts of three lengths, and restores the longest from L1, L2 and L3, from the disk
    rather than the page cache. Answers of a few tokens give the cost of decoding. Reads of L1 are not
    learnt by the store: L1 lies in the same memory as L2, and counts as that.

    Args:
        model: As `kvlab.hf.load` gives it.
        directory: Where the store is made, on the disk that is to be measured; it is left there.
        source: What is measured, for reports.
        tokens: Of the longest prompt, at least 64.
        rounds: At least 3, so that the store counts its costs as learnt.
        seed: Of the prompts' tokens.
        progress: Called with requests done, of `steps(rounds)`.

    Raises:
        InvalidArgumentError: too few tokens or rounds, or more tokens than the model has positions.
        StateError: the store could not time enough reads.
        UnsupportedModelError: the model cannot be served.
    """
    if tokens < 4 * _BLOCK or rounds < 3:
        raise InvalidArgumentError(
            f"tokens = {tokens}, rounds = {rounds}: use at least {4 * _BLOCK} tokens and 3 rounds"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and tokens + _DECODED > positions:
        raise InvalidArgumentError(
            f"tokens = {tokens}: the model has {positions} positions; use fewer tokens"
        )
    whole = tokens // _BLOCK * _BLOCK + 1
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (1, whole), generator=draw)
    token_bytes = read_layout(model).bytes_per_token
    size = 4 * token_bytes * (whole + 256)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done)

    with kvlab.Store.open(directory, l1=size, l2=size, l3=4 * size, free_reserve=0) as store:
        with (
            hf.attach(model, store, restore="never") as computing,
            hf.attach(model, store, restore="always") as restoring,
        ):
            computing.prefill(ids)
            store.flush()
            step()
            for _ in range(rounds):
                for share in _LENGTHS:
                    computing.prefill(ids[:, : max(2, int(whole * share))], keep=False)
                    step()
                for tier in ("l1", "l2", "l3"):
                    _bring_to(store, restoring, ids, tier)
                    restoring.prefill(ids, keep=False)
                    step()
            decoded = []
            for _ in range(rounds):
                decoded.append(_decode(restoring, ids))
                step()
        learnt: dict[str, Any] = {**store.costs()}
    (forward,) = learnt["prefill"].values()
    read = {tier: _read(learnt["read"][tier]) for tier in ("l2", "l3")}
    for tier, cost in learnt["read"].items():
        if tier in read and not cost["learnt"]:
            raise StateError(
                f"{cost['observations']} reads of {tier} were timed, too few to know it; use more rounds"
            )
    speed = forward["tokens_per_s"]
    return CostModel(
        source=source,
        measured=True,
        costs=Costs(
            prefill=(
                forward["fixed_ms"] / 1e3,
                1.0 / speed if speed else 0.0,
                forward["us_per_1k_context"] / 1e9,
            ),
            decode=statistics.median(decoded),
            token_bytes=token_bytes,
            l1=read["l2"],
            l2=read["l2"],
            l3=read["l3"],
            overlap=learnt["overlap"],
        ),
    )


def _bring_to(store: kvlab.Store, session: hf.Session, ids: torch.Tensor, tier: str) -> None:
    """Makes `tier` the highest one that holds the prompt."""
    if tier == "l1":
        session.prefill(ids)
        store.flush()
    elif tier == "l2":
        store.evict("l1")
    else:
        store.evict("l2")
        store.drop_page_cache()


def _decode(session: hf.Session, ids: torch.Tensor) -> float:
    """Seconds of one token of an answer."""
    start = time.perf_counter()
    out = session.generate(ids, max_new_tokens=_DECODED, min_new_tokens=_DECODED, do_sample=False)
    elapsed = time.perf_counter() - start - out.report.ttft_ms / 1e3
    return max(elapsed, 1e-6) / (_DECODED - 1)


def _read(learnt: dict[str, Any]) -> Read:
    rate = learnt["gb_per_s"]
    # Where the size makes no difference the rate is beyond what could be told.
    return Read(
        latency=learnt["latency_us"] / 1e6, bandwidth=rate * 1e9 if rate else 1e12, transfers=1
    )
