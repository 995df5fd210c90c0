"""Workloads: kinds, injection, versions, settings, modes, what still runs as before."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import load_inventory
from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.observe.workload import ObservedWorkload
from support.examples import asm, legacy, mid_upgrade, secured
from support.objects import (
    CONFIG,
    LOCALHOST_ONLY,
    PARAMETERS,
    SECURE,
    Object,
    classic_gateway,
    config_map,
    control_plane,
    deployment,
    env,
    gateway_api,
    injected_gateway,
    istio,
    managed_deployment,
    namespace,
    observed,
    only,
    overlay,
    peer_authentication,
    pod_of,
    proxy_config,
    proxy_container,
    secure_overlay,
    service,
)
from support.upstream import SAMPLES, needs_upstream, sample_files

INCLUDE = "traffic.sidecar.istio.io/includeInboundPorts"
EXCLUDE = "traffic.sidecar.istio.io/excludeInboundPorts"
INJECTED = namespace("default", istio_injection="enabled")


def sample(*names: str, istio_version: str | None = None) -> Observation:
    manifests = [manifest for name in names for manifest in load_manifests((SAMPLES / name).open(), name)]
    return observe(load_inventory(manifests), istio_version=istio_version)


def workload(*parts: Any, name: str = "httpbin", version: str | None = None) -> ObservedWorkload:
    return only(each for each in observed(*parts, istio_version=version).workloads if each.name == name)


# Samples


@needs_upstream
@pytest.mark.parametrize("file", sample_files(), ids=lambda file: file.name)
def test_every_sample_is_observed(file: Path) -> None:
    """No sample is a surprise: every workload of it has a kind, and a version that is told or unknown."""
    found = sample(str(file.relative_to(SAMPLES)))
    assert found.workloads
    assert not any(each.versions.after.known for each in found.workloads)


@needs_upstream
@pytest.mark.parametrize(
    ("name", "kind", "native"),
    [
        ("injected/hello.yaml", "sidecar", True),
        ("injected/native-sidecar.yaml", "sidecar", True),
        ("injected/prometheus-scrape.yaml", "sidecar", True),
        ("injected/user-volume.yaml", "sidecar", True),
        ("injected/gateway.yaml", "gateway-injected", None),
    ],
)
def test_injected_samples(name: str, kind: str, native: bool | None) -> None:
    """Pods as the injector writes them: kind, native sidecar, identity; `latest` tells no version."""
    found = only(sample(name).workloads)
    assert (found.kind, found.versions.native_sidecar, found.versions.now.known) == (kind, native, False)
    assert found.injection.by == "manual"
    assert found.spiffe_id == "spiffe://cluster.local/ns/default/sa/default"
    assert str(only(sample(name, istio_version="1.31.0").workloads).versions.after) == "1.31.0"


@needs_upstream
def test_the_secure_add_on_is_a_scraper() -> None:
    """Istio's sample Prometheus has an identity, certificates, and two secure jobs that match nothing yet."""
    found = sample("prometheus-secure-metrics.yaml", istio_version="1.31.0")
    scraper = only(found.scrapers)
    assert scraper.spiffe_id == "spiffe://cluster.local/ns/istio-system/sa/prometheus"
    assert (scraper.output_certs, scraper.certs_mount) == ("/etc/istio-certs", "/etc/istio-certs")
    secure = [each for each in found.scrape_jobs if each.job.startswith("istio-secure")]
    assert [(each.over, each.matches) for each in secure] == [("mtls", ()), ("mtls", ())]


# Kinds


def test_gateways_of_all_kinds() -> None:
    """Injected, classic, managed and waypoint gateways are told apart, and none is intercepted."""
    edge, waypoint = gateway_api(), gateway_api("waypoint", gateway_class="istio-waypoint")
    found = observed(
        injected_gateway("injected"), classic_gateway(), edge, managed_deployment(edge), waypoint,
        managed_deployment(waypoint),
    ).workloads  # fmt: skip
    assert {each.name: each.kind for each in found} == {
        "injected": "gateway-injected",
        "istio-ingressgateway": "gateway-classic",
        "edge-istio": "gateway-api",
        "waypoint": "waypoint",
    }
    assert not any(each.interception.captured for each in found)
    managed = only(each for each in found if each.kind == "gateway-api")
    assert str(managed.gateway_ref) == "Gateway.gateway.networking.k8s.io default/edge"


