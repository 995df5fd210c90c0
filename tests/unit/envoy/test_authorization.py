"""The allow list as an RBAC matcher."""

from __future__ import annotations

import re
from typing import Any

import pytest

from meshscrape.envoy.resources.authorization import scrapers_filter, scrapers_resource, watched_filter
from meshscrape.istio.allow_list import parse_scrapers
from support.options import of_type, walk


def _matchers(text: str) -> list[dict[str, Any]]:
    config: Any = scrapers_filter(parse_scrapers(text))
    matchers: list[dict[str, Any]] = config["matcher"]["matcher_list"]["matchers"]
    return matchers


def test_every_client_is_refused_by_default() -> None:
    """What matches nothing is denied, and an empty list has nothing to match."""
    config: Any = scrapers_filter(())
    assert "matcher_list" not in config["matcher"]
    (action,) = of_type(config, "Action")
    assert action["action"] == "DENY"
    assert "rules" not in config


def test_only_listed_entries_allow() -> None:
    """There is one ALLOW for each entry and one DENY for the rest."""
    config = scrapers_filter(parse_scrapers("spiffe:spiffe://a/ns/b/sa/c,dns:d.example"))
    assert sorted(each["action"] for each in of_type(config, "Action")) == ["ALLOW", "ALLOW", "DENY"]


def test_an_id_is_compared_exactly() -> None:
    """A SPIFFE ID is one exact string over the URI SANs."""
    (matcher,) = _matchers("spiffe:spiffe://a/ns/b/sa/c")
    predicate = matcher["predicate"]["single_predicate"]
    assert predicate["input"]["typed_config"]["@type"].endswith(".UriSanInput")
    assert predicate["value_match"] == {"exact": "spiffe://a/ns/b/sa/c"}


def test_a_dns_name_excludes_workloads() -> None:
    """A DNS entry wants exactly that DNS SAN and no URI SAN."""
    (matcher,) = _matchers("dns:d.example")
    dns, no_uri = matcher["predicate"]["and_matcher"]["predicate"]
    assert dns["single_predicate"]["value_match"] == {"exact": "d.example"}
    assert no_uri["not_matcher"]["single_predicate"]["input"]["typed_config"]["@type"].endswith(
        ".UriSanInput"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("spiffe://a.b/ns/c/sa/d", True),
        ("spiffe://a.b/x", True),
        ("spiffe://aXb/ns/c/sa/d", False),
        ("spiffe://a.b.evil/ns/c/sa/d", False),
        ("spiffe://evil/a.b/ns/c/sa/d", False),
        ("spiffe://a.b/ns/c/sa/d,spiffe://a.b/ns/c/sa/e", False),
        ("spiffe://a.b/ns/c,spiffe://evil/x", False),
        ("spiffe://a.b/", False),
        ("spiffe://a.b", False),
        ("spiffe://a.b//x", False),
        ("spiffe://a.b/x\n", False),
    ],
)
def test_a_trust_domain_is_anchored(value: str, expected: bool) -> None:
    """The pattern of a whole trust domain matches one ID of that trust domain and no pair of SANs."""
    (matcher,) = _matchers("spiffe:spiffe://a.b/*")
    expression = matcher["predicate"]["single_predicate"]["value_match"]["safe_regex"]["regex"]
    assert bool(re.fullmatch(expression, value)) == expected


def test_the_filter_is_found_under_its_name() -> None:
    """The discovered resource bears the name and the type that the listener waits for."""
    response: Any = scrapers_resource("scrapers", ())
    watched: Any = watched_filter("scrapers", "/f/list.json")
    (resource,) = response["resources"]
    assert resource["name"] == watched["name"]
    assert watched["config_discovery"]["type_urls"] == [resource["typed_config"]["@type"]]


def test_every_client_is_refused_until_the_file_is_read() -> None:
    """The default of the watched filter is the empty list."""
    watched: Any = watched_filter("scrapers", "/f/list.json")
    assert watched["config_discovery"]["default_config"] == scrapers_filter(())
    assert not any(each.get("action") == "ALLOW" for each in walk(watched))
