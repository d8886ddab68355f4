"""The modes that an engine is compared in: which tiers its store has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from kvlab._core import Store
from kvlab.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

Mode: TypeAlias = Literal["baseline", "prefix_reuse", "cpu_offload", "nvme"]
"""``baseline``: nothing is kept. ``prefix_reuse``: L1. ``cpu_offload``: L1 and L2. ``nvme``: L1, L2 and L3."""
MODES: tuple[Mode, ...] = get_args(Mode)


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
    sizes = sizes or TierSizes()
    match mode:
        case "baseline":
            return None
        case "prefix_reuse":
            return Store.open(None, l1=sizes.l1, l2=0, l3=0, **settings)
        case "cpu_offload":
            return Store.open(None, l1=sizes.l1, l2=sizes.l2, l3=0, **settings)
        case "nvme":
            if path is None:
                raise ConfigError(
                    "mode 'nvme' needs a directory for L3; give one, or use 'cpu_offload'"
                )
            return Store.open(path, l1=sizes.l1, l2=sizes.l2, l3=sizes.l3, **settings)
    raise ConfigError(f"mode {mode!r}: use {', '.join(map(repr, MODES))}")
