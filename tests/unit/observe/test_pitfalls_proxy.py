"""Pitfalls in the settings of single proxies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshscrape.observe.injection_template import InjectionTemplate
from meshscrape.observe.model import Pitfall
from support.examples import CLUSTERS, secured
from support.objects import (
    CONFIG,
    LOCALHOST_ONLY,
    SECURE,
    Object,
    classic_gateway,
    config_map,
    control_plane,
    deployment,
    injected_gateway,
    legacy_sidecar,
    namespace,
    observed,
    only,
    peer_authentication,
    pitfalls,
    pod_of,
    proxy_config,
)

EXCLUDE = "traffic.sidecar.istio.io/excludeInboundPorts"
INCLUDE = "traffic.sidecar.istio.io/includeInboundPorts"
ENVOY_PORT = {"ENVOY_SECURE_METRICS_PORT": "15091"}
INJECTED = namespace("default", istio_injection="enabled")


def app(annotations: dict[str, str], version: str = "1.31.0", *more: Any) -> list[Any]:
    return [*control_plane(version), INJECTED, deployment(annotations=annotations), *more]


def found(code: str, annotations: dict[str, str], version: str = "1.31.0", *more: Any) -> list[Pitfall]:
    parts = app(annotations, version, *more)
    return pitfalls(code, *[each if isinstance(each, dict) else list(each) for each in parts])


def test_a_secured_mesh_has_no_errors_and_no_warnings() -> None:
    """Where everything is right nothing is said but that Istio's listener takes every identity."""
    assert [each.code for each in observed(secured()).pitfalls] == ["native-any-identity"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pitfall_says_what_and_what_to_do(name: str) -> None:
    """Texts are sentences, remedies are there, and the same cluster gives the same pitfalls in order."""
    first = observed(CLUSTERS[name]()).pitfalls
    for each in first:
        assert each.text.endswith((".", ".)")) and len(each.text) > 30, each.code
        assert each.remedy, each.code
    severities = ["error", "warning", "info"]
    assert [severities.index(each.severity) for each in first] == sorted(
        severities.index(each.severity) for each in first
    )


@pytest.mark.parametrize("text", ["a: [", "proxyMetadata: {A: 1}", "proxyMetadat: {}", "a: 1\n---\nb: 2"])
def test_proxy_config_unreadable(text: str) -> None:
    """YAML that cannot be read, values that are no strings, and misspelt fields are found."""
    assert only(found("proxy-config-unreadable", {CONFIG: text})).severity == "error"


@pytest.mark.parametrize("text", ["", "proxy_metadata: {A: b}", "concurrency: 2\nproxyMetadata: {A: 'b'}"])
def test_proxy_config_readable(text: str) -> None:
    """What Istio takes is no pitfall, fields with underscores included."""
    assert found("proxy-config-unreadable", {CONFIG: text}) == []


def test_native_unsupported() -> None:
    """Secure ports on proxies before 1.31 are ignored without a word."""
    pitfall = only(found("native-unsupported", proxy_config(SECURE), "1.30.3"))
    assert "1.30.3" in pitfall.text and "ENVOY_SECURE_MERGED_METRICS_PORT" in pitfall.text
    assert found("native-unsupported", proxy_config(SECURE), "1.31.0-rc.0") == []
    assert found("native-unsupported", {}, "1.30.3") == []


def test_hardening_unsupported() -> None:
    """Proxies before 1.22 cannot be hardened: said, and a warning where somebody tried."""
    assert only(found("hardening-unsupported", {}, "1.21.6")).severity == "info"
    tried = only(found("hardening-unsupported", proxy_config(LOCALHOST_ONLY), "1.21.6"))
    assert tried.severity == "warning"
    assert found("hardening-unsupported", proxy_config(LOCALHOST_ONLY), "1.22.0") == []


def test_version_unknown() -> None:
    """Nothing tells the version: unknown, never a guess; the running version is named where it is known."""
    parts = [INJECTED, deployment()]
    assert "--istio-version" in only(pitfalls("version-unknown", *parts)).remedy
    assert "run 1.30.1" in only(pitfalls("version-unknown", *parts, pod_of(deployment(), "1.30.1"))).text
    assert pitfalls("version-unknown", *parts, istio_version="1.31.0") == []


def test_half_hardened() -> None:
    """On proxies that nothing injects one of the two places leaves the other port open."""
    by_env = only(pitfalls("half-hardened", control_plane(), classic_gateway(variables=LOCALHOST_ONLY)))
    assert "15090" in by_env.text and "proxyMetadata" in by_env.remedy
    note = proxy_config(LOCALHOST_ONLY)
    by_note = only(pitfalls("half-hardened", control_plane(), classic_gateway(annotations=note)))
    assert "15020" in by_note.text and "variable" in by_note.remedy
    both = classic_gateway(variables=LOCALHOST_ONLY, annotations=note)
    assert pitfalls("half-hardened", control_plane(), both) == []


@pytest.mark.parametrize("value", ["True", "1", "t"])
def test_hardening_not_exact(value: str) -> None:
    """15020 takes every true of Go, 15090 only the one spelling."""
    pitfall = only(found("hardening-not-exact", proxy_config({"METRICS_LOCALHOST_ACCESS_ONLY": value})))
    assert repr(value) in pitfall.text
    assert "pod annotation proxy.istio.io/config" in pitfall.remedy
    assert found("hardening-not-exact", proxy_config(LOCALHOST_ONLY)) == []


def test_strict_intercepts_secure_port() -> None:
    """Under STRICT a native port that is not excluded from interception cannot be scraped."""
    strict = peer_authentication("STRICT")
    assert (
        "15092" in only(found("strict-intercepts-secure-port", proxy_config(SECURE), "1.31.0", strict)).remedy
    )
    assert found("strict-intercepts-secure-port", proxy_config(SECURE)) == []
    for harmless in ({EXCLUDE: "1,15092"}, {INCLUDE: "8080"}, {INCLUDE: ""}):
        assert found("strict-intercepts-secure-port", proxy_config(SECURE) | harmless, "1.31.0", strict) == []


def test_strict_on_the_port_alone() -> None:
    """The mode of the port counts: PERMISSIVE for 15092 under STRICT works."""
    strict = peer_authentication("STRICT")
    one = peer_authentication("", "default", name="one", app="httpbin", p15092="PERMISSIVE")
    assert found("strict-intercepts-secure-port", proxy_config(SECURE), "1.31.0", strict, one) == []


def test_gateways_are_not_intercepted() -> None:
    """Nothing intercepts a gateway: STRICT does not matter there."""
    gateway = injected_gateway(annotations=proxy_config(SECURE))
    assert (
        pitfalls("strict-intercepts-secure-port", control_plane(), peer_authentication("STRICT"), gateway)
        == []
    )


def test_legacy_port_excluded() -> None:
    """The legacy port needs interception: excluded, nothing listens."""
    more = [legacy_sidecar(app="httpbin"), peer_authentication("STRICT")]
    assert only(found("legacy-port-excluded", {EXCLUDE: "15091"}, "1.29.2", *more)).severity == "error"
    assert found("legacy-port-excluded", {EXCLUDE: "9"}, "1.29.2", *more) == []


def test_secure_port_without_listener() -> None:
    """An annotation for a port that nothing opens is a target that is down."""
    port = {"prometheus.istio.io/secure-port": "15091"}
    assert "15091" in only(found("secure-port-without-listener", port)).text
    assert only(found("secure-port-without-listener", {"prometheus.istio.io/secure-port": "x"}))
    assert only(found("secure-port-without-listener", {"prometheus.istio.io/secure-envoy-port": "15091"}))
    legacy = [legacy_sidecar(app="httpbin"), peer_authentication("STRICT")]
    assert found("secure-port-without-listener", port, "1.29.2", *legacy) == []
    assert found("secure-port-without-listener", port | proxy_config(ENVOY_PORT)) == []


def test_secure_port_mismatch() -> None:
    """A stale annotation survives the injector, and leads to Envoy's port instead of the merged one."""
    stale = {"prometheus.istio.io/secure-port": "15091"}
    assert "15092" in only(found("secure-port-mismatch", stale | proxy_config({**SECURE, **ENVOY_PORT}))).text
    right = {"prometheus.istio.io/secure-port": "15092"}
    assert found("secure-port-mismatch", right | proxy_config({**SECURE, **ENVOY_PORT})) == []


def test_secure_port_not_announced() -> None:
    """Gateways that skip the injector need the annotation by hand; injected proxies do not."""
    bare = classic_gateway(variables=SECURE)
    assert only(pitfalls("secure-port-not-announced", control_plane(), bare)).severity == "warning"
    said = classic_gateway(variables=SECURE, annotations={"prometheus.istio.io/secure-port": "15092"})
    assert pitfalls("secure-port-not-announced", control_plane(), said) == []
    assert found("secure-port-not-announced", proxy_config(SECURE)) == []


def test_secure_envoy_port_not_announced() -> None:
    """Nothing in Istio ever sets secure-envoy-port."""
    assert only(found("secure-envoy-port-not-announced", proxy_config(ENVOY_PORT)))
    said = {"prometheus.istio.io/secure-envoy-port": "15091"}
    assert found("secure-envoy-port-not-announced", said | proxy_config(ENVOY_PORT)) == []


def test_native_any_identity() -> None:
    """Istio's own listeners let every identity of the mesh scrape: said wherever one is open."""
    assert "15092" in only(found("native-any-identity", proxy_config(SECURE))).text
    assert found("native-any-identity", proxy_config(SECURE), "1.30.0") == []


# Bootstrap overrides

BOOT = {"sidecar.istio.io/bootstrapOverride": "boot"}


def listener(name: str = "own_15092", port: int = 15092) -> Object:
    return {"name": name, "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}}}


def override(
    *listeners: Object, key: str = "custom_bootstrap.json", text: str = "", clusters: Any = ()
) -> Object:
    static = {"listeners": list(listeners), "clusters": list(clusters)}
    return config_map("boot", {key: text or json.dumps({"static_resources": static})}, namespace="default")


def test_bootstrap_configmap_missing() -> None:
    """Without its ConfigMap a pod does not start."""
    assert only(found("bootstrap-configmap-missing", BOOT)).severity == "critical"
    assert found("bootstrap-configmap-missing", BOOT, "1.31.0", override(listener())) == []
    elsewhere = override(listener())
    elsewhere["metadata"]["namespace"] = "other"
    assert only(found("bootstrap-configmap-missing", BOOT, "1.31.0", elsewhere))


def test_template_configmap_missing() -> None:
    """The injection template mounts it with `optional`: pods start, but nothing opens the announced port."""
    plane = control_plane()
    text = InjectionTemplate(15092, 0, {"default": "0123456789abcdef"}).text()
    config = {"defaultTemplates": ["sidecar", "meshscrape"], "templates": {"meshscrape": text}}
    plane[1]["data"]["config"] = json.dumps(config)
    parts = [*plane, INJECTED, deployment()]
    assert only(pitfalls("template-configmap-missing", parts)).severity == "error"
    assert pitfalls("bootstrap-configmap-missing", parts) == []
    there = override(listener())
    there["metadata"]["name"] = "meshscrape-bootstrap"
    assert pitfalls("template-configmap-missing", parts, there) == []


def test_dump_without_config_maps_gives_only_a_warning() -> None:
    """Then it is a warning: the cluster may have it."""
    parts = [namespace("default", istio_injection="enabled"), deployment(annotations=BOOT)]
    missing = only(pitfalls("bootstrap-configmap-missing", *parts, istio_version="1.31.0"))
    assert missing.severity == "warning"


def test_a_rollback_needs_the_config_map_too() -> None:
    """An old ReplicaSet that names it could not start its pods again."""
    now = deployment()
    old = deployment("httpbin-5d8f6c7b9", kind="ReplicaSet", annotations=BOOT)
    old["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "httpbin", "controller": True}
    ]
    parts = [*control_plane(), namespace("default", istio_injection="enabled"), now, old]
    missing = only(pitfalls("bootstrap-configmap-missing", parts))
    assert (missing.severity, missing.ref and missing.ref.kind) == ("warning", "ReplicaSet")
    assert pitfalls("bootstrap-configmap-missing", parts, override(listener())) == []


def test_an_override_that_only_an_old_revision_names_must_stay() -> None:
    """The template has left it; a ReplicaSet that names it could still start pods."""
    ours = override(listener())
    ours["data"]["scrapers.json"] = "{}"
    old = deployment("httpbin-5d8f6c7b9", kind="ReplicaSet", annotations=BOOT)
    old["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "httpbin", "controller": True}
    ]
    parts = [*control_plane(), namespace("default", istio_injection="enabled"), ours]
    kept = only(pitfalls("override-in-use", parts, deployment(), old))
    assert "1 ReplicaSet (httpbin-5d8f6c7b9)" in kept.text
    assert only(pitfalls("override-unused", parts, deployment())).severity == "info"
    for code in ("override-in-use", "override-unused"):
        assert pitfalls(code, parts, deployment(annotations=BOOT), old) == []


def dns_override() -> Object:
    matcher = {"@type": "type.googleapis.com/envoy.extensions.matching.inputs.ssl.v3.DnsSanInput"}
    return override(text=json.dumps({"static_resources": {"listeners": [listener()]}, "rbac": matcher}))


def test_foreign_ca() -> None:
    """An allow list with a DNS name needs three settings of Istio, and each that is missing is named."""
    bare = only(found("foreign-ca", BOOT, "1.31.0", dns_override()))
    assert bare.severity == "warning"
    for setting in ("meshConfig.caCertificates", "ISTIO_MULTIROOT_MESH", "PROXY_CONFIG_XDS_AGENT"):
        assert setting in bare.text
    ready = control_plane(mesh={"caCertificates": [{"pem": "…"}]}, variables={"ISTIO_MULTIROOT_MESH": "true"})
    app = deployment(annotations={**BOOT, **proxy_config({"PROXY_CONFIG_XDS_AGENT": "true"})})
    parts = [*ready, namespace("default", istio_injection="enabled"), app, dns_override()]
    assert only(pitfalls("foreign-ca", parts)).severity == "info"
    assert found("foreign-ca", BOOT, "1.31.0", override(listener())) == []


def test_volume_mounted_twice() -> None:
    """The API server refuses two mounts at one path of a container."""
    mounts = json.dumps({"certs": {"mountPath": "/etc/certs"}, "other": {"mountPath": "/etc/certs/"}})
    twice = only(found("volume-mounted-twice", {"sidecar.istio.io/userVolumeMount": mounts}))
    assert twice.severity == "error" and "/etc/certs" in twice.text
    once = json.dumps({"certs": {"mountPath": "/etc/certs"}, "other": {"mountPath": "/etc/other"}})
    assert found("volume-mounted-twice", {"sidecar.istio.io/userVolumeMount": once}) == []


def test_bootstrap_key_missing() -> None:
    """Under another key the agent starts without the override."""
    assert only(found("bootstrap-key-missing", BOOT, "1.31.0", override(listener(), key="bootstrap.json")))
    assert found("bootstrap-key-missing", BOOT, "1.31.0", override(listener())) == []


def test_bootstrap_unreadable() -> None:
    """What is neither JSON nor YAML is ignored by the agent; YAML is fine."""
    assert only(found("bootstrap-unreadable", BOOT, "1.31.0", override(text="{")))
    assert found("bootstrap-unreadable", BOOT, "1.31.0", override(text="static_resources: {}")) == []


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (override(listener("0.0.0.0_15090", 16000)), "silently"),
        (override(listener(port=15090)), "refuses to start"),
        (override(listener(port=15091)), "refuses to start"),
        (override(clusters=[{"name": "sds-grpc"}]), "cluster sds-grpc"),
        (override(listener(name="x" * 110_000)), "131,071"),
    ],
)
def test_bootstrap_collision(parts: Object, words: str) -> None:
    """Names and ports that are Istio's already, a native port in use, and an argument that is too long."""
    assert words in only(found("bootstrap-collision", BOOT | proxy_config(ENVOY_PORT), "1.31.0", parts)).text