def test_a_gateway_without_its_deployment_stands_for_itself() -> None:
    """In manifests a Gateway is there before its Deployment: it is the workload."""
    found = workload(gateway_api(), name="edge")
    assert found.ref == found.gateway_ref
    assert found.spiffe_id == "spiffe://cluster.local/ns/default/sa/edge-istio"


@pytest.mark.parametrize("gateway_class", ["nginx", "istio-remote", "istio-agentgateway"])
def test_gateways_that_are_not_istios_envoy(gateway_class: str) -> None:
    """Other classes, unmanaged ones and agentgateway are no workloads here."""
    assert observed(gateway_api(gateway_class=gateway_class)).workloads == ()


def test_a_class_of_istios_controller() -> None:
    """A GatewayClass of one's own counts when Istio's controller serves it."""
    own = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "mine"},
        "spec": {"controllerName": "istio.io/gateway-controller"},
    }  # fmt: skip
    assert workload(own, gateway_api(gateway_class="mine"), name="edge").kind == "gateway-api"


def test_a_gateway_on_an_existing_service_is_not_managed() -> None:
    """Addresses of type Hostname mean that istiod makes no Deployment."""
    gateway = gateway_api()
    gateway["spec"]["addresses"] = [{"type": "Hostname", "value": "ingress.example.svc"}]
    assert observed(gateway).workloads == ()


def test_ambient_and_uninjected() -> None:
    """Without a sidecar a workload is ambient by label, else simply not in the mesh."""
    assert workload(namespace("default", dataplane="ambient"), deployment()).kind == "ambient"
    opted_out = deployment(labels={"istio.io/dataplane-mode": "none"})
    assert workload(namespace("default", dataplane="ambient"), opted_out).kind == "uninjected"
    assert workload(deployment()).kind == "uninjected"
    assert (
        workload(namespace("default", dataplane="ambient", istio_injection="enabled"), deployment()).kind
        == "sidecar"
    )


def test_infrastructure_is_no_workload() -> None:
    """istiod and ztunnel are not workloads of the mesh."""
    ztunnel = deployment("ztunnel", "istio-system", kind="DaemonSet", labels={"app": "ztunnel"})
    assert observed(control_plane(), ztunnel).workloads == ()


def test_all_owners_of_pods_are_workloads() -> None:
    """StatefulSets, DaemonSets, CronJobs, Jobs and bare pods count; what nothing restarts is marked."""
    job = {"apiVersion": "batch/v1", "metadata": {"namespace": "default", "name": "job"}}
    template = deployment()["spec"]["template"]
    found = observed(
        INJECTED,
        deployment("db", kind="StatefulSet"),
        deployment("agent", kind="DaemonSet"),
        {**job, "kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": template}}}},
        {**job, "kind": "Job", "spec": {"template": template}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare"}, "spec": template["spec"]},
    ).workloads
    assert {each.ref.kind: each.standalone for each in found} == {
        "StatefulSet": False, "DaemonSet": False, "CronJob": False, "Job": True, "Pod": True,
    }  # fmt: skip


def test_pods_belong_to_their_workload() -> None:
    """Through a ReplicaSet that is not in the dump too; a dump of pods alone still tells the Deployment."""
    app = deployment()
    assert [each.ref.name for each in workload(app, INJECTED, pod_of(app)).running] == [
        "httpbin-5d8f6c7b9-x2x4z"
    ]
    alone = workload(INJECTED, pod_of(app, "1.30.1"))
    assert str(alone.ref) == "Deployment.apps default/httpbin"
    assert (alone.kind, str(alone.versions.now)) == ("sidecar", "1.30.1")
    assert alone.stale == ()


