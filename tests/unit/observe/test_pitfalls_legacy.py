"""Pitfalls of the older way, Istio's recipe for proxies before 1.31."""

from __future__ import annotations

from typing import Any

import pytest

from support.examples import legacy
from support.objects import (
    SECURE,
    Object,
    classic_gateway,
    config_map,
    control_plane,
    deployment,
    istio,
    legacy_gateway,
    legacy_sidecar,
    namespace,
    observed,
    only,
    peer_authentication,
    pitfalls,
    proxy_config,
    service,
)
from support.scraping_objects import prometheus, secure_job

INJECTED = namespace("default", istio_injection="enabled")
STRICT = peer_authentication("", "default", name="metrics", app="httpbin", p15091="STRICT")


def mesh(*parts: Any, version: str = "1.29.2", **plane: Any) -> list[Any]:
    return [*control_plane(version, **plane), INJECTED, deployment(), service(), *parts]


def test_the_recipe_done_right() -> None:
    """With a selector, STRICT on the port, the application's ports and a policy nothing is left to say."""
    found = [each for each in observed(legacy()).pitfalls if each.ref and each.ref.namespace == "default"]
    assert found == []


@pytest.mark.parametrize("mode", ["PERMISSIVE", "DISABLE"])
def test_legacy_not_strict(mode: str) -> None:
    """Where the port is not STRICT Prometheus is refused, and everybody else served in plain text."""
    sidecar = legacy_sidecar(app="httpbin")
    pitfall = only(pitfalls("legacy-not-strict", mesh(sidecar, peer_authentication(mode))))
    assert mode in pitfall.text and "portLevelMtls" in pitfall.remedy
    assert pitfalls("legacy-not-strict", mesh(sidecar, STRICT)) == []
    assert pitfalls("legacy-not-strict", mesh(sidecar, peer_authentication("STRICT"))) == []


def test_legacy_without_selector() -> None:
    """A Sidecar for a whole namespace replaces everybody's listeners; one without metrics is not meant."""
    assert only(pitfalls("legacy-without-selector", mesh(legacy_sidecar(), STRICT))).ref.kind == "Sidecar"  # type: ignore[union-attr]
    assert pitfalls("legacy-without-selector", mesh(legacy_sidecar(app="httpbin"), STRICT)) == []
    other = legacy_sidecar(target=8080)
    assert pitfalls("legacy-without-selector", mesh(other)) == []


def test_legacy_hides_ports() -> None:
    """An ingress replaces all inbound listeners: the application's ports must be in it too."""
    code = "legacy-hides-ports"
    assert "8080" in only(pitfalls(code, mesh(legacy_sidecar(app="httpbin"), STRICT))).text
    assert pitfalls(code, mesh(legacy_sidecar(app="httpbin", ports=[8080]), STRICT)) == []
    merging = {"PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE": "true"}
    assert pitfalls(code, mesh(legacy_sidecar(app="httpbin"), STRICT, variables=merging)) == []


def test_gateway_admin_exported() -> None:
    """A ServiceEntry for one's own loopback must not be visible in the whole mesh."""
    assert "exportTo" in only(pitfalls("gateway-admin-exported", legacy_gateway())).remedy
    assert pitfalls("gateway-admin-exported", legacy_gateway(export_to=["."])) == []
    assert only(pitfalls("gateway-admin-exported", legacy_gateway(export_to=["*"])))


def test_sidecars_conflict() -> None:
    """Two Sidecars that select one workload are undefined; the namespace's beside one that does is not."""
    first, second = legacy_sidecar(app="httpbin"), legacy_sidecar(app="httpbin")
    second["metadata"]["name"] = "other"
    assert "other" in only(pitfalls("sidecars-conflict", mesh(first, second))).text
    second["spec"].pop("workloadSelector")
    assert pitfalls("sidecars-conflict", mesh(first, second)) == []


def test_legacy_same_port() -> None:
    """The native listener and the Sidecar's on one port: only one of them answers."""
    app = deployment(annotations=proxy_config({"ENVOY_SECURE_METRICS_PORT": "15091"}))
    parts: list[Any] = [*control_plane(), INJECTED, legacy_sidecar(app="httpbin"), STRICT]
    assert only(pitfalls("legacy-same-port", *parts, app)).severity == "error"
    assert pitfalls("legacy-same-port", *parts, deployment(annotations=proxy_config(SECURE))) == []


def test_legacy_same_port_as_an_override() -> None:
    """A bootstrap override on the Sidecar's port collides as well."""
    address = {"socket_address": {"address": "0.0.0.0", "port_value": 15091}}
    text = f'{{"static_resources": {{"listeners": [{{"name": "own", "address": {address}}}]}}}}'.replace(
        "'", '"'
    )
    boot = config_map("boot", {"custom_bootstrap.json": text}, namespace="default")
    app = deployment(annotations={"sidecar.istio.io/bootstrapOverride": "boot"})
    parts: list[Any] = [*control_plane("1.29.2"), INJECTED, legacy_sidecar(app="httpbin"), STRICT]
    assert only(pitfalls("legacy-same-port", *parts, app, boot))


def policy(action: str, port: str) -> Object:
    return {
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "httpbin"}}, "action": action,
            "rules": [{"to": [{"operation": {"ports": [port]}}]}],
        },
    }  # fmt: skip


