"""The Grafana dashboard that the package carries."""

import json
from importlib.resources import files
from typing import Any


def dashboard() -> dict[str, Any]:
    """Return the dashboard as data."""
    text = files("meshscrape.prometheus").joinpath("dashboard.json").read_text(encoding="utf-8")
    board: dict[str, Any] = json.loads(text)
    return board
