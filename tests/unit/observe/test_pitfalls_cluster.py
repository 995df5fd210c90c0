"""Pitfalls of injection, of pods that are there already, of networks and platforms."""

from __future__ import annotations

from typing import Any

import pytest

from support.examples import ambient, asm, mid_upgrade
from support.objects import (
    SECURE,
    Object,
    control_plane,
    deployment,
    injected_gateway,
    istio,
    namespace,
    observed,
    only,
    pitfalls,
    pod_of,
    proxy_config,
    proxy_container,
)
from support.scraping_objects import plain_prometheus, prometheus, secure_job

INJECTED = namespace("default", istio_injection="enabled")


def test_injection_labels_conflict() -> None:
    """istio-injection wins over istio.io/rev."""
    code = "injection-labels-conflict"
    assert "canary" in only(pitfalls(code, namespace("a", istio_injection="enabled", rev="canary"))).text
    assert pitfalls(code, INJECTED, namespace("b", rev="canary")) == []


def test_inject_annotation_only() -> None:
    """An annotation does not reach the webhook; in a labelled namespace it does not need to."""
    code, wish = "inject-annotation-only", {"sidecar.istio.io/inject": "true"}
    assert "label" in only(pitfalls(code, deployment(annotations=wish))).remedy
    assert pitfalls(code, INJECTED, deployment(annotations=wish)) == []
    assert pitfalls(code, deployment(labels=wish, annotations=wish)) == []


def test_revision_without_webhook() -> None:
    """A revision that nothing serves injects nothing; tags are names too; without webhooks who knows."""
    code, app = "revision-without-webhook", [namespace("default", rev="canary"), deployment()]
    plane = control_plane("1.31.0", "1-31-0", tags=["stable"])
    pitfall = only(pitfalls(code, plane, app))
    assert "canary" in pitfall.text and "stable" in pitfall.remedy
    assert pitfalls(code, plane, namespace("default", rev="stable"), deployment()) == []
    assert pitfalls(code, app) == []
    assert only(pitfalls(code, plane, deployment(labels={"istio.io/rev": "canary"})))


def test_manually_injected() -> None:
    """A template with the proxy inside is not reached by annotations."""
    assert only(pitfalls("manually-injected", INJECTED, deployment(proxy=proxy_container("1.31.0"))))
    assert pitfalls("manually-injected", INJECTED, deployment(), pod_of(deployment())) == []


def test_pods_stale() -> None:
    """What still runs with the old configuration is shown, with why and the command that restarts it."""
    app = deployment()
    old = pod_of(app)
    app["spec"]["template"]["metadata"]["annotations"] = proxy_config(SECURE)
    pitfall = only(pitfalls("pods-stale", control_plane(), INJECTED, app, old))
    assert "secure port off instead of 15092" in pitfall.text
    assert pitfall.remedy == "kubectl -n default rollout restart deployment/httpbin"
    assert pitfalls("pods-stale", control_plane(), INJECTED, app, pod_of(app, variables=SECURE)) == []


def test_pods_stale_after_an_upgrade() -> None:
    """Proxies of the revision before are named with both versions."""
    assert "proxy 1.29.2 instead of 1.31.0" in only(pitfalls("pods-stale", mid_upgrade())).text


@pytest.mark.parametrize("kind", ["Pod", "Job"])
def test_standalone(kind: str) -> None:
    """Bare pods and Jobs are reported, and never deleted."""
    template = deployment()["spec"]["template"]
    data: Object = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "alone"}}
    data |= {"spec": template["spec"]} if kind == "Pod" else {"spec": {"template": template}}
    assert only(pitfalls("standalone", INJECTED, data)).severity == "info"
    assert pitfalls("standalone", data, deployment()) == []


def test_annotation_only_on_pods() -> None:
    """What `kubectl annotate pod` wrote is lost on restart; what the injector wrote is not."""
    code, app = "annotation-only-on-pods", deployment()
    by_hand = pod_of(app, annotations={"prometheus.istio.io/secure-port": "15091"})
    assert only(pitfalls(code, control_plane("1.29.2"), INJECTED, app, by_hand)).severity == "warning"
    assert pitfalls(code, control_plane(), INJECTED, app, pod_of(app, variables=SECURE)) == []


# Networks


def network_policy(ports: list[Any] | None = None, peers: list[Any] | None = None, **spec: Any) -> Object:
    rule: Object = {}
    if ports is not None:
        rule["ports"] = [each if isinstance(each, dict) else {"port": each} for each in ports]
    if peers is not None:
        rule["from"] = peers
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "policy", "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": "httpbin"}}, "ingress": [rule]} | spec,
    }  # fmt: skip


