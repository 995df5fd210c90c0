"""Targets as short lists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshscrape.errors import InputError
from meshscrape.prometheus.target_rows import parse_target_row, target_row
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId

ID = "spiffe://cluster.local/ns/shop/sa/web"
WHERE = "https://10.0.0.1:15098/changes"
ROW = ["10.0.0.7", 15092, ID, {"pod": "web-1"}, "/stats/prometheus", True, True]


@pytest.mark.parametrize(
    "target",
    [
        Target("10.0.0.7", 15092, SpiffeId.parse(ID), {"pod": "web-1", "zone": ""}),
        Target("fd00::7", 65535, SpiffeId.parse(ID), {"owner": 'Zoë "\n" 😀'}, "/metrics", main=False),
        Target("10.0.0.7", 1, SpiffeId.parse(ID), {}, ready=False),
    ],
)
def test_every_field_survives(target: Target) -> None:
    """Also addresses that discovery does not announce, and labels in any language."""
    assert parse_target_row(json.loads(json.dumps(target_row(target))), WHERE) == target


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "web.example"), (0, "10.0.0.7:1]"), (0, "0.0.0.0"), (0, "fe80::1%eth0"), (0, 7), (0, None),
        (1, 0), (1, 65536), (1, -1), (1, True), (1, "15092"), (1, 1.0),
        (2, "spiffe://cluster.local"), (2, "https://cluster.local/a"), (2, None),
        (3, {"pod": 1}), (3, {"a b": "c"}), (3, {"__address__": "10.0.0.8:1"}), (3, {"__scheme__": "https"}),
        (3, {"__metrics_path__": "/x"}), (3, {"__meshscrape_spiffe_id": ID}), (3, {"pod": "\ud800"}), (3, []),
        (4, "/a?b"), (4, "/../config_dump"), (4, "a"), (4, None),
        (5, 1), (5, None), (6, 0), (6, None),
    ],
)  # fmt: skip
def test_refuses_a_row_with_another_field(place: int, value: Any) -> None:
    """The error names where the row came from."""
    row = [*ROW]
    row[place] = value
    with pytest.raises(InputError) as caught:
        parse_target_row(row, WHERE)
    assert caught.value.where == WHERE


@pytest.mark.parametrize("row", [[], ROW[:6], [*ROW, 1], {}, None, "row"])
def test_refuses_a_row_of_another_shape(row: Any) -> None:
    """A row has seven fields."""
    with pytest.raises(InputError, match="not a target"):
        parse_target_row(row, WHERE)
