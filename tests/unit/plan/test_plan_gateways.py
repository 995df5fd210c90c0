"""Plans for gateways: each kind through the object that owns its pods."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meshscrape.istio.allow_list import parse_scrapers
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    meta,
    own_proxy,
    rendered_gateway,
)
from support.planning import annotations, changed, codes, proxy_config, refs, settled, template

SECURE = "prometheus.istio.io/secure-port"
CONFIG = "proxy.istio.io/config"
PORT = {"name": "ENVOY_SECURE_MERGED_METRICS_PORT", "value": "15092"}
LOCAL = {"name": "METRICS_LOCALHOST_ACCESS_ONLY", "value": "true"}
ALLOW = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus")
# With a scraper named on the command line, hardening need not wait for one among the objects.
NAMED: dict[str, Any] = {"prometheus": "none", "scrapers": ALLOW}


def injected(version: str = "1.31.0", **more: Any) -> list[dict[str, Any]]:
    """A gateway of the chart `istio/gateway`."""
    labels = {"sidecar.istio.io/inject": "true", "istio": "ingressgateway"}
    own = {"inject.istio.io/templates": "gateway"}
    made = own_proxy("gw", labels=labels, annotations=own, **more)
    return [*control_plane(version), injected_namespace(), made]


def classic(version: str = "1.31.0") -> list[dict[str, Any]]:
    """A gateway of istioctl."""
    labels = {"sidecar.istio.io/inject": "false", "istio": "ingressgateway"}
    made = own_proxy("gw", labels=labels, image=f"docker.io/istio/proxyv2:{version}")
    made["metadata"]["labels"] = {"operator.istio.io/component": "IngressGateways"}
    return [*control_plane(version), injected_namespace(), made]


def overlay(plan: Any) -> Any:
    """The pod template in the planned overlay of a Gateway's Deployment."""
    return yaml.safe_load(changed(plan, "ConfigMap")["data"]["deployment"])["spec"]["template"]


def env(container: Any) -> Any:
    return container["env"]


def test_an_injected_gateway_takes_the_annotation() -> None:
    """One annotation sets the environment and 15090's bind address; nothing captures a gateway's ports."""
    plan = settled(cluster(injected()), **NAMED)
    assert proxy_config(plan)["proxyMetadata"] == {PORT["name"]: "15092", LOCAL["name"]: "true"}
    assert "traffic.sidecar.istio.io/excludeInboundPorts" not in annotations(plan)
    assert SECURE not in annotations(plan)


def test_a_classic_gateway_takes_its_environment() -> None:
    """Trap 5: no injector, so env, the announcement by hand, and both places of hardening."""
    plan = settled(cluster(classic()), **NAMED)
    (proxy,) = template(plan)["spec"]["containers"]
    assert env(proxy) == [PORT, LOCAL]
    assert annotations(plan)[SECURE] == "15092"
    assert proxy_config(plan)["proxyMetadata"] == {LOCAL["name"]: "true"}
    assert "chart-takes-back" in codes(plan)


def test_a_gateway_api_gateway_takes_an_overlay() -> None:
    """Trap 4: parametersRef to a ConfigMap; the managed Deployment and infrastructure.annotations stay."""
    objects = [
        *control_plane(),
        injected_namespace(),
        *rendered_gateway(annotations={"cloud/load-balancer": "internal"}),
    ]
    plan = settled(
        cluster(objects),
        **NAMED,
    )
    gateway = changed(plan, "Gateway")
    assert gateway["spec"]["infrastructure"] == {
        "parametersRef": {"group": "", "kind": "ConfigMap", "name": "meshscrape-gw"}
    }
    found = overlay(plan)
    assert found["spec"]["containers"] == [{"name": "istio-proxy", "env": [PORT, LOCAL]}]
    assert found["metadata"]["annotations"][SECURE] == "15092"
    assert yaml.safe_load(found["metadata"]["annotations"][CONFIG]) == {
        "proxyMetadata": {LOCAL["name"]: "true"}
    }
    assert not [each for each in refs(plan) if each[2].startswith("Deployment/")]


def test_the_overlay_comes_before_the_reference() -> None:
    """A Gateway whose ConfigMap is missing is reconciled no more: the ConfigMap is first."""
    plan = settled(cluster(control_plane(), injected_namespace(), rendered_gateway()), **NAMED, harden=False)
    assert [each[2] for each in refs(plan)] == ["ConfigMap/meshscrape-gw", "Gateway/gw"]
    assert [each.restarts for each in plan.changes] == [(), ("Deployment default/gw-istio",)]


