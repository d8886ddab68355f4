"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from browser import browser, chromium

__all__ = ["browser", "chromium", "smollm2"]

# How long an example takes says nothing: the machine may do something else meanwhile.
settings.register_profile("kvlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvlab")


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
