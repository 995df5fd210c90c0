"""What must hold in every bootstrap, whatever the options: found by walking the rendered data."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meshscrape.envoy import bounds
from meshscrape.envoy.bootstrap import REVOCATION_BOUND, bootstrap, dynamic_files, envoy_arguments
from meshscrape.envoy.names import SCRAPERS_FILE
from meshscrape.envoy.options import SidecarOptions
from meshscrape.errors import InputError
from meshscrape.istio.allow_list import parse_scrapers
from support.options import BASE, VARIANTS, of_type, walk

every = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def _listeners(options: SidecarOptions) -> list[dict[str, Any]]:
    config: Any = bootstrap(options)
    found: list[dict[str, Any]] = config["static_resources"]["listeners"]
    return found


def _listener(options: SidecarOptions, name: str) -> dict[str, Any]:
    (found,) = [each for each in _listeners(options) if each["name"] == name]
    return found


def _clusters(options: SidecarOptions) -> dict[str, dict[str, Any]]:
    config: Any = bootstrap(options)
    return {each["name"]: each for each in config["static_resources"]["clusters"]}


def _routes(value: Any) -> list[dict[str, Any]]:
    return [route for host in walk(value) if "domains" in host for route in host["routes"]]


def _admin_clusters(options: SidecarOptions) -> set[str]:
    return {
        name for name, cluster in _clusters(options).items() if any("pipe" in each for each in walk(cluster))
    }


@every
def test_bootstrap_is_deterministic_json(options: SidecarOptions) -> None:
    """Rendering is a function of the options."""
    assert json.dumps(bootstrap(options)) == json.dumps(bootstrap(options))


@every
def test_the_admin_api_is_never_on_tcp(options: SidecarOptions) -> None:
    """The admin API is a Unix socket of mode 0600."""
    config: Any = bootstrap(options)
    assert config["admin"]["address"] == {"pipe": {"path": "admin.sock", "mode": 0o600}}


@every
def test_the_admin_api_is_reached_by_one_exact_path_only(options: SidecarOptions) -> None:
    """No listener has a prefix, pattern or any-method route to a cluster that leads to the admin API."""
    admin = _admin_clusters(options)
    assert admin
    for route in _routes(bootstrap(options)):
        if route.get("route", {}).get("cluster") not in admin:
            continue
        assert route["match"]["path"] == "/stats/prometheus"
        conditions = {
            each["name"]: each["string_match"]["safe_regex"]["regex"] for each in route["match"]["headers"]
        }
        assert conditions == {":method": "GET|HEAD", ":path": r"/stats/prometheus(\?(usedonly))?"}
        assert set(route["route"]) == {"cluster", "timeout"}


@every
def test_routes_have_explicit_timeouts(options: SidecarOptions) -> None:
    """Envoy's default of 15 seconds, which cuts a slow body, is nowhere in force."""
    for route in _routes(bootstrap(options)):
        assert "direct_response" in route or "timeout" in route["route"]


@every
def test_every_listener_is_exclusive_and_bounded(options: SidecarOptions) -> None:
    """No port is shared by SO_REUSEPORT; each has a buffer limit and a bound on connections."""
    config: Any = bootstrap(options)
    runtime = config["layered_runtime"]["layers"][0]["static_layer"]
    names = [each["name"] for each in _listeners(options)]
    assert len(set(names)) == len(names)
    for listener in _listeners(options):
        assert listener["enable_reuse_port"] is False
        assert listener["per_connection_buffer_limit_bytes"] <= 1 << 20
        assert runtime[f"envoy.resource_limits.listener.{listener['name']}.connection_limit"] > 0


@every
def test_the_process_is_bounded_by_the_sum_of_its_listeners(options: SidecarOptions) -> None:
    """A flood of one port cannot use up the connections of another."""
    config: Any = bootstrap(options)
    (monitor,) = of_type(config, "DownstreamConnectionsConfig")
    runtime = config["layered_runtime"]["layers"][0]["static_layer"].items()
    limits = [value for name, value in runtime if name.endswith("connection_limit")]
    assert monitor["max_active_downstream_connections"] == sum(limits)


@every
def test_every_connection_manager_normalises_and_limits(options: SidecarOptions) -> None:
    """Paths are normalised, escaped slashes refused, headers and times bounded, on every port."""
    managers = of_type(bootstrap(options), "HttpConnectionManager")
    assert len(managers) >= len(_listeners(options))
    for manager in managers:
        assert manager["normalize_path"] is True
        assert manager["merge_slashes"] is True
        assert manager["path_with_escaped_slashes_action"] == "REJECT_REQUEST"
        assert manager["use_remote_address"] is True
        assert manager["forward_client_cert_details"] in ("SANITIZE", "SANITIZE_SET")
        assert manager["request_headers_timeout"] != "0s"
        assert manager["stream_idle_timeout"] != "0s"
        assert manager["max_request_headers_kb"] <= 60
        assert manager["http2_protocol_options"]["max_concurrent_streams"] <= 128
        common = manager["common_http_protocol_options"]
        assert common["idle_timeout"] != "0s"
        assert common["max_headers_count"] <= 100
        assert common["headers_with_underscores_action"] == "DROP_HEADER"