# Injection: the table of Istio's webhooks


@pytest.mark.parametrize(
    ("space", "pod", "by", "revision"),
    [
        ({"istio_injection": "enabled"}, {}, "namespace-label", "default"),
        ({"istio_injection": "enabled", "rev": "canary"}, {}, "namespace-label", "default"),
        ({"istio_injection": "enabled"}, {"sidecar.istio.io/inject": "false"}, "none", ""),
        ({"rev": "canary"}, {}, "namespace-revision", "canary"),
        ({"rev": "canary"}, {"istio.io/rev": "other"}, "namespace-revision", "canary"),
        ({"rev": "canary"}, {"sidecar.istio.io/inject": "false"}, "none", ""),
        ({}, {"istio.io/rev": "canary"}, "pod-revision", "canary"),
        ({}, {"istio.io/rev": "canary", "sidecar.istio.io/inject": "true"}, "pod-revision", "canary"),
        ({}, {"sidecar.istio.io/inject": "true"}, "pod-label", "default"),
        ({"istio_injection": "disabled"}, {"sidecar.istio.io/inject": "true"}, "none", ""),
        ({"istio_injection": "disabled", "rev": "canary"}, {}, "none", ""),
        ({}, {}, "none", ""),
    ],
)
def test_labels_decide_which_revision_injects(
    space: dict[str, str], pod: dict[str, str], by: str, revision: str
) -> None:
    """Labels of namespace and pod decide as Istio's webhooks do; the reason names the label."""
    found = workload(namespace("default", **space), deployment(labels=pod)).injection
    assert (found.by, found.revision) == (by, revision)
    assert found.injected == (by != "none")
    assert found.reason


def test_injector_refuses_some_pods_itself() -> None:
    """The host's network, system namespaces and an annotation that says no are not injected."""
    refused = [
        workload(INJECTED, deployment(hostNetwork=True)),
        workload(INJECTED, deployment(annotations={"sidecar.istio.io/inject": "false"})),
        workload(namespace("kube-system", istio_injection="enabled"), deployment(namespace="kube-system")),
    ]
    assert [each.kind for each in refused] == ["uninjected"] * 3


# Versions


def test_version_now_and_after_a_restart_are_observed() -> None:
    """In an upgrade both proxies run; the revision of the namespace's tag says what comes."""
    found = workload(mid_upgrade())
    assert [str(each) for each in found.versions.running] == ["1.29.2", "1.31.0"]
    assert (str(found.versions.now), str(found.versions.after)) == ("1.29.2", "1.31.0")
    assert found.stale == ("httpbin-5d8f6c7b9-aaaaa",)


def test_running_image_wins_over_the_image_in_the_template() -> None:
    """The status tells what was started: a moving tag in the specification does not."""
    app = deployment()
    pod = pod_of(app, "latest", status_image="docker.io/istio/proxyv2:1.30.1")
    assert str(workload(INJECTED, app, pod).versions.now) == "1.30.1"


def test_the_option_stands_in_for_moving_tags() -> None:
    """`latest` is unknown; --istio-version says what it is, and never overrides a tag that tells."""
    app = deployment()
    assert not workload(INJECTED, app, pod_of(app, "latest")).versions.now.known
    assert str(workload(INJECTED, app, pod_of(app, "latest"), version="1.31.0").versions.now) == "1.31.0"
    assert str(workload(INJECTED, app, pod_of(app, "1.29.2"), version="1.31.0").versions.now) == "1.29.2"


def test_an_uninjected_workload_would_get_the_default() -> None:
    """What a workload would get is what its control plane gives."""
    assert str(workload(control_plane("1.31.0"), deployment()).versions.after) == "1.31.0"


