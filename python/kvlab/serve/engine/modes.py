"""The modes that an engine is compared in: which tiers its store has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from kvlab._core import Store
from kvlab.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Mode: TypeAlias = Literal["baseline", "prefix_reuse", "cpu_offload", "nvme"]
MODES: tuple[Mode, ...] = get_args(Mode)
TIERS: Mapping[str, tuple[str, ...]] = {
    "baseline": (),
    "prefix_reuse": ("l1",),
    "cpu_offload": ("l1", "l2"),
    "nvme": ("l1", "l2", "l3"),
}
"""The tiers of each mode; in ``baseline`` nothing is kept."""


@dataclass(frozen=True, slots=True)
class TierSizes:
    """Bytes of each tier, as numbers or e.g. ``"2GiB"``; those that a mode has not are left out."""

    l1: int | str = "1GiB"
    l2: int | str = "2GiB"
    l3: int | str = "20GiB"


def open_mode(
    mode: Mode, path: Path | None = None, sizes: TierSizes | None = None, **settings: Any
) -> Store | None:
    """Open the store of a mode.

    Args:
        mode: One of `MODES`.
        path: The directory of L3, for ``nvme`` alone.
        sizes: Of the tiers.
        **settings: Further ones of `Store.open`.

    Returns:
        A store that the caller closes; None in ``baseline``.

    Raises:
        ConfigError: an unknown mode, or ``nvme`` without a directory.
        KvlabError: the store cannot be opened (see `Store.open`).
    """
    if mode not in TIERS:
        raise ConfigError(f"mode {mode!r}: use {', '.join(map(repr, MODES))}")
    sizes, tiers = sizes or TierSizes(), TIERS[mode]
    if not tiers:
        return None
    on_disk = "l3" in tiers
    if on_disk and path is None:
        raise ConfigError(f"mode {mode!r} needs a directory for L3; give one, or use 'cpu_offload'")
    return Store.open(
        path if on_disk else None,
        l1=sizes.l1,
        l2=sizes.l2 if "l2" in tiers else 0,
        l3=sizes.l3 if on_disk else 0,
        **settings,
    )