@every
def test_metrics_ports_bound_what_traffic_may_take(options: SidecarOptions) -> None:
    """Requests, streams and connections of the proxy's own ports end by themselves, and are few."""
    for listener in _listeners(options):
        if "metrics" not in listener["name"] and "health" not in listener["name"]:
            continue
        (manager,) = of_type(listener, "HttpConnectionManager")
        assert manager["request_timeout"] != "0s"
        assert {"max_connection_duration", "max_stream_duration"} <= set(
            manager["common_http_protocol_options"]
        )
        assert manager["upgrade_configs"] == []
        assert manager["server_header_transformation"] == "OVERWRITE"


@every
def test_tls_always_means_mutual_tls_without_resumption(options: SidecarOptions) -> None:
    """Every server side of TLS asks for a certificate, from TLS 1.2 on, at each connection anew."""
    config = bootstrap(options)
    for context in of_type(config, "DownstreamTlsContext"):
        assert context["require_client_certificate"] is True
        assert context["disable_stateless_session_resumption"] is True
        assert context["disable_stateful_session_resumption"] is True
        common = context["common_tls_context"]
        assert common["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_2"
        assert common["validation_context_sds_secret_config"]["sds_config"]["path_config_source"]
    chains = [chain for listener in _listeners(options) for chain in listener["filter_chains"]]
    for chain in chains:
        assert ("transport_socket" in chain) == ("transport_socket_connect_timeout" in chain)


@every
def test_secure_ports_authorise_before_anything_else(options: SidecarOptions) -> None:
    """The first filter of a secure port is the allow list, whose default refuses everybody."""
    secure = [each for each in _listeners(options) if each["name"].startswith("secure_")]
    assert bool(secure) == bool(options.secure_stats_port)
    for listener in secure:
        (manager,) = of_type(listener, "HttpConnectionManager")
        discovery = manager["http_filters"][0]["config_discovery"]
        assert discovery["default_config"]["matcher"] == {
            "on_no_match": discovery["default_config"]["matcher"]["on_no_match"]
        }
        assert (
            discovery["default_config"]["matcher"]["on_no_match"]["action"]["typed_config"]["action"]
            == "DENY"
        )
        assert discovery["config_source"]["path_config_source"] == {
            "path": f"{options.files_dir}/{SCRAPERS_FILE}"
        }


@every
def test_every_port_has_a_cluster_with_breakers_of_its_own(options: SidecarOptions) -> None:
    """Nobody can use up the way to the agent or to the statistics for another port."""
    used: list[str] = []
    for listener in _listeners(options):
        names = {route["route"]["cluster"] for route in _routes(listener) if "route" in route}
        used += names
    assert len(set(used)) == len(used)
    assert set(used) == set(_clusters(options))
    for cluster in _clusters(options).values():
        (thresholds,) = cluster["circuit_breakers"]["thresholds"]
        assert all(thresholds[f"max_{each}"] > 0 for each in ("connections", "pending_requests", "requests"))


@every
def test_listeners_bind_the_workloads_addresses_only(options: SidecarOptions) -> None:
    """No wildcard address; secure and application ports on the pod's addresses alone."""
    for listener in _listeners(options):
        addresses = [each["socket_address"]["address"] for each in walk(listener) if "socket_address" in each]
        allowed = (
            set(options.everywhere) if listener["name"].startswith("metrics_") else set(options.pod_addresses)
        )
        assert set(addresses) <= allowed
        assert len(set(addresses)) == len(addresses)


@every
def test_watched_files_are_the_ones_that_are_written(options: SidecarOptions) -> None:
    """Every file that the bootstrap points to is in `dynamic_files`, and nothing more is."""
    sources = [
        each["path_config_source"]["path"]
        for each in walk(bootstrap(options))
        if "path_config_source" in each
    ]
    secure_off = not options.secure_stats_port
    written = {f"{options.files_dir}/{name}" for name in dynamic_files(options, ())}
    assert set(sources) <= written
    if not secure_off:
        assert f"{options.files_dir}/{SCRAPERS_FILE}" in sources


@every
def test_secrets_are_files_watched_from_inside(options: SidecarOptions) -> None:
    """No key is ever in the configuration; each secret watches the directory that one rename switches."""
    assert not any("inline_bytes" in each or "private_key" in each for each in walk(bootstrap(options)))
    secrets = of_type(dynamic_files(options, ()), "Secret")
    assert len(secrets) == 2 + (options.secrets.scrapers_bundle is not None)
    for secret in secrets:
        content = secret.get("tls_certificate") or secret["validation_context"]
        assert content["watched_directory"] == {"path": options.secrets.credentials_dir}
        for each in walk(content):
            assert each.get("filename", options.secrets.credentials_dir).startswith(
                options.secrets.credentials_dir
            )


def test_hardening_leaves_statistics_on_the_inside_alone() -> None:
    """METRICS_LOCALHOST_ACCESS_ONLY decides by bind address, for 15090 and 15020 together."""
    names = {each["name"]: each for each in _listeners(VARIANTS["hardened"])}
    assert "merged_metrics_15020" not in names
    assert names["metrics_15090"]["address"] == {
        "socket_address": {"address": "127.0.0.1", "port_value": 15090}
    }
    assert "additional_addresses" not in names["metrics_15090"]


def test_the_agent_keeps_its_own_port() -> None:
    """Where pod and inside address are one, Envoy leaves the merged port to the agent."""
    names = [each["name"] for each in _listeners(VARIANTS["pod is localhost"])]
    assert "merged_metrics_15020" not in names


def test_dual_stack_ports_are_one_listener_each() -> None:
    """The second family is an additional address on the same port, for secure ports too."""
    listener = _listener(VARIANTS["dual stack"], "secure_metrics_15091")
    assert listener["additional_addresses"] == [
        {"address": {"socket_address": {"address": "fd00::7", "port_value": 15091}}}
    ]


def test_scrapers_from_outside_are_trusted_on_the_secure_ports_alone() -> None:
    """The scrapers' bundle does not open the application's ports."""
    options = VARIANTS["scrapers from outside"]
    roots = {
        listener["name"]: context["common_tls_context"]["validation_context_sds_secret_config"]["name"]
        for listener in _listeners(options)
        for context in of_type(listener, "DownstreamTlsContext")
    }
    assert roots["secure_metrics_15091"] == roots["secure_merged_metrics_15092"] == "scrapers"
    assert roots["inbound_9080"] == roots["inbound_9081"] == "roots"


def test_a_gateway_forwards_no_application_port() -> None:
    """A router has routes, not an application behind it."""
    names = [each["name"] for each in _listeners(replace(VARIANTS["gateway"], inbound=BASE.inbound))]
    assert not any(name.startswith("inbound") for name in names)


def test_without_an_address_there_is_no_bootstrap() -> None:
    """A workload that does not know its address gets an error, not a wildcard."""
    with pytest.raises(InputError, match="INSTANCE_IP"):
        bootstrap(replace(BASE, pod_addresses=()))


def test_an_application_port_never_leads_to_itself() -> None:
    """Where pod and inside address are one, an application's port would be a loop."""
    with pytest.raises(InputError, match="MESHSCRAPE_INSIDE_ADDRESS"):
        bootstrap(replace(BASE, inside_address="10.0.0.7"))


def test_the_revocation_bound_is_what_the_times_add_up_to() -> None:
    """Connection, drain and the last request: nothing is served later."""
    (manager,) = of_type(_listener(BASE, "secure_metrics_15091"), "HttpConnectionManager")
    common = manager["common_http_protocol_options"]
    times = [common["max_connection_duration"], manager["drain_timeout"], common["max_stream_duration"]]
    assert sum(float(each.removesuffix("s")) for each in times) == REVOCATION_BOUND == bounds.REVOCATION_BOUND


def test_the_allow_list_is_the_only_file_that_depends_on_it() -> None:
    """Changing who may scrape replaces one file."""
    before = dynamic_files(BASE, ())
    after = dynamic_files(BASE, parse_scrapers("dns:prometheus.example.com"))
    assert {name for name in before if before[name] != after[name]} == {SCRAPERS_FILE}


def test_a_percent_sign_in_the_nodes_name_is_no_command() -> None:
    """Text of the options is never read as an operator of Envoy's formatter."""
    config = bootstrap(replace(BASE, node_id="x%REQ(authorization)%"))
    texts = {
        each["inline_string"] for each in walk(config) if "403 refused" in str(each.get("inline_string"))
    }
    assert len(texts) == 2
    assert all("x%%REQ(authorization)%%" in text for text in texts)


def test_the_command_line_turns_hot_restart_off() -> None:
    """No abstract socket and no shared memory; unknown fields in watched files are refused."""
    arguments = envoy_arguments("/state/bootstrap.json")
    assert arguments[:2] == ["--config-path", "/state/bootstrap.json"]
    assert {"--disable-hot-restart", "--reject-unknown-dynamic-fields"} <= set(arguments)