def test_bootstrap_without_collision() -> None:
    """Names and ports of its own are fine beside a native port, and 15091 where that port is off."""
    assert found("bootstrap-collision", BOOT | proxy_config(ENVOY_PORT), "1.31.0", override(listener())) == []
    assert found("bootstrap-collision", BOOT, "1.31.0", override(listener(port=15091))) == []
    assert (
        found(
            "bootstrap-collision", BOOT | proxy_config(ENVOY_PORT), "1.30.0", override(listener(port=15091))
        )
        == []
    )


def test_bootstrap_annotation_ignored() -> None:
    """The annotation does nothing where no injector reads it: classic gateways, injected ones before 1.27."""
    assert only(pitfalls("bootstrap-annotation-ignored", control_plane(), classic_gateway(annotations=BOOT)))
    gateway, own = injected_gateway(annotations=BOOT), override(listener())
    own["metadata"]["namespace"] = "istio-ingress"
    assert only(pitfalls("bootstrap-annotation-ignored", control_plane("1.26.3"), gateway, own))
    assert pitfalls("bootstrap-annotation-ignored", control_plane("1.27.0"), gateway, own) == []


# Volumes

MAP, LIST = '{"certs": {"mountPath": "/c"}}', '[{"name": "certs", "mountPath": "/c"}]'


@pytest.mark.parametrize("name", ["sidecar.istio.io/userVolume", "sidecar.istio.io/userVolumeMount"])
def test_user_volumes(name: str) -> None:
    """A map is right; a list works by accident; what is no JSON mounts nothing; gateways ignore both."""
    assert found("user-volume-list", {name: MAP}) == found("user-volume-unreadable", {name: MAP}) == []
    assert only(found("user-volume-list", {name: LIST})).severity == "info"
    assert only(found("user-volume-unreadable", {name: "{"})).severity == "error"
    assert only(found("user-volume-unreadable", {name: '"text"'}))
    gateway = injected_gateway(annotations={name: MAP})
    assert only(pitfalls("user-volume-on-gateway", control_plane(), gateway)).severity == "warning"
    assert found("user-volume-on-gateway", {name: MAP}) == []
