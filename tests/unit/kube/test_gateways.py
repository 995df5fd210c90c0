"""Gateways: where they listen, and what is behind their routes."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.kube.mesh import parse_mesh
from meshscrape.kube.mesh_spec import Gateway, Route

BASE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: edge, namespace: istio-system}
spec:
  template:
    metadata: {labels: {istio: ingressgateway, app: edge}}
    spec: {containers: [{name: istio-proxy, image: auto}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, ports: [{containerPort: 9080}]}]
"""
GATEWAY = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: NAME}
spec:
  selector: {app: edge}
  servers: [{port: {number: PORT, protocol: HTTP}, hosts: ["*/*"]}]
"""
VIRTUAL_SERVICE = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: NAME}
spec:
  hosts: ["*"]
  gateways: [GATEWAYS]
  http: [{match: [{uri: {prefix: PREFIX}}], route: [{destination: {host: HOST}}]}]
"""
SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: istio-system}
spec: {selector: {app: edge}, ports: [{port: 80, targetPort: 8080}]}
"""


def gateway(name: str = "a", port: int = 8080) -> str:
    """A Gateway."""
    return GATEWAY.replace("NAME", name).replace("PORT", str(port))


def virtual(name: str = "v", gateways: str = "a", prefix: str = "/", host: str = "web") -> str:
    """A VirtualService with one route."""
    text = VIRTUAL_SERVICE.replace("NAME", name).replace("GATEWAYS", gateways)
    return text.replace("PREFIX", prefix).replace("HOST", host)


def served(*objects: str) -> tuple[Gateway, ...]:
    """What the gateways of the base and `objects` serve."""
    return parse_mesh(load_documents("".join([BASE, *objects]), "m.yaml")).gateways


@pytest.mark.parametrize("host", ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"])
def test_a_host_has_four_spellings(host: str) -> None:
    """As Kubernetes' DNS; a single port needs no number."""
    assert served(gateway(), virtual(host=host)) == (
        Gateway("istio-system", "edge", 8080, (Route("/", "default", "web", 9080),)),
    )


def test_a_service_before_the_gateway_translates_its_port() -> None:
    """As in Istio: the Gateway names the Service's port, the pod listens on the target port."""
    assert served(gateway(port=80), SERVICE)[0].port == 8080
    assert served(gateway(port=8443), SERVICE)[0].port == 8443
    assert served(gateway(port=80), SERVICE.replace("{app: edge}", "{app: other}"))[0].port == 80


def test_gateways_and_virtual_services_combine() -> None:
    """Two Gateways on one workload and port; one VirtualService for both of them and one for the second."""
    (found,) = served(
        gateway("a"), gateway("b"), virtual("v", "b", "/b"), virtual("w", "a, b", "/x/"), virtual("x", "b")
    )
    assert [route.prefix for route in found.routes] == ["/x/", "/b", "/"]


def test_gateway_is_recognised_by_its_label_or_its_template() -> None:
    """Either is enough; without both it is a sidecar, and serves no Gateway."""
    neither = BASE.replace("istio: ingressgateway, ", "")
    template = neither.replace("{labels", "{annotations: {inject.istio.io/templates: gateway}, labels", 1)
    for base in (BASE, template):
        assert parse_mesh(load_documents(base + gateway(), "m.yaml")).workloads[0].kind == "gateway"
    with pytest.raises(InputError) as caught:
        parse_mesh(load_documents(neither + gateway(), "m.yaml"))
    assert caught.value.code == "selects-nothing"


def test_container_ports_of_a_gateway_are_not_where_it_listens() -> None:
    """Gateway objects say that; charts declare other ports beside them."""
    base = BASE.replace("image: auto", "image: auto}, {name: other, ports: [{containerPort: 7000}]")
    mesh = parse_mesh(load_documents(base + gateway(), "m.yaml"))
    assert [item.port for item in mesh.workloads[0].inbound] == [8080]
    assert parse_mesh(load_documents(base, "m.yaml")).workloads[0].inbound == ()


def test_gateway_without_routes_listens_too() -> None:
    """And a gateway workload without a Gateway listens nowhere."""
    assert served(gateway()) == (Gateway("istio-system", "edge", 8080, ()),)
    assert served() == ()


@pytest.mark.parametrize(
    ("objects", "code"),
    [
        ([gateway("a", 8080), gateway("b", 8081)], "two-ports"),
        ([gateway(), virtual(gateways="mesh")], "no-gateway"),
        ([gateway(), virtual(prefix="/"), virtual("w", prefix="/x")], "route-never-taken"),
        ([gateway(), virtual(prefix="/x"), virtual("w", prefix="/x")], "route-never-taken"),
        ([gateway(), virtual(host="edge.istio-system")], "no-mutual-tls"),
        ([gateway(), virtual(host="web.default.svc.example.org")], "unknown-host"),
        ([gateway().replace("servers: [", "servers: [{}, ")], "one-server"),
        ([gateway().replace("{app: edge}", "{}")], "missing"),
        ([gateway(), virtual().replace("route: [", "route: [{destination: {host: x}}, ")], "one-destination"),
        ([gateway(), virtual().replace("http: [", "tcp: [")], "unknown-field"),
        ([gateway(), virtual().partition("  http:")[0]], "missing"),
        ([gateway().replace("servers: [", "servers: {a: ").replace("]}]", "]}}")], "not-a-list"),
        ([gateway(), virtual().replace("uri: {prefix: /}", "uri: {}")], "missing"),
    ],
)
def test_unsupported_gateway_features_are_refused(objects: list[str], code: str) -> None:
    """Nothing is half understood: a route would lead elsewhere than in Istio."""
    with pytest.raises(InputError) as caught:
        served(*objects)
    assert caught.value.code == code
    assert caught.value.place.file == "m.yaml" and caught.value.place.line
