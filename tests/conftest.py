"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from browser import browser, chromium

__all__ = ["browser", "chromium", "smollm2"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The directory of the converted SmolLM2-135M-Instruct; skips where it cannot be had."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("the 'hf' extra is not installed")
    from kvlab import models
    from kvlab.errors import ModelUnavailableError

    try:
        return models.resolve(models.SMOLLM2)
    except ModelUnavailableError as error:
        pytest.skip(str(error))
