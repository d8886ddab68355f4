"""2.3: quantising within half a step, and moving rotated keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab.course.checks import Mine, claim

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["keys_move", "round_trip_error"]


def round_trip_error(mine: Mine) -> str:
    """Rows of several spreads, constant ones too, at 8, 4 and 2 bits; symmetric or with a zero point."""
    rng = np.random.default_rng(12)
    spreads = 10.0 ** rng.uniform(-3, 3, (64, 1))
    rows = (rng.standard_normal((64, 128)) * spreads + rng.standard_normal((64, 1))).astype("f4")
    rows[0], rows[1] = 0, 3
    for bits in (8, 4, 2):
        back: Any = np.asarray((mine or _round_trip)(rows.copy(), bits))
        where = f"{bits} bits"
        claim(
            back.shape == rows.shape, f"{where}: gave the shape {back.shape}, expected {rows.shape}"
        )
        claim(np.isfinite(back).all(), f"{where}: gave values that are not finite")
        distinct = max(len(np.unique(row)) for row in back)
        claim(
            distinct <= 2**bits,
            f"{where}: a row came back with {distinct} values, {2**bits} fit",
        )
        # The coarser of the two ways: symmetric around zero, half of the steps on each side.
        step = np.abs(rows).max(1) / (2 ** (bits - 1) - 1)
        error = np.abs(back.astype("f8") - rows).max(1)
        row = int((error - step / 2).argmax())
        claim(
            (error <= step / 2 * 1.001 + 1e-6 * np.abs(rows).max(1)).all(),
            f"{where}: a row with values up to {np.abs(rows[row]).max():.3g} is off by {error[row]:.3g}, half a "
            f"step is {step[row] / 2:.3g}",
        )
    return "within half a step at 8, 4 and 2 bits, and no more values than fit"


def _round_trip(rows: NDArray[Any], bits: int) -> NDArray[Any]:
    """Symmetric, one scale a row, as kvlab's int8."""
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(rows).max(1, keepdims=True) / largest
    scale[scale == 0] = 1
    return np.asarray(np.round(rows / scale) * scale)


def keys_move(mine: Mine) -> str:
    """Keys rotated at one position and moved, against keys rotated at the other; and their scores."""
    rng = np.random.default_rng(13)
    worst = 0.0
    cases = [(dim, base, delta) for dim in (2, 64) for base in (1e4, 5e5) for delta in (-7, 0, 300)]
    for dim, base, delta in cases:
        keys = rng.standard_normal((12, dim))
        positions = np.arange(20, 32)
        rotated = _rotate(keys, positions, base)
        moved: Any = np.asarray((mine or _move)(rotated.copy(), delta, base))
        expected = _rotate(keys, positions + delta, base)
        where = f"dim {dim}, base {base:g}, moved by {delta}"
        claim(
            moved.shape == expected.shape,
            f"{where}: gave the shape {moved.shape}, expected {expected.shape}",
        )
        difference = float(np.abs(moved - expected).max())
        claim(difference <= 1e-5, f"{where}: off by {difference:.2g} somewhere, 1e-5 is allowed")
        worst = max(worst, difference)
        # What the move is for: a query as far behind as before scores as before.
        query = rng.standard_normal((1, dim))
        before = _rotate(query, np.array([40]), base) @ rotated.T
        after = _rotate(query, np.array([40 + delta]), base) @ moved.T
        claim(
            np.allclose(before, after, atol=1e-4), f"{where}: scores changed at the same distance"
        )
    return f"equal in {len(cases)} cases, off by {worst:.1g} at most; scores at the same distance stayed"


def _rotate(rows: NDArray[Any], positions: NDArray[Any], base: float) -> NDArray[Any]:
    """Rotary positions by halves (Su et al., 2021; the layout of Llama in transformers)."""
    half = rows.shape[1] // 2
    angles = positions[:, None] * base ** (-np.arange(half) / half)
    first, second = rows[:, :half], rows[:, half:]
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], 1)


def _move(keys: NDArray[Any], delta: int, base: float) -> NDArray[Any]:
    """Rotations add up: a rotation by the difference."""
    return _rotate(keys, np.full(len(keys), delta), base)