def test_native_sidecars() -> None:
    """Running pods tell; else the annotation or istiod's setting; else nobody knows."""
    app = deployment()
    assert workload(INJECTED, app, pod_of(app, native=False)).versions.native_sidecar is False
    assert workload(INJECTED, app).versions.native_sidecar is None
    wish = deployment(annotations={"sidecar.istio.io/nativeSidecar": "true"})
    assert workload(INJECTED, wish).versions.native_sidecar is True
    plane = control_plane(variables={"ENABLE_NATIVE_SIDECARS": "false"})
    assert workload(plane, INJECTED, app).versions.native_sidecar is False


# Settings


def proxy_config_object(name: str, where: str, values: dict[str, str], app: str = "") -> Object:
    spec: Object = {"environmentVariables": values}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    return istio("networking", "ProxyConfig", name, where, spec)


def test_precedence_of_proxy_settings() -> None:
    """Mesh default < mesh and namespace ProxyConfig < annotation < ProxyConfig that selects the pod."""
    names = ["A", "B", "C", "D", "E"]
    parts = [
        control_plane(mesh={"defaultConfig": {"proxyMetadata": dict.fromkeys(names, "mesh")}}),
        proxy_config_object("root", "istio-system", dict.fromkeys(names[1:], "root")),
        proxy_config_object("wide", "default", dict.fromkeys(names[2:], "namespace")),
        proxy_config_object("one", "default", dict.fromkeys(names[4:], "selected"), app="httpbin"),
        INJECTED,
        deployment(annotations=proxy_config(dict.fromkeys(names[3:], "annotation"))),
    ]
    found = workload(*parts)
    assert dict(found.env) == {"A": "mesh", "B": "root", "C": "namespace", "D": "annotation", "E": "selected"}
    # The bootstrap reads the annotation last.
    assert found.proxy_metadata["E"] == "annotation"


def test_the_containers_own_variable_wins() -> None:
    """A variable on one's own istio-proxy container is applied last."""
    own = {"name": "istio-proxy", "image": "auto", "env": env({"ENVOY_SECURE_MERGED_METRICS_PORT": "0"})}
    found = workload(control_plane(), INJECTED, deployment(annotations=proxy_config(SECURE), proxy=own))
    assert found.metrics.merged is None
    assert found.metrics.mode == "none"


def test_ports_by_proxy_metadata() -> None:
    """The merged and Envoy's own secure port, from whichever of the settings is in force."""
    both = {**SECURE, "ENVOY_SECURE_METRICS_PORT": "15091"}
    found = workload(control_plane(), INJECTED, deployment(annotations=proxy_config(both)))
    assert (found.metrics.merged, found.metrics.envoy, found.metrics.listening) == (
        15092,
        15091,
        (15091, 15092),
    )
    assert (found.metrics.mode, found.metrics.announced) == ("native", "15092")


@pytest.mark.parametrize("value", ["0", "", "fifteen", "99999", "-1", "\uff11\uff15"])
def test_ports_that_are_off(value: str) -> None:
    """Zero, nothing and nonsense open no port."""
    metadata = {"ENVOY_SECURE_MERGED_METRICS_PORT": value}
    assert (
        workload(control_plane(), INJECTED, deployment(annotations=proxy_config(metadata))).metrics.mode
        == "none"
    )


def test_a_managed_gateways_settings_come_from_overlay_and_objects() -> None:
    """Not from its annotations (trap 4), but from the overlay, ProxyConfig objects and the mesh default."""
    by_annotation = gateway_api(infrastructure={"annotations": proxy_config(SECURE)})
    assert workload(control_plane(), by_annotation, name="edge").metrics.merged is None
    by_overlay = gateway_api(infrastructure=PARAMETERS)
    found = workload(control_plane(), by_overlay, secure_overlay(), name="edge")
    assert (found.metrics.merged, found.metrics.announced, found.metrics.mode) == (15092, "15092", "native")
    selector = {"matchLabels": {"gateway.networking.k8s.io/gateway-name": "edge"}}
    by_object = istio(
        "networking", "ProxyConfig", "p", "default", {"selector": selector, "environmentVariables": SECURE}
    )
    assert workload(control_plane(), gateway_api(), by_object, name="edge").metrics.merged == 15092
    by_mesh = control_plane(mesh={"defaultConfig": {"proxyMetadata": SECURE}})
    assert workload(by_mesh, gateway_api(), name="edge").metrics.merged == 15092


