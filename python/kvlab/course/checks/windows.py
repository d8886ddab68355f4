"""1.3: which positions a cache of sinks and a window keeps."""

from __future__ import annotations

from kvlab.course.checks import Mine, claim

__all__ = ["kept_positions"]


def kept_positions(mine: Mine) -> str:
    """Token by token: nothing comes back that went, the first and the latest stay, and no more than may."""
    cases = [(sinks, window) for sinks in (0, 1, 4) for window in (1, 5, 16)]
    for sinks, window in cases:
        held: set[int] = set()
        for length in range(1, 60):
            kept = list((mine or _keep)(length, sinks, window))
            where = f"{length} tokens, {sinks} sinks, a window of {window}"
            claim(kept == sorted(set(kept)), f"{where}: {kept} is not in order, or has some twice")
            held.add(length - 1)
            claim(
                set(kept) <= held,
                f"{where}: {sorted(set(kept) - held)} had gone, or is not there yet",
            )
            must = {*range(min(sinks, length)), *range(max(0, length - window), length)}
            claim(must <= set(kept), f"{where}: {sorted(must - set(kept))} is missing in {kept}")
            claim(
                len(kept) <= sinks + window,
                f"{where}: {len(kept)} are kept, {sinks + window} may be",
            )
            held = set(kept)
    return f"right at each of 59 lengths in {len(cases)} settings"


def _keep(length: int, sinks: int, window: int) -> list[int]:
    """The first `sinks` and the latest `window` positions (Xiao et al., 2023)."""
    return [*range(min(sinks, length)), *range(max(sinks, length - window), length)]
