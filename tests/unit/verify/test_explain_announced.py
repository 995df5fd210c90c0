"""Which target of a scrape proxy's HTTP SD is meant, and whose credentials are for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshscrape.errors import InputError
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.verify.explain.announced import (
    AnnouncedIndex,
    Discovered,
    announced_targets,
    parse_http_sd,
    parse_index,
)
from meshscrape.verify.explain.scraper import ScraperFiles
from meshscrape.verify.explain.standalone import files_for
from support.ca import TestCa

WEB = "spiffe://cluster.local/ns/shop/sa/web"
INDEX = {
    "jobs": ["a", "mesh-b", "no url"],
    "problems": {"/etc/b.json": "/etc/b.json: this is not JSON"},
    "contested": [],
    "current": True,
}


def group(address: str, path: str = "/stats/prometheus", **labels: str) -> dict[str, Any]:
    own = {"__scheme__": "http", "__metrics_path__": path, "__meta_meshscrape_spiffe_id": WEB}
    return {"targets": [address], "labels": own | labels}


def discovered(*groups: dict[str, Any], job: str = "a") -> Discovered:
    return Discovered("127.0.0.1:15095", parse_http_sd(job, json.dumps(groups).encode()))


def test_an_address_a_path_and_a_name_are_understood() -> None:
    """An address means every path there, a URL one of them, a name every target with these labels."""
    own = {"namespace": "shop", "workload": "web"}
    known = discovered(group("10.0.0.7:15092", **own), group("10.0.0.7:15092", "/own", **own))
    assert [each.path for each in announced_targets(known, "10.0.0.7:15092")] == ["/stats/prometheus", "/own"]
    (one,) = announced_targets(known, "http://10.0.0.7:15092/own")
    assert (one.url, one.expected, one.title) == ("http://10.0.0.7:15092/own", WEB, "shop/web")
    for name in ("web", "shop/web"):
        assert len(announced_targets(known, name)) == 2
    with pytest.raises(InputError, match="shop/web"):
        announced_targets(known, "other/web")


def test_target_of_two_jobs_is_explained_once() -> None:
    """It is explained once."""
    both = (
        discovered(group("[fd00::8]:15092")).targets + discovered(group("[fd00::8]:15092"), job="b").targets
    )
    (one,) = announced_targets(Discovered("127.0.0.1:15095", both), "[fd00::8]:15092")
    assert one.authority == "[fd00::8]:15092"


@pytest.mark.parametrize("text", ["10.0.0.8:15092", "10.0.0.7:15093", "http://10.0.0.7:15092/other"])
def test_unannounced_address_has_a_fault_and_no_expected_identity(text: str) -> None:
    """Another address, port or path; whoever is there gets no connection."""
    (one,) = announced_targets(discovered(group("10.0.0.7:15092")), text)
    assert "does not announce it" in one.fault
    assert one.remedy
    assert one.expected == ""


@pytest.mark.parametrize(
    "answer",
    [
        b"{",
        b"7",
        b"[7]",
        b"[{}]",
        b'[{"targets": ["10.0.0.7:1"], "labels": {}}]',
        b'[{"targets": ["10.0.0.7:1"], "labels": {"__meta_meshscrape_spiffe_id": "x"}}]',
        b'[{"targets": ["name:1"], "labels": {"__meta_meshscrape_spiffe_id": "spiffe://a/b"}}]',
        b'[{"targets": [7], "labels": {"__meta_meshscrape_spiffe_id": "spiffe://a/b"}}]',
    ],
)
def test_answer_of_another_server_is_not_a_list_of_targets(answer: bytes) -> None:
    """Whatever answers at the address: one kind of error."""
    with pytest.raises(ValueError):
        parse_http_sd("a", answer)


def index(**changes: Any) -> AnnouncedIndex:
    return parse_index(json.dumps(INDEX | changes).encode())


def test_the_proxys_index_names_jobs_and_doubts() -> None:
    """Jobs that can be asked for, and why a source cannot be used."""
    assert index().jobs == ("a", "mesh-b")
    assert index().doubts == "the source /etc/b.json cannot be used: /etc/b.json: this is not JSON"
    assert "all targets of its sources" in index(current=False).doubts
    assert index(problems={}).doubts == ""


@pytest.mark.parametrize(
    "answer",
    [b"{", b"[]", b"7", b'{"jobs": []}', b'{"jobs": 7, "problems": {}, "contested": [], "current": true}',
     b'{"jobs": [], "problems": [], "contested": [], "current": true}', b"[" * 100_000],
)  # fmt: skip
def test_answer_of_another_server_is_not_an_index(answer: bytes) -> None:
    """Whatever answers at the address: one kind of error."""
    with pytest.raises(ValueError):
        parse_index(answer)


def test_a_contested_address_is_named_as_the_reason() -> None:
    """Two sources that expect different identities at one address: not merely "not announced"."""
    (one,) = announced_targets(
        Discovered("127.0.0.1:15095", doubts="other", contested=frozenset({"10.0.0.9:15092"})),
        "10.0.0.9:15092",
    )
    assert "different identities" in one.fault
    assert "same SPIFFE ID" in one.remedy


def test_credentials_are_chosen_by_trust_domain() -> None:
    """The named or the certificate's own; none for a third one; a lone unreadable one tells why."""
    own = TestCa().workload("istio-system", "prometheus")
    local = ScraperFiles("/local", own.chain_pem, own.key_pem, own.root_pem)
    west, broken = ScraperFiles("/west"), ScraperFiles("/broken", problem="missing")
    held = [("", local), ("west.example", west)]
    assert files_for(SpiffeId.parse(WEB), held) is local
    assert files_for(SpiffeId.parse("spiffe://west.example/a"), held) is west
    assert "for the trust domain east" in files_for(SpiffeId.parse("spiffe://east/a"), held).problem
    assert files_for(SpiffeId.parse(WEB), [("", broken)]) is broken