def test_class_defaults_come_before_the_gateways_own_overlay() -> None:
    """The class's ConfigMap counts, and the Gateway's own overrides it."""
    patch = {
        "spec": {
            "template": {
                "spec": {"containers": [{"name": "istio-proxy", "env": env({"A": "class", "B": "class"})}]}
            }
        }
    }
    defaults = overlay(patch, "class-defaults", "istio-system")
    defaults["metadata"]["labels"] = {"gateway.istio.io/defaults-for-class": "istio"}
    own = copy.deepcopy(patch)
    own["spec"]["template"]["spec"]["containers"][0]["env"] = env({"B": "own"})
    found = workload(
        control_plane(), defaults, overlay(own), gateway_api(infrastructure=PARAMETERS), name="edge"
    )
    assert dict(found.env) == {"A": "class", "B": "own"}


def test_hardening_needs_both_settings() -> None:
    """15090 by proxyMetadata, 15020 by the environment: injected proxies get both, others must set both."""
    assert workload(
        control_plane(), INJECTED, deployment(annotations=proxy_config(LOCALHOST_ONLY))
    ).metrics.hardened
    by_env = workload(control_plane(), classic_gateway(variables=LOCALHOST_ONLY), name="istio-ingressgateway")
    assert (by_env.metrics.hardened, by_env.metrics.half_hardened) == (False, "15090")
    by_note = workload(
        control_plane(),
        classic_gateway(annotations=proxy_config(LOCALHOST_ONLY)),
        name="istio-ingressgateway",
    )
    assert (by_note.metrics.hardened, by_note.metrics.half_hardened) == (False, "15020")
    both = classic_gateway(variables=LOCALHOST_ONLY, annotations=proxy_config(LOCALHOST_ONLY))
    assert workload(control_plane(), both, name="istio-ingressgateway").metrics.hardened
    old = workload(control_plane("1.21.6"), INJECTED, deployment(annotations=proxy_config(LOCALHOST_ONLY)))
    assert not old.metrics.hardened


def test_interception() -> None:
    """Ports that are excluded, included, or not captured at all."""
    assert workload(INJECTED, deployment()).interception.captured
    nothing = deployment(annotations={"traffic.sidecar.istio.io/includeInboundPorts": ""})
    assert not workload(INJECTED, nothing).interception.captured
    none = deployment(annotations={"sidecar.istio.io/interceptionMode": "NONE"})
    assert not workload(INJECTED, none).interception.captured
    some = deployment(annotations={"traffic.sidecar.istio.io/includeInboundPorts": "8080, 9090"})
    assert workload(INJECTED, some).interception.include == ("8080", "9090")
    excluded = deployment(annotations={"traffic.sidecar.istio.io/excludeInboundPorts": "15091,15092"})
    assert workload(INJECTED, excluded).interception.exclude == ("15091", "15092")


def test_excluded_ports_of_the_mesh() -> None:
    """Without an annotation the injector's own value counts."""
    values = {"global": {"tag": "1.31.0", "proxy": {"excludeInboundPorts": "15092"}}}
    assert workload(control_plane(values=values), INJECTED, deployment()).interception.exclude == ("15092",)


# mTLS


