"""Single Envoy resources."""

from __future__ import annotations

import re
from typing import Any

import pytest

from meshscrape.envoy.resources import routes
from meshscrape.envoy.resources.http import METRICS_TYPES, compressors, reply
from meshscrape.envoy.resources.listeners import filter_chain, listener
from meshscrape.envoy.resources.server import admin
from meshscrape.envoy.resources.values import pipe_address, seconds, typed
from support.options import walk


@pytest.mark.parametrize(
    ("amount", "spelled"), [(0, "0s"), (60, "60s"), (0.5, "0.5s"), (3600.0, "3600s"), (10**7, "10000000s")]
)
def test_durations_are_spelled_for_protobuf(amount: float, spelled: str) -> None:
    """A duration is a decimal number of seconds, never in exponents."""
    assert seconds(amount) == spelled


def test_typed_messages_carry_their_url() -> None:
    """The type comes first, the fields beside it."""
    assert typed("a.b.C", d=1) == {"@type": "type.googleapis.com/a.b.C", "d": 1}


def test_a_socket_that_envoy_only_connects_to_has_no_mode() -> None:
    """A mode belongs to a socket that is created."""
    assert pipe_address("a.sock") == {"pipe": {"path": "a.sock"}}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/m", True),
        ("/m?a", True),
        ("/m?", False),
        ("/m?a&b", False),
        ("/m?b", False),
        ("/mm", False),
        ("/m\n", False),
        ("x/m", False),
    ],
)
def test_an_exact_route_bounds_the_query(target: str, expected: bool) -> None:
    """Only the listed queries are let through, as a whole."""
    route: Any = routes.get_route("/m", "c", 5, ("a",))
    (condition,) = [each for each in route["match"]["headers"] if each["name"] == ":path"]
    assert bool(re.fullmatch(condition["string_match"]["safe_regex"]["regex"], target)) == expected


@pytest.mark.parametrize("method", ["POST", "get", "GETX", "XHEAD", "", "GET|HEAD"])
def test_an_exact_route_takes_two_methods(method: str) -> None:
    """Methods are compared as a whole, in upper case."""
    route: Any = routes.get_route("/m", "c", 5)
    (condition,) = [each for each in route["match"]["headers"] if each["name"] == ":method"]
    assert not re.fullmatch(condition["string_match"]["safe_regex"]["regex"], method)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/ready", True),
        ("/stats?format=json&filter=x", True),
        ("/quitquitquit", False),
        ("/ready/../quitquitquit", False),
        ("/statsx", False),
        ("/runtime_modify?x=/ready", False),
    ],
)
def test_the_admin_api_answers_listed_paths(path: str, expected: bool) -> None:
    """The list is compared as a whole, the query aside."""
    document: Any = admin("admin.sock")
    (pattern,) = document["allow_paths"]
    assert bool(re.fullmatch(pattern["safe_regex"]["regex"], path)) == expected


def test_compressors_leave_the_header_to_each_other() -> None:
    """With `remove_accept_encoding_header` the second compressor would never act."""
    assert not any("remove_accept_encoding_header" in each for each in walk(list(compressors())))
    types = [
        each["content_type_matcher"] for each in walk(list(compressors())) if "content_type_matcher" in each
    ]
    assert types == [[{"exact": kind} for kind in METRICS_TYPES]] * 2


def test_replies_are_plain_text() -> None:
    """A reason with a client's own words in it is never HTML."""
    answer: Any = reply(403, "%DOWNSTREAM_PEER_URI_SAN%")
    assert answer["body_format_override"]["content_type"] == "text/plain; charset=utf-8"
    assert answer["headers_to_add"] == [{"header": {"key": "x-content-type-options", "value": "nosniff"}}]


def test_tls_has_a_time_limit_for_the_handshake() -> None:
    """A chain with a transport socket bounds the time until it is usable; one without has none to bound."""
    assert filter_chain({}, transport_socket={})["transport_socket_connect_timeout"] == "5s"
    assert "transport_socket_connect_timeout" not in filter_chain({})


def test_looking_for_tls_has_a_time_limit() -> None:
    """A client that says nothing is not waited for."""
    assert listener("a", ["127.0.0.1"], 1, [], inspect_tls=True)["listener_filters_timeout"] == "5s"
