"""Attaching a transformers model to a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kvlab._core import KvCodec, KvLayout, parse_size, parse_ttl
from kvlab.errors import ConfigError
from kvlab.hf.layout import read_layout
from kvlab.hf.session import Session, SessionOptions
from kvlab.hf.support import check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvlab._core import Store
    from kvlab._types import RestoreMode
    from kvlab.near_misses import PromptIndex

_RESTORE_MODES = ("always", "auto", "never")


def attach(
    model: PreTrainedModel,
    store: Store,
    *,
    salt: str = "",
    block_tokens: int = 16,
    chunk_tokens: int = 0,
    l1: int | str | None = None,
    residents: int = 4,
    restore: RestoreMode = "auto",
    codec: Literal["exact", "int8"] = "exact",
    ttl: int | str | None = None,
    quota: int | str | None = None,
    persist: bool = True,
    prompts: PromptIndex | None = None,
) -> Session:
    """Serve a model's prompts from a store.

    Args:
        model: A decoder-only transformers model on the CPU, in eval mode.
        store: An open store.
        salt: Caches under different salts never share anything.
        block_tokens: Tokens in a block: a hit is rounded down to whole blocks.
        chunk_tokens: Prefill on a grid of so many tokens, a multiple of ``block_tokens`` (512 is a
            good one). Cold and warm answers are then the same bit for bit, in every dtype. The
            price: prefill takes 7-10 % longer, a hit is rounded down to whole chunks, and generated
            tokens are reused only after a later prompt had them computed on the grid. 0 (default):
            compute the rest of a prompt in one go.
        l1: The share of the store's L1 memory for this model's layout, half of it for cache
            buffers. Default: all that is left.
        residents: The most sequences that stay in their cache buffers, within that memory, so that
            the next turn goes on in place without a copy; 0 for none. The first session of a
            layout decides.
        restore: How much of what is found is restored. ``"auto"`` (default): as much as is
            predicted to pay, by the learnt costs of reading and computing (`Store.costs`); the rest
            is computed again. ``"always"``: all of it. ``"never"``: nothing; for comparison.
        codec: How L3 stores keys and values. ``exact`` (default): as they are. ``int8``: lossy, a
            choice for capacity and slow disks; 3.8 times smaller in float32, 1.9 in the 16-bit
            dtypes. What comes from disk then differs from what memory gives by up to 1/254 of the
            largest magnitude of its token and head; ``kvlab codec-bench`` says what that does to
            a model. Caches of different codecs never share anything.
        ttl: Seconds, or e.g. ``"7d"``, after which what was stored is forgotten in every tier.
            Default: never.
        quota: Bytes of L3 that all sessions of this salt may take together; what is over evicts
            their own least recently used prompts. Default: the store's ``l3_quota_per_salt``.
        persist: Whether prompts of this session may be written to disk.
        prompts: Remembers the tokens of this session's prompts in memory, for `Session.near_misses` and
            `Session.explain`; under a millisecond for a prompt of some thousand tokens. Sessions made by `fork` share
            it; `with_salt` begins an empty one. Default: nothing is remembered.

    Returns:
        A session.

    Raises:
        UnsupportedModelError: The model keeps state that cannot be cut at a token; the message says
            which.
        CapacityError: The store's L1 memory is taken by other layouts.
        ConfigError: An argument that cannot be.
        InvalidArgumentError: A size or a time that cannot be.
    """
    check_model(model)
    if block_tokens < 1:
        raise ConfigError(f"block_tokens = {block_tokens} is not at least 1; 16 is a good one")
    if chunk_tokens < 0 or chunk_tokens % block_tokens != 0:
        raise ConfigError(
            f"chunk_tokens = {chunk_tokens} is no multiple of block_tokens = {block_tokens}; "
            f"use 0 or e.g. {32 * block_tokens}"
        )
    if restore not in _RESTORE_MODES:
        raise ConfigError(f"restore = {restore!r}: use {', '.join(map(repr, _RESTORE_MODES))}")
    if quota is not None and not salt:
        raise ConfigError(f"quota = {quota} is for the sessions of a salt; give this one a salt")
    seconds = None if ttl is None else parse_ttl(ttl)
    quota_bytes = None if quota is None else parse_size(quota)
    layout = read_layout(model)
    layers = [(s.k_heads, s.k_dim, s.v_heads, s.v_dim) for s in layout.layers]
    kv_layout = KvLayout(layers, element_bytes=layout.element_bytes, block_tokens=block_tokens)
    stored = KvCodec(codec, kv_layout, dtype=str(layout.dtype).removeprefix("torch."))
    cache = store.prefix_cache(kv_layout, l1=l1, residents=residents)
    options = SessionOptions(
        salt=salt,
        chunk_tokens=chunk_tokens,
        restore=restore,
        codec=None if codec == "exact" else stored,
        ttl=seconds,
        quota=quota_bytes,
        persist=persist,
    )
    return Session(model, cache, layout, options, prompts)