def test_mtls_modes() -> None:
    """Port, then workload, namespace, mesh, then PERMISSIVE; the oldest policy of a kind is in force."""
    app = [INJECTED, deployment()]
    assert workload(app).mtls.default == "PERMISSIVE"
    assert workload(app, peer_authentication("STRICT")).mtls.default == "STRICT"
    wide = [peer_authentication("STRICT"), peer_authentication("DISABLE", "default")]
    assert workload(app, wide).mtls.default == "DISABLE"
    one = peer_authentication("", "default", name="one", app="httpbin", p15091="STRICT")
    found = workload(app, wide, one).mtls
    assert (found.default, found.of(15091), found.of(8080)) == ("DISABLE", "STRICT", "DISABLE")
    newer = peer_authentication("PERMISSIVE", "default", name="a-newer", app="httpbin")
    newer["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
    one["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert workload(app, newer, one).mtls.of(15091) == "STRICT"


def test_selecting_policy_of_the_root_namespace_is_ignored() -> None:
    """Istio ignores it."""
    policy = peer_authentication("STRICT", app="httpbin")
    assert workload(INJECTED, deployment(), policy).mtls.default == "PERMISSIVE"


@pytest.mark.parametrize(
    ("name", "extra", "protocol"),
    [
        ("http", {}, "http"), ("http-metrics", {}, "http"), ("grpc-web", {}, "http"), ("tcp", {}, "tcp"),
        ("metrics", {}, "auto"), ("", {}, "auto"), ("metrics", {"appProtocol": "http"}, "http"),
        ("http", {"appProtocol": "tcp"}, "tcp"), ("https", {}, "tcp"),
        ("x", {"appProtocol": "kubernetes.io/h2c"}, "http"),
    ],
)  # fmt: skip
def test_the_protocol_of_a_port_is_its_services(name: str, extra: dict[str, str], protocol: str) -> None:
    """The Service port's name before the dash, or appProtocol, says how Istio treats the port."""
    found = workload(INJECTED, deployment(), service(port_name=name, **extra))
    assert only(found.container_ports).protocol == protocol


# Modes


def test_legacy_of_sidecar_and_gateway() -> None:
    """A Sidecar's ingress, and a Gateway with ISTIO_MUTUAL, that lead to the proxy's metrics are legacy."""
    found = {each.name: each for each in observed(legacy()).workloads}
    assert (found["httpbin"].metrics.mode, found["httpbin"].metrics.listening) == ("legacy", (15091,))
    assert found["istio-ingressgateway"].metrics.mode == "legacy"


BOOTSTRAP = {
    "static_resources": {
        "listeners": [
            {
                "name": "meshscrape_secure_merged_metrics_15092",
                "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15092}},
            }
        ]
    }
}


def override(name: str = "boot", data: Any = None) -> Object:
    text = json.dumps(BOOTSTRAP if data is None else data)
    return config_map(name, {"custom_bootstrap.json": text}, namespace="default")


def test_bootstrap_by_annotation() -> None:
    """The ConfigMap's listeners are the ports that are served."""
    app = deployment(annotations={"sidecar.istio.io/bootstrapOverride": "boot"})
    found = workload(control_plane("1.29.2"), INJECTED, app, override())
    assert (found.metrics.mode, found.metrics.listening, found.bootstrap_override) == (
        "bootstrap",
        (15092,),
        "boot",
    )


def test_bootstrap_by_environment_and_mount() -> None:
    """Proxies that nothing injects take the file that their own variable names."""
    gateway = classic_gateway(variables={"ISTIO_BOOTSTRAP_OVERRIDE": "/etc/x/custom_bootstrap.json"})
    pod = gateway["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "x", "configMap": {"name": "boot"}}]
    pod["containers"][0]["volumeMounts"] = [{"name": "x", "mountPath": "/etc/x/"}]
    own = override()
    own["metadata"]["namespace"] = "istio-system"
    found = workload(control_plane(), gateway, own, name="istio-ingressgateway")
    assert (found.metrics.mode, found.metrics.listening) == ("bootstrap", (15092,))


def test_several_modes_at_once_are_mixed() -> None:
    """Native beside bootstrap is mixed: one of them is to go."""
    metadata = {"ENVOY_SECURE_METRICS_PORT": "15091"}
    app = deployment(annotations={**proxy_config(metadata), "sidecar.istio.io/bootstrapOverride": "boot"})
    assert workload(control_plane(), INJECTED, app, override()).metrics.mode == "mixed"


# What still runs as before


def test_pods_with_the_current_configuration_are_not_stale() -> None:
    """Pods made from the template as it is are current."""
    assert workload(secured()).stale == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (proxy_config(SECURE), "secure port off instead of 15092"),
        (proxy_config(LOCALHOST_ONLY), "plaintext ports are open"),
        ({EXCLUDE: "15092"}, f"annotation {EXCLUDE}"),
        ({"prometheus.istio.io/secure-port": "15092"}, "annotation prometheus.istio.io/secure-port"),
        (proxy_config(concurrency=2), f"annotation {CONFIG}"),
    ],
)  # fmt: skip
def test_a_changed_annotation_makes_pods_stale(change: dict[str, str], reason: str) -> None:
    """What the template says now and the pod does not run is named."""
    app = deployment()
    pod = pod_of(app)
    app["spec"]["template"]["metadata"]["annotations"] = change
    found = workload(control_plane(), INJECTED, app, pod)
    assert found.stale == (pod["metadata"]["name"],)
    assert reason in only(found.running).differs


def test_annotations_for_the_cni_plugin_make_no_pod_stale() -> None:
    """With Istio's CNI plugin pods carry the ports of interception, the agent's own among them."""
    app = deployment(annotations={EXCLUDE: "15091,15092"})
    written = {EXCLUDE: "15091,15092,15020", INCLUDE: "*", "sidecar.istio.io/interceptionMode": "REDIRECT"}
    assert workload(control_plane(), INJECTED, app, pod_of(app, annotations=written)).stale == ()
    other = pod_of(app, annotations={**written, EXCLUDE: "15020"})
    assert workload(control_plane(), INJECTED, app, other).stale != ()
    plain = deployment()
    assert workload(control_plane(), INJECTED, plain, pod_of(plain, annotations=written)).stale == ()


def test_pods_from_before_injection() -> None:
    """A pod without a proxy in a namespace that injects by now is stale."""
    app = deployment()
    found = workload(INJECTED, app, pod_of(app, injected=False))
    assert only(found.running).differs == ("has no proxy",)


def test_pods_of_an_older_replica_set() -> None:
    """A pod of the ReplicaSet before is stale whatever it looks like."""
    app = deployment()
    old, new = pod_of(app, name="old"), pod_of(app, name="new")
    old["metadata"]["ownerReferences"][0]["name"] = "httpbin-1"
    sets = [
        {
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": "default",
                "annotations": {"deployment.kubernetes.io/revision": revision},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "Deployment", "name": "httpbin", "controller": True}
                ],
            },
            "spec": {"template": app["spec"]["template"]},
        }
        for name, revision in (("httpbin-1", "9"), ("httpbin-5d8f6c7b9", "10"))
    ]  # fmt: skip
    found = workload(control_plane(), INJECTED, app, old, new, sets)
    assert found.stale == ("old",)