def test_legacy_any_identity() -> None:
    """Without an AuthorizationPolicy about the port every identity of the mesh may scrape."""
    parts = mesh(legacy_sidecar(app="httpbin"), STRICT)
    assert only(pitfalls("legacy-any-identity", parts)).severity == "info"
    assert pitfalls("legacy-any-identity", parts, policy("DENY", "15091")) == []
    assert pitfalls("legacy-any-identity", parts, policy("ALLOW", "8080")) == []
    assert only(pitfalls("legacy-any-identity", parts, policy("DENY", "8080")))


# Who gets in: AuthorizationPolicies


MESH_PORT = "15091"


def at_a_gateway() -> Object:
    """A policy of a waypoint or Gateway: it is not about the pods of the namespace."""
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}
    return istio(
        "security", "AuthorizationPolicy", "g", "default", {"action": "ALLOW", "targetRefs": [target]}
    )


def authorization(
    action: str, *rules: Any, name: str = "p", space: str = "default", app: str = "httpbin"
) -> Object:
    spec: Object = {"action": action, "rules": list(rules)}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    return istio("security", "AuthorizationPolicy", name, space, spec)


def rule(*principals: str, **operation: Any) -> Object:
    found: Object = {"to": [{"operation": {"ports": [MESH_PORT], **operation}}]}
    if principals:
        found["from"] = [{"source": {"principals": list(principals)}}]
    return found


def test_legacy_agent_exposed_in_plain_text() -> None:
    """Under PERMISSIVE anybody ends the agent with POST /quitquitquit: no certificate is asked for."""
    found = only(pitfalls("legacy-agent-exposed", mesh(legacy_sidecar(app="httpbin"))))
    assert found.severity == "error" and "in plain text" in found.text and "STRICT" in found.remedy


def test_legacy_agent_exposed_to_the_mesh() -> None:
    """Under STRICT every identity of the mesh does, until a policy refuses it."""
    sidecar = legacy_sidecar(app="httpbin")
    assert "every workload of the mesh" in only(pitfalls("legacy-agent-exposed", mesh(sidecar, STRICT))).text
    others = {"from": [{"source": {"notPrincipals": ["cluster.local/ns/istio-system/sa/prometheus"]}}]}
    deny = authorization("DENY", {**rule(), **others})
    assert pitfalls("legacy-agent-exposed", mesh(sidecar, STRICT, deny)) == []
    reading = authorization("DENY", rule(notPaths=["/stats/prometheus"]), rule(notMethods=["GET"]))
    assert pitfalls("legacy-agent-exposed", mesh(sidecar, STRICT, reading)) == []


def test_a_port_of_envoys_statistics_does_not_expose_the_agent() -> None:
    """15090 is Envoy's own listener; the agent is behind 15020."""
    statistics = legacy_sidecar(app="httpbin", target=15090)
    assert pitfalls("legacy-agent-exposed", mesh(statistics)) == []


def scraped(*policies: Object) -> list[Any]:
    app = deployment(annotations={"prometheus.istio.io/secure-port": MESH_PORT})
    parts = [*control_plane("1.29.2"), INJECTED, app, service(), legacy_sidecar(app="httpbin"), STRICT]
    return [*parts, *prometheus(secure_job()), *policies]


SCRAPER = "cluster.local/ns/istio-system/sa/prometheus"


@pytest.mark.parametrize(
    ("policies", "denied"),
    [
        ([], False),
        ([authorization("ALLOW", rule("cluster.local/ns/edge/sa/front"))], True),
        ([authorization("ALLOW", rule("cluster.local/ns/edge/sa/front", ports=["8080"]))], True),
        ([authorization("ALLOW", rule(SCRAPER))], False),
        ([authorization("ALLOW", rule("*/sa/prometheus", paths=["/stats/*"], methods=["GET"]))], False),
        ([authorization("ALLOW", rule(SCRAPER, paths=["/metrics"]))], True),
        ([authorization("ALLOW", name="nothing", space="istio-system", app="")], True),
        ([authorization("ALLOW", {}), authorization("DENY", rule(SCRAPER), name="deny")], True),
        ([authorization("ALLOW", rule("front"), app="other")], False),
        ([at_a_gateway()], False),
        ([authorization("ALLOW", {"from": [{"source": {"namespaces": ["istio-system"]}}]})], False),
    ],
)
def test_legacy_scraper_denied(policies: list[Object], denied: bool) -> None:
    """With any ALLOW policy, everything that none of them lists is refused; a DENY refuses in any case."""
    found = pitfalls("legacy-scraper-denied", scraped(*policies))
    assert [each.severity for each in found] == (["error"] if denied else [])


def test_a_gateway_that_routes_the_metrics_alone_does_not_expose_the_agent() -> None:
    """Istio's recipe routes one path; a route without a condition leads every request to the agent."""
    recipe = legacy_gateway()
    gateway = classic_gateway("1.29.2")
    assert pitfalls("legacy-agent-exposed", control_plane("1.29.2"), gateway, recipe) == []
    routes = only(each for each in recipe if each["kind"] == "VirtualService")["spec"]["http"]
    for conditions in (None, [{"uri": {"prefix": "/"}}], [{"headers": {"x": {"exact": "y"}}}]):
        routes[0]["match"] = conditions
        found = pitfalls("legacy-agent-exposed", control_plane("1.29.2"), gateway, recipe)
        assert [each.severity for each in found] == ["error"]