def test_a_users_own_overlay_is_kept() -> None:
    """Trap 4: only one parametersRef is possible, so the settings go into its text; comments stay."""
    text = (
        "# replicas\nspec:\n  replicas: 3  # three\n  template:\n    spec:\n      containers:\n"
        "      - name: istio-proxy\n        env:\n        - name: MINE\n          value: x\n"
    )
    own = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("mine"), "data": {"deployment": text}}
    reference = {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "mine"}}
    gateway = rendered_gateway(infrastructure=reference)
    plan = settled(cluster(control_plane(), injected_namespace(), gateway, own), **NAMED, harden=False)
    written = changed(plan, "ConfigMap", "mine")["data"]["deployment"]
    assert written.startswith("# replicas\nspec:\n  replicas: 3  # three\n")
    assert overlay(plan)["spec"]["containers"][0]["env"] == [{"name": "MINE", "value": "x"}, PORT]
    assert [each[2] for each in refs(plan)] == ["ConfigMap/mine"]


def test_an_overlay_that_was_not_given_is_not_guessed() -> None:
    """Without the user's ConfigMap nothing is planned for the Gateway."""
    reference = {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "mine"}}
    gateway = rendered_gateway(infrastructure=reference)
    plan = settled(cluster(control_plane(), injected_namespace(), gateway), **NAMED)
    assert plan.changes == ()
    assert "gateway-parameters-unknown" in codes(plan)


def test_a_gateways_own_proxy_config_survives_the_overlay() -> None:
    """The overlay's annotation replaces what is copied from the Gateway, so that goes into it."""
    gateway, made = rendered_gateway(annotations={CONFIG: "concurrency: 2\n"})
    made["spec"]["template"]["metadata"]["annotations"][CONFIG] = "concurrency: 2\n"
    plan = settled(cluster(control_plane(), injected_namespace(), gateway, made), **NAMED)
    written = yaml.safe_load(overlay(plan)["metadata"]["annotations"][CONFIG])
    assert written == {"concurrency": 2, "proxyMetadata": {LOCAL["name"]: "true"}}


def test_a_waypoint_is_a_managed_gateway() -> None:
    """Trap 13: waypoints take the overlay of their Gateway, too."""
    gateway = rendered_gateway("wp", gateway_class="istio-waypoint")
    plan = settled(cluster(control_plane(), injected_namespace(), gateway), **NAMED, harden=False)
    assert overlay(plan)["spec"]["containers"] == [{"name": "istio-proxy", "env": [PORT]}]
    assert changed(plan, "Gateway")["spec"]["infrastructure"]["parametersRef"]["name"] == "meshscrape-wp"


def test_a_waypoint_has_no_legacy_mode() -> None:
    """Gateway and Sidecar objects do not reach waypoints, so that is refused."""
    gateway = rendered_gateway("wp", gateway_class="istio-waypoint")
    plan = settled(cluster(control_plane("1.30.0"), injected_namespace(), gateway), mode="legacy", **NAMED)
    assert plan.changes == ()
    assert "waypoint-in-legacy" in codes(plan)


