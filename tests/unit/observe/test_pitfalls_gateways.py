"""Pitfalls of gateways that a controller renders, and of what gateways expose."""

from __future__ import annotations

from typing import Any

import pytest

from support.examples import asm
from support.objects import (
    PARAMETERS,
    SECURE,
    config_map,
    control_plane,
    env,
    gateway_api,
    managed_deployment,
    only,
    pitfalls,
    proxy_config,
    secure_overlay,
    service,
)

LOAD_BALANCER = {"service.beta.kubernetes.io/aws-load-balancer-type": "nlb"}


def test_gateway_infrastructure_proxy_config() -> None:
    """The settings do not become environment, in the infrastructure or on the Gateway itself."""
    code = "gateway-infrastructure-proxy-config"
    infrastructure = gateway_api(infrastructure={"annotations": proxy_config(SECURE)})
    assert "parametersRef" in only(pitfalls(code, infrastructure)).remedy
    assert only(pitfalls(code, gateway_api(annotations=proxy_config(SECURE)))).severity == "error"
    assert pitfalls(code, gateway_api(infrastructure={"annotations": proxy_config({"A": "b"})})) == []
    assert pitfalls(code, gateway_api(infrastructure=PARAMETERS), secure_overlay()) == []


@pytest.mark.parametrize("annotations", [{}, {"x": "y"}])
def test_gateway_annotations_dropped(annotations: dict[str, str]) -> None:
    """infrastructure.annotations, even an empty one, stops the copying of the Gateway's own."""
    code = "gateway-annotations-dropped"
    lost = gateway_api(annotations=LOAD_BALANCER, infrastructure={"annotations": annotations})
    assert "aws-load-balancer-type" in only(pitfalls(code, lost)).text
    repeated = gateway_api(
        annotations=LOAD_BALANCER, infrastructure={"annotations": annotations | LOAD_BALANCER}
    )
    assert pitfalls(code, repeated) == []
    assert pitfalls(code, gateway_api(annotations=LOAD_BALANCER, infrastructure=PARAMETERS)) == []


def test_annotations_that_are_read_from_the_gateway_itself_are_not_lost() -> None:
    """Istio's own on the Gateway count whatever the infrastructure says."""
    own = {"networking.istio.io/service-type": "ClusterIP", "kubectl.kubernetes.io/x": "y"}
    gateway = gateway_api(annotations=own, infrastructure={"annotations": {}})
    assert pitfalls("gateway-annotations-dropped", gateway) == []


def test_gateway_parameters_missing() -> None:
    """A reference to nothing, or to another kind, stops the rendering."""
    code = "gateway-parameters-missing"
    assert only(pitfalls(code, gateway_api(infrastructure=PARAMETERS)))
    other = {"parametersRef": {"group": "", "kind": "Secret", "name": "edge-options"}}
    assert only(pitfalls(code, gateway_api(infrastructure=other), secure_overlay()))
    assert pitfalls(code, gateway_api(infrastructure=PARAMETERS), secure_overlay()) == []


@pytest.mark.parametrize("data", [{"deploymentt": "spec: {}"}, {"deployment": "a: ["}])
def test_gateway_parameters_unusable(data: dict[str, str]) -> None:
    """A key or a patch that istiod cannot use stops the rendering of the whole Gateway."""
    code = "gateway-parameters-unusable"
    own = config_map("edge-options", data, namespace="default")
    assert next(iter(data)) in only(pitfalls(code, gateway_api(infrastructure=PARAMETERS), own)).text
    assert pitfalls(code, gateway_api(infrastructure=PARAMETERS), secure_overlay()) == []


def test_gateway_parameters_unsupported() -> None:
    """Before istiod 1.26 the reference does not exist."""
    parts: list[Any] = [gateway_api(infrastructure=PARAMETERS), secure_overlay()]
    code = "gateway-parameters-unsupported"
    assert "ProxyConfig" in only(pitfalls(code, *parts, control_plane("1.25.3"))).remedy
    assert pitfalls(code, *parts, control_plane("1.26.0")) == []


def test_managed_deployment_patched() -> None:
    """A setting on a managed Deployment that its Gateway does not give is reconciled away."""
    gateway = gateway_api()
    patched = managed_deployment(gateway, variables=SECURE)
    code = "managed-deployment-patched"
    assert "parametersRef" in only(pitfalls(code, control_plane(), gateway, patched)).remedy
    assert pitfalls(code, control_plane(), gateway, managed_deployment(gateway)) == []
    proper = gateway_api(infrastructure=PARAMETERS)
    assert (
        pitfalls(
            code, control_plane(), proper, managed_deployment(proper, variables=SECURE), secure_overlay()
        )
        == []
    )


def test_a_patched_deployment_of_an_istio_gateway() -> None:
    """ASM owns it as well: spec.env is the place."""
    parts = asm()
    rendered = only(each for each in parts if each["metadata"]["name"] == "istio-ingressgateway")
    rendered["spec"]["template"]["spec"]["containers"][0]["env"] += env(SECURE)
    assert "spec.env" in only(pitfalls("managed-deployment-patched", parts)).remedy
    assert pitfalls("managed-deployment-patched", asm()) == []


def test_agentgateway() -> None:
    """A class without Envoy is reported and gets no plan."""
    assert only(pitfalls("agentgateway", gateway_api(gateway_class="istio-agentgateway")))
    assert pitfalls("agentgateway", gateway_api()) == []


@pytest.mark.parametrize("port", [15020, 15090])
def test_metrics_port_exposed(port: int) -> None:
    """A load balancer or node port that leads to a plaintext metrics port is found, by number or target."""
    exposed = service("gateway", target=port)
    for kind in ("LoadBalancer", "NodePort"):
        exposed["spec"]["type"] = kind
        assert str(port) in only(pitfalls("metrics-port-exposed", exposed)).text
    exposed["spec"]["type"] = "ClusterIP"
    assert pitfalls("metrics-port-exposed", exposed) == []


def test_metrics_port_exposed_by_asm() -> None:
    """The default example of ASM's IstioGateway exposes 15020."""
    assert only(pitfalls("metrics-port-exposed", asm())).ref.kind == "IstioGateway"  # type: ignore[union-attr]
