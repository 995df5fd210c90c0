"""The scrape proxy's Envoy configuration, as data."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meshscrape.envoy import refusals, scrape_proxy
from meshscrape.envoy.shared_targets import SharedTargets
from meshscrape.errors import InputError
from meshscrape.istio.layouts import ISTIO
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId

OPTIONS = scrape_proxy.ScrapeProxyOptions("n", "127.0.0.1", 15094, "admin.sock", "/run/p", "/run/p/pipe")
DIRECTORIES = {"west.example": ("/west", ISTIO), "east.example": ("/east", ISTIO)}


def _target(address: str, trust_domain: str = "east.example", path: str = "/metrics") -> Target:
    return Target(address, 15092, SpiffeId(trust_domain, "/ns/a/sa/b"), {}, path)


def _clusters(*targets: Target) -> dict[str, Any]:
    identities = {target.spiffe_id for target in targets}
    resource: Any = scrape_proxy.clusters_resource(identities, DIRECTORIES, "/run/p", "7")
    return {each["name"]: each for each in resource["resources"]}


def test_connections_of_one_listener_leave_room_for_the_other() -> None:
    """Machines that reach the port for other proxies cannot use up what Prometheus needs."""
    shared = SharedTargets("10.0.0.9", 15096, (SpiffeId("t", "/ns/a/sa/b"),), ("/x",), "/run/p/sock")
    made = scrape_proxy.bootstrap(replace(OPTIONS, shared=shared))
    own: dict[str, int] = made["layered_runtime"]["layers"][0]["static_layer"]
    bounds = [value for key, value in own.items() if key.endswith("connection_limit")]
    (monitor,) = made["overload_manager"]["resource_monitors"]
    assert len(bounds) == 2
    assert monitor["typed_config"]["max_active_downstream_connections"] >= sum(bounds)


def test_targets_of_one_identity_share_a_cluster() -> None:
    """10,000 targets of 500 identities are 500 clusters, not 10,000."""
    assert list(_clusters(_target("10.0.0.1"), _target("10.0.0.2"))) == ["spiffe://east.example/ns/a/sa/b"]


def test_a_cluster_checks_exactly_one_id_with_its_trust_domains_roots() -> None:
    """The URI SAN exactly; certificate and roots of the directory of that trust domain."""
    (cluster,) = _clusters(_target("10.0.0.1", "west.example")).values()
    context = cluster["transport_socket"]["typed_config"]["common_tls_context"]
    combined = context["combined_validation_context"]
    assert combined["default_validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "URI", "matcher": {"exact": "spiffe://west.example/ns/a/sa/b"}}
    ]
    files = scrape_proxy.secret_files(DIRECTORIES)
    roots = combined["validation_context_sds_secret_config"]
    for secret in (roots, *context["tls_certificate_sds_secret_configs"]):
        name = secret["sds_config"]["path_config_source"]["path"].removeprefix("/run/p/")
        assert '"/west/' in json.dumps(files[name])


def test_a_cluster_accepts_the_same_path_below_an_alias_of_its_trust_domain() -> None:
    """While a trust domain is renamed; an alias of another trust domain adds nothing."""
    identity = SpiffeId("west.example", "/ns/a/sa/b")
    aliases = {"west.example": ("old.example",), "east.example": ("other.example",)}
    resource: Any = scrape_proxy.clusters_resource([identity], DIRECTORIES, "/run/p", "7", 0, aliases)
    context = resource["resources"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    expected = context["combined_validation_context"]["default_validation_context"]
    found = [each["matcher"]["exact"] for each in expected["match_typed_subject_alt_names"]]
    assert found == ["spiffe://west.example/ns/a/sa/b", "spiffe://old.example/ns/a/sa/b"]


def test_a_trust_domain_without_credentials_is_refused() -> None:
    """Never another mesh's roots instead."""
    with pytest.raises(InputError, match="north"):
        _clusters(_target("10.0.0.1", "north.example"))


def test_a_host_has_exact_addresses_and_paths_and_all_else_is_unknown() -> None:
    """No wildcard anywhere but in the host that leads nowhere."""
    targets = (_target("10.0.0.1"), _target("10.0.0.1", path="/stats/prometheus"))
    ((authority, expected),) = scrape_proxy.by_authority(targets).items()
    table: Any = scrape_proxy.routes_table([scrape_proxy.host_of(expected, [authority])])
    host, unknown = table["virtual_hosts"]
    assert host["domains"] == ["10.0.0.1:15092"]
    assert [route["match"] for route in host["routes"]] == [
        {"path": "/metrics"},
        {"path": "/stats/prometheus"},
    ]
    assert unknown["name"] == "unknown"
    assert [list(route) for route in unknown["routes"]] == [["name", "match", "direct_response"]]


def test_two_identities_at_one_address_are_refused() -> None:
    """Also at different paths: a connection has one identity."""
    with pytest.raises(InputError, match=r"10\.0\.0\.1:15092"):
        scrape_proxy.by_authority([_target("10.0.0.1"), _target("10.0.0.1", "west.example", "/other")])


def test_no_secret_is_in_the_bootstrap() -> None:
    """The token is in a file of its own; without that file nobody is let in."""
    bootstrap: Any = scrape_proxy.bootstrap(OPTIONS)
    text = json.dumps(bootstrap)
    assert "Bearer" not in text
    (listener,) = bootstrap["static_resources"]["listeners"]
    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    rules = filters[0]["config_discovery"]["default_config"]["matcher"]
    assert rules["on_no_match"]["action"]["typed_config"]["action"] == "DENY"
    assert "Bearer tok" in json.dumps(scrape_proxy.token_resource(["tok"]))


def test_without_tokens_every_client_is_refused() -> None:
    """An empty list of tokens is a policy that matches nothing."""
    resource: Any = scrape_proxy.token_resource([])
    rules = resource["resources"][0]["typed_config"]["rules"]
    assert rules == {"action": "ALLOW", "policies": {}}


def test_reasons_are_distinct_and_say_what_to_do() -> None:
    """One entry per reason, each with a meaning, a remedy, and a status where Envoy answers."""
    assert len(set(refusals.REASONS)) == len(refusals.CATALOGUE)
    for each in refusals.CATALOGUE:
        assert each.meaning and each.remedy
        assert bool(each.when) == (each.status >= 400)
        assert refusals.refusal_of(each.reason) is each
    assert refusals.refusal_of("fine weather") is None


@pytest.mark.parametrize(
    ("status", "flags", "header", "connected", "reason"),
    [
        (200, "-", "", True, ""),
        (503, "UF,URX", "wrong-identity", False, "wrong-identity"),
        (200, "UC", "", True, "cut-off"),
        (0, "DC", "", True, "scraper-gave-up"),
        (0, "DC", "", False, "unreachable"),
        (403, "-", "", True, "denied-by-target"),
        (500, "-", "", True, ""),
        (200, "-", "made up by a target", True, ""),
    ],
)
def test_a_line_of_the_log_has_one_reason(
    status: int, flags: str, header: str, connected: bool, reason: str
) -> None:
    """What Envoy answered counts first, then how the exchange ended; unknown words count for nothing."""
    assert refusals.classify(status, flags, header, connected=connected) == reason