SECURED = [
    *control_plane(),
    INJECTED,
    deployment(annotations=proxy_config(SECURE)),
    *prometheus(secure_job()),
]
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}}}


@pytest.mark.parametrize(
    "policy",
    [
        network_policy([8080]),
        network_policy([{"port": 15092, "protocol": "UDP"}]),
        network_policy([{"port": 1, "endPort": 15091}]),
        network_policy([15092], [{"podSelector": {}}]),
        network_policy([15092], [{"namespaceSelector": {"matchLabels": {"team": "x"}}}]),
        network_policy([15092], [{**MONITORING, "podSelector": {"matchLabels": {"app": "grafana"}}}]),
        network_policy(ingress=[]),
    ],
)
def test_network_policy_blocks(policy: Object) -> None:
    """Policies that select the pods and do not admit the secure port from the scraper."""
    pitfall = only(pitfalls("network-policy-blocks", SECURED, policy))
    assert pitfall.severity == "error" and "15092" in pitfall.text


@pytest.mark.parametrize(
    "policy",
    [
        network_policy([15092]),
        network_policy(),
        network_policy([{"port": 15000, "endPort": 15100}]),
        network_policy([15092], [MONITORING]),
        network_policy([15092], [{**MONITORING, "podSelector": {"matchLabels": {"app": "prometheus"}}}]),
        network_policy([15092], [{"ipBlock": {"cidr": "10.0.0.0/8"}}]),
        network_policy([8080], policyTypes=["Egress"]),
        network_policy([8080], podSelector={"matchLabels": {"app": "other"}}),
    ],
)
def test_network_policies_that_admit(policy: Object) -> None:
    """What admits the port, selects others, or is not about ingress is no pitfall."""
    assert pitfalls("network-policy-blocks", SECURED, policy) == []


def test_network_policies_add_up() -> None:
    """One policy that admits is enough."""
    admitting = network_policy([15092], [MONITORING])
    admitting["metadata"]["name"] = "scraper"
    assert pitfalls("network-policy-blocks", SECURED, network_policy([8080]), admitting) == []


def test_the_policy_of_istios_gateway_chart() -> None:
    """It admits the plaintext ports, and not the secure ones: known before anything is changed."""
    chart = network_policy(
        [15021, 15020, 15090, 80], podSelector={"matchLabels": {"istio": "ingressgateway"}}
    )
    chart["metadata"]["namespace"] = "istio-ingress"
    pitfall = only(pitfalls("network-policy-blocks", control_plane(), injected_gateway(), chart))
    assert pitfall.severity == "info" and "15091, 15092" in pitfall.text


# The platform


def test_versions_mixed() -> None:
    """Several versions of proxies run: said once."""
    assert "1.29.2, 1.31.0" in only(pitfalls("versions-mixed", mid_upgrade())).text
    assert pitfalls("versions-mixed", control_plane(), INJECTED, deployment()) == []


def test_version_contradicts() -> None:
    """--istio-version against what the objects tell."""
    assert (
        "1.29.2"
        in only(pitfalls("version-contradicts", control_plane("1.29.2"), istio_version="1.31.0")).text
    )
    assert pitfalls("version-contradicts", control_plane("1.31.0"), istio_version="1.31.0") == []


def test_pre_release() -> None:
    """A pre-release counts as its release, and is named."""
    assert "1.31.0-rc.0" in only(pitfalls("pre-release", control_plane("1.31.0-rc.0"))).text
    assert pitfalls("pre-release", control_plane("1.31.0")) == []


def test_custom_templates() -> None:
    """Injection templates of one's own may ignore the annotations."""
    plane = control_plane()
    injector = only(
        each for each in plane if each["metadata"]["name"] == "istio-sidecar-injector" and "data" in each
    )
    injector["data"]["config"] = "templates: {sidecar: '', mine: ''}"
    assert "mine" in only(pitfalls("custom-templates", plane)).text
    injector["data"]["config"] = "templates: {sidecar: '', agentgateway-waypoint: ''}"
    assert pitfalls("custom-templates", plane) == []  # Istio's own chart has both


def test_ambient_and_ztunnel() -> None:
    """Ambient workloads have no sidecar; ztunnel stays plaintext; the waypoint is a gateway like others."""
    found = observed(ambient())
    codes = {each.code for each in found.pitfalls}
    assert "ambient" in codes
    assert "ztunnel" in {each.component for each in found.plaintext_components}
    assert {each.kind for each in found.workloads} == {"ambient", "waypoint"}
    assert pitfalls("ambient", INJECTED, deployment()) == []


