"""The status document as verification reads it."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.errors import InputError
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.verify.mesh_status import parse_mesh
from support.status import sidecar, status, workload


def test_ports_that_are_off_are_none() -> None:
    """A port that is absent or 0 is not planned for."""
    ports = {"secure": {"merged": 15092}, "plaintext": {"envoy": 0}, "application": []}
    only = parse_mesh(status(sidecar(ports=ports))).workloads[0]
    assert (only.secure_stats, only.secure_merged, only.stats, only.merged) == (None, 15092, None, None)


def test_allow_list_decides_who_may_scrape() -> None:
    """Exact IDs and whole trust domains allow; DNS entries allow no workload."""
    prometheus = SpiffeId.parse("spiffe://cluster.local/ns/istio-system/sa/prometheus")
    other = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/other")
    exact = parse_mesh(status(sidecar())).workloads[0]
    everyone = parse_mesh(status(sidecar(scrapers=["spiffe:spiffe://cluster.local/*"]))).workloads[0]
    named = parse_mesh(status(sidecar(scrapers=["dns:prometheus.example"]))).workloads[0]
    assert (exact.allows(prometheus), exact.allows(other)) == (True, False)
    assert everyone.allows(other)
    assert not named.allows(prometheus)


def test_a_mesh_without_prometheus_has_no_url() -> None:
    """`prometheus: null` is a mesh without one, not an error."""
    assert parse_mesh(status(prometheus=None)).prometheus_url == ""


def test_unknown_fields_are_ignored() -> None:
    """A newer writer may add fields."""
    assert parse_mesh(status(sidecar(color="blue"), weather="fine")).workloads[0].name == "productpage"


@pytest.mark.parametrize(
    "document",
    [
        {},
        status(apiVersion="meshscrape.io/v2"),
        status(kind="VerifyReport"),
        status(workloads={}),
        status(workloads=["x"]),
        status(ca=None),
        status(sidecar(name=None)),
        status(sidecar(spiffeId="https://cluster.local/x")),
        status(sidecar(scrapers=["prometheus"])),
        status(sidecar(ports={"secure": {"envoy": "15091"}})),
        status(sidecar(ports={"secure": {"envoy": 70000}})),
        status(sidecar(ports={"secure": {"envoy": True}})),
        status(sidecar(ports={"application": [{"name": "http"}]})),
    ],
)
def test_another_document_is_one_clear_error(document: dict[str, Any]) -> None:
    """What is no status of this version is refused before anything is visited."""
    with pytest.raises(InputError):
        parse_mesh(document)


def test_an_unknown_workload_names_the_known_ones() -> None:
    """The error of a misspelled workload shows how they are spelled."""
    mesh = parse_mesh(status(workload("default", "httpbin")))
    with pytest.raises(InputError, match="default/httpbin"):
        mesh.workload("httpbin")