class TestBootstrap:
    """The override on gateways."""

    @pytest.mark.parametrize(("version", "by_annotation"), [("1.27.0", True), ("1.26.4", False)])
    def test_injected(self, version: str, by_annotation: bool) -> None:
        """The gateway template knows the annotation from 1.27 on; before, the same is mounted by hand."""
        plan = settled(cluster(injected(version)), mode="bootstrap", **NAMED, harden=False)
        (proxy,) = template(plan)["spec"]["containers"]
        assert ("sidecar.istio.io/bootstrapOverride" in annotations(plan)) is by_annotation
        assert ("volumeMounts" in proxy) is not by_annotation
        assert annotations(plan)[SECURE] == "15092"

    def test_classic(self) -> None:
        """Environment and a mounted file: the agent reads the variable itself."""
        plan = settled(cluster(classic("1.24.0")), mode="bootstrap", **NAMED, harden=False)
        spec = template(plan)["spec"]
        assert env(spec["containers"][0]) == [
            {"name": "ISTIO_BOOTSTRAP_OVERRIDE", "value": "/etc/istio/custom-bootstrap/custom_bootstrap.json"}
        ]
        (mount,) = spec["containers"][0]["volumeMounts"]
        assert mount["mountPath"] == "/etc/istio/custom-bootstrap"
        assert spec["volumes"] == [{"name": mount["name"], "configMap": {"name": "meshscrape-bootstrap"}}]

    def test_gateway_api(self) -> None:
        """Through the overlay, from 1.26 on."""
        plan = settled(
            cluster(control_plane("1.26.0"), injected_namespace(), rendered_gateway()),
            mode="bootstrap",
            **NAMED,
            harden=False,
        )
        data = {
            change.ref.name: change.after["data"]
            for change in plan.changes
            if change.ref.kind == "ConfigMap" and change.after
        }
        spec = yaml.safe_load(data["meshscrape-gw"]["deployment"])["spec"]["template"]["spec"]
        assert spec["volumes"][0]["configMap"] == {"name": "meshscrape-bootstrap"}
        assert "custom_bootstrap.json" in data["meshscrape-bootstrap"]

    def test_an_old_gateway_api_is_refused(self) -> None:
        """Before 1.26 there is no way to give it a volume."""
        gateway, made = rendered_gateway()
        made["spec"]["template"]["spec"]["containers"][0]["image"] = "docker.io/istio/proxyv2:1.25.0"
        objects = cluster(control_plane("1.25.0"), injected_namespace(), gateway, made)
        plan = settled(objects, mode="bootstrap", **NAMED)
        assert plan.changes == ()
        assert "gateway-parameters-too-old" in codes(plan)


class TestLegacy:
    """Gateway, ServiceEntry and VirtualService for gateways before 1.31."""

    def test_the_objects(self) -> None:
        """The documented objects, bound more closely: not exported, this port alone."""
        plan = settled(cluster(injected("1.30.0")), **NAMED, harden=False)
        assert [each[2] for each in refs(plan)] == [
            "ServiceEntry/meshscrape-gateway-admin",
            "AuthorizationPolicy/meshscrape-gw",
            "VirtualService/meshscrape-gw",
            "Gateway/meshscrape-gw",
            "Deployment/gw",
        ]
        assert changed(plan, "ServiceEntry")["spec"]["exportTo"] == ["."]
        (route,) = changed(plan, "VirtualService")["spec"]["http"]
        assert route["match"] == [{"uri": {"prefix": "/stats/prometheus"}, "port": 15091}]
        (server,) = changed(plan, "Gateway")["spec"]["servers"]
        assert server["tls"] == {"mode": "ISTIO_MUTUAL"}
        assert annotations(plan)[SECURE] == "15091"

    def test_gateways_that_serve_different_metrics_share_the_entry(self) -> None:
        """A gateway of Envoy's statistics alone takes the other's port not out of the namespace's entry."""
        inventory = cluster(injected("1.30.0"))
        after = settled(inventory, **NAMED, harden=False).apply(inventory)
        plan = settled(after, **NAMED, harden=False, legacy_source="envoy")
        assert [each[2] for each in refs(plan)] == [
            "ServiceEntry/meshscrape-gateway-admin", "VirtualService/meshscrape-gw",
        ]  # fmt: skip
        ports = changed(plan, "ServiceEntry")["spec"]["ports"]
        assert [each["number"] for each in ports] == [15020, 15090]
        (route,) = changed(plan, "VirtualService")["spec"]["http"]
        assert route["route"][0]["destination"]["port"] == {"number": 15090}
        alone = settled(inventory, **NAMED, harden=False, legacy_source="envoy")
        assert [each["number"] for each in changed(alone, "ServiceEntry")["spec"]["ports"]] == [15090]

    def test_an_older_gateway_api_keeps_its_annotations(self) -> None:
        """Trap 4: setting infrastructure.annotations ends the copying, so the Gateway's own go along."""
        own = {"cloud/load-balancer": "internal"}
        gateway, made = rendered_gateway(annotations=own)
        made["spec"]["template"]["spec"]["containers"][0]["image"] = "docker.io/istio/proxyv2:1.25.0"
        objects = cluster(control_plane("1.25.0"), injected_namespace(), gateway, made)
        plan = settled(objects, **NAMED, harden=False)
        infrastructure = changed(plan, "Gateway", "gw")["spec"]["infrastructure"]
        assert infrastructure["annotations"] == own | {SECURE: "15091"}

    def test_migration_removes_the_documented_objects(self) -> None:
        """Server, route and ServiceEntry of the documentation go; what else is in those objects stays."""
        server = {
            "port": {"number": 15091, "name": "https-metrics", "protocol": "HTTPS"},
            "tls": {"mode": "ISTIO_MUTUAL"}, "hosts": ["*"],
        }  # fmt: skip
        other = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
        admin = {
            "match": [{"uri": {"prefix": "/stats/prometheus"}}],
            "route": [{"destination": {"host": "gateway-admin.local", "port": {"number": 15020}}}],
        }
        app = {"route": [{"destination": {"host": "httpbin"}}]}
        entry = {
            "hosts": ["gateway-admin.local"], "location": "MESH_INTERNAL", "resolution": "STATIC",
            "ports": [{"number": 15020, "name": "http-metrics", "protocol": "HTTP"}],
            "endpoints": [{"address": "127.0.0.1"}],
        }  # fmt: skip
        api = "networking.istio.io/v1"
        objects = [
            *injected("1.31.0"),
            {"apiVersion": api, "kind": "Gateway", "metadata": meta("web", "default"),
             "spec": {"selector": {"istio": "ingressgateway"}, "servers": [other, server]}},
            {"apiVersion": api, "kind": "VirtualService", "metadata": meta("web", "default"),
             "spec": {"hosts": ["*"], "gateways": ["web"], "http": [admin, app]}},
            {"apiVersion": api, "kind": "ServiceEntry", "metadata": meta("gateway-admin", "default"),
             "spec": entry},
        ]  # fmt: skip
        plan = settled(cluster(objects), **NAMED, harden=False)
        assert changed(plan, "Gateway")["spec"]["servers"] == [other]
        assert changed(plan, "VirtualService")["spec"]["http"] == [app]
        assert ("removal", "delete", "ServiceEntry/gateway-admin") in refs(plan)


