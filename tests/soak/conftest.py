"""Long variants, for `make soak`: SOAK_MINUTES (default 10) is how long each of them runs."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def soak_seconds() -> float:
    """How long to go on."""
    return float(os.environ.get("SOAK_MINUTES", "10")) * 60