def test_finished_pods_are_not_stale() -> None:
    """A pod that has ended runs nothing."""
    app = deployment()
    assert workload(INJECTED, app, pod_of(app, injected=False, phase="Succeeded")).stale == ()


def test_asm_gateways_take_their_settings_from_their_object() -> None:
    """spec.env and spec.podAnnotations of the IstioGateway decide, not the Deployment made of it."""
    parts = asm()
    gateway = only(each for each in parts if each["kind"] == "IstioGateway")
    gateway["spec"]["env"] = env(SECURE)
    gateway["spec"]["podAnnotations"] = {"prometheus.istio.io/secure-port": "15092"}
    found = workload(parts, name="istio-ingressgateway")
    assert (found.kind, found.metrics.merged, found.metrics.announced) == ("asm-gateway", 15092, "15092")
    # The version is the proxy's own, 1.18: it does not know the port.
    assert found.metrics.mode == "none"


def test_own_proxy_container_is_not_manual_injection() -> None:
    """`image: auto` is for the webhook to fill in."""
    found = workload(INJECTED, deployment(proxy={"name": "istio-proxy", "image": "auto"}))
    assert found.injection.by == "namespace-label"
    whole = workload(INJECTED, deployment(proxy=proxy_container("1.31.0")))
    assert whole.injection.by == "manual"