def test_asm() -> None:
    """ASM is named, with two API servers, and with what could not be run."""
    assert "never run against ASM" in only(pitfalls("asm", asm())).text
    assert "spec.env" in only(pitfalls("asm-gateway-owned", asm())).remedy
    assert pitfalls("asm", control_plane(), INJECTED, deployment()) == []
    assert pitfalls("asm-gateway-owned", control_plane()) == []


@pytest.mark.parametrize(
    ("label", "severity", "words"),
    [
        ("", "info", "do not tell"),
        ("ack-arms-prometheus-1.1.19", "warning", "needs 1.1.20"),
        ("ack-arms-prometheus-1.1.20", "info", "can scrape"),
        ("ack-arms-prometheus-1.2.0", "info", "can scrape"),
    ],
)
def test_arms_agent(label: str, severity: str, words: str) -> None:
    """The version that counts is the chart's; the image's tag, another number, is not taken for it."""
    parts = asm()
    agent = only(each for each in parts if each["metadata"].get("namespace") == "arms-prom")
    if label:
        agent["metadata"]["labels"] = {"helm.sh/chart": label}
    pitfall = only(pitfalls("arms-agent", parts))
    assert pitfall.severity == severity and words in pitfall.text


def test_no_arms_agent_without_one() -> None:
    """An ordinary Prometheus is no ARMS agent."""
    assert pitfalls("arms-agent", control_plane(), prometheus()) == []


# Ambient


def test_scraper_ambient() -> None:
    """ztunnel carries its scrapes of ambient pods; sidecars' plaintext ports stay plaintext for it."""
    parts = [
        *control_plane(),
        namespace("monitoring", dataplane="ambient"),
        namespace("shop", istio_injection="enabled"),
        namespace("default", dataplane="ambient"),
        deployment(annotations={"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}),
        deployment("web", "shop", annotations={"prometheus.io/scrape": "true"}),
        *plain_prometheus(),
    ]
    found = observed(parts)
    scraper = only(found.scrapers)
    assert scraper.ambient and not scraper.injected
    over = {ref.name: job.over for job in found.scrape_jobs for ref in job.matches}
    assert over == {"httpbin": "ztunnel", "web": "plaintext"}
    pitfall = only(each for each in found.pitfalls if each.code == "scraper-ambient")
    assert pitfall.ref == scraper.ref


def test_plaintext_components_are_listed() -> None:
    """istiod, ztunnel and the CNI agent have no secure metrics port."""
    cni = deployment("istio-cni-node", "istio-system", kind="DaemonSet", labels={"k8s-app": "istio-cni-node"})
    found = observed(ambient(), cni).plaintext_components
    assert {(each.component, each.port) for each in found} == {
        ("istiod", 15014), ("ztunnel", 15020), ("the Istio CNI agent", 15014),
    }  # fmt: skip


# Advisories


def by_paths(action: str, **operation: Any) -> Object:
    rules = [{"to": [{"operation": operation}]}]
    return istio("security", "AuthorizationPolicy", "paths", "default", {"action": action, "rules": rules})


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("1.28.9", True),
        ("1.29.6", True),
        ("1.29.7", False),
        ("1.30.3", True),
        ("1.30.4", False),
        ("1.31.0", False),
    ],
)
def test_proxy_advisories(version: str, affected: bool) -> None:
    """Versions with the path bypasses of 2026 are named where rules about paths keep strangers out."""
    parts = [*control_plane(version), namespace("default", istio_injection="enabled"), deployment()]
    found = pitfalls("proxy-advisories", parts, by_paths("DENY", paths=["/admin/*"]))
    assert [version in each.text for each in found] == ([True] if affected else [])


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (by_paths("DENY", paths=["/admin"]), True),
        (by_paths("ALLOW", notPaths=["/admin"]), True),
        (by_paths("ALLOW", paths=["/stats/prometheus"]), False),
        (by_paths("DENY", ports=["15091"]), False),
    ],
)
def test_advisories_do_not_concern_exact_allow_rules(policy: Object, named: bool) -> None:
    """A rule that allows exact paths does not become wider."""
    parts = [*control_plane("1.30.0"), namespace("default", istio_injection="enabled"), deployment(), policy]
    assert bool(pitfalls("proxy-advisories", parts)) == named


# Terminating pods


def test_terminating_pods_do_not_count() -> None:
    """A pod on its way out runs nothing that anybody could change."""
    app = deployment()
    old = pod_of(app, "1.30.0", name="old")
    old["metadata"]["deletionTimestamp"] = "2026-11-28T12:00:00Z"
    found = observed(control_plane(), namespace("default", istio_injection="enabled"), app, pod_of(app), old)
    assert [pod.ref.name for pod in only(found.workloads).running] == ["httpbin-5d8f6c7b9-x2x4z"]
    assert [each.code for each in found.pitfalls if each.code == "pods-stale"] == []
