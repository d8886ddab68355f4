"""The checkpoints that can be checked for real, a file for each module of the course.

A check takes the learner's own function or class, or None for kvlab's and the checks' own references. It returns a
sentence that says what held, and raises `AssertionError` with the reason if something did not. All draws have seeds, so
that a check that fails fails again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Mine", "claim"]

Mine = Callable[..., Any] | None
"""What the learner's file defines, or None."""


def claim(holds: object, otherwise: str) -> None:
    """Raises `AssertionError` with a reason unless something holds."""
    if not holds:
        raise AssertionError(otherwise)
