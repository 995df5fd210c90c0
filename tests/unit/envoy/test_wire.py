"""Protobuf's binary form of route configurations. A real Envoy reads it in the integration tests."""

from __future__ import annotations

import pytest

from meshscrape.envoy.resources import wire


def test_fields_are_numbered_and_prefixed_with_their_length() -> None:
    """A route of a path to a cluster with a time limit, byte by byte."""
    route = {"match": {"path": "/m"}, "route": {"cluster": "c", "timeout": "1.5s"}}
    assert wire.encode("Route", route).hex() == (
        "0a04" "12022f6d"  # match: path
        "120d" "0a0163" "4208" "0801" "1080cab5ee01"  # route: cluster, timeout of 1 s and 500,000,000 ns
    )  # fmt: skip


def test_long_texts_have_a_length_of_several_bytes() -> None:
    """Lengths from 128 on are split into groups of seven bits."""
    found = wire.encode("RouteMatch", {"prefix": "x" * 300})
    assert found[:3].hex() == "0aac02"
    assert len(found) == 303


def test_a_field_without_a_number_is_refused() -> None:
    """A field that is left out in silence would be a route with another meaning."""
    with pytest.raises(KeyError):
        wire.encode("Route", {"match": {"path": "/m", "headers": ["x"]}})


def test_a_host_joins_its_domains_after_its_other_fields() -> None:
    """The order of fields has no meaning in protobuf, so domains can be kept in binary form."""
    host = wire.virtual_host({"name": "h"}, [wire.domain("a:1"), wire.domain("b:1")])
    assert host.hex() == "120d0a01681203613a311203623a31"