class TestAsm:
    """Trap 14: Alibaba Cloud Service Mesh."""

    def gateway(self, version: str = "v1.18.0.1-g1a2b3c4-aliyun") -> list[dict[str, Any]]:
        owner = {
            "apiVersion": "istio.alibabacloud.com/v1beta1", "kind": "IstioGateway",
            "metadata": meta("ingressgateway", "istio-system"),
            "spec": {"gatewayType": "ingress", "replicaCount": 1},
        }  # fmt: skip
        made = own_proxy(
            "istio-ingressgateway", namespace="istio-system", labels={"istio": "ingressgateway"},
            image=f"registry-vpc.cn-hangzhou.aliyuncs.com/acs/proxyv2:{version}",
        )  # fmt: skip
        return [owner, made]

    def test_the_gateways_settings_go_into_its_own_object(self) -> None:
        """spec.env and spec.podAnnotations, said to be never run here; the Deployment stays."""
        plan = settled(cluster(self.gateway()), mode="bootstrap", **NAMED, harden=False)
        spec = changed(plan, "IstioGateway")["spec"]
        assert spec["env"][0]["name"] == "ISTIO_BOOTSTRAP_OVERRIDE"
        assert spec["configVolumes"] == [
            {
                "name": "meshscrape-bootstrap",
                "configMapName": "meshscrape-bootstrap",
                "mountPath": "/etc/istio/custom-bootstrap",
            }
        ]
        assert spec["podAnnotations"][SECURE] == "15092"
        assert "asm-untested" in codes(plan)
        assert not [each for each in refs(plan) if each[2].startswith("Deployment/")]

    def test_legacy_is_the_default_for_its_versions(self) -> None:
        """v1.18.0.1 is 1.18: legacy, and Istio's objects belong to ASM's API server."""
        plan = settled(cluster(self.gateway()), **NAMED, harden=False)
        assert set(plan.modes.values()) == {"legacy"}
        assert plan.apart


@pytest.mark.parametrize("version", ["1.22.0", "1.24.1", "1.25.3"])
def test_gateway_without_overlay_support_stays_open_and_the_rest_is_hardened(version: str) -> None:
    """Nothing can carry the setting to its proxy: that is said, and stops no other part of the plan."""
    edge = rendered_gateway()
    edge[1]["spec"]["template"]["spec"]["containers"][0]["image"] = f"docker.io/istio/proxyv2:{version}"
    objects = cluster(control_plane(version), injected_namespace(), deployment(), edge)
    plan = settled(objects, **NAMED)
    hardened = [change.ref for change in plan.changes if change.phase == "hardening"]
    assert [each.name for each in hardened] == ["httpbin"]
    assert "gateway-parameters-too-old" in codes(plan)
