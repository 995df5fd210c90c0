"""From manifests to a mesh."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio.fields import Document, load_documents
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.istio.settings import InboundPort
from meshscrape.kube.mesh import parse_mesh
from meshscrape.kube.mesh_spec import (
    Container,
    ContainerPortSpec,
    Gateway,
    MeshSpec,
    Route,
    agent_environment,
)
from support.manifest import MANIFEST


def mesh(manifest: str = MANIFEST) -> MeshSpec:
    """The mesh of a manifest."""
    return parse_mesh(load_documents(manifest, "m.yaml"))


def line(text: str) -> int:
    """The line of MANIFEST where `text` is."""
    return MANIFEST[: MANIFEST.index(text)].count("\n") + 1


def test_a_sidecar_is_read_from_its_deployment() -> None:
    """Identity, containers with their local commands, ports with their modes, settings, place."""
    web = mesh().workloads[0]
    assert (web.namespace, web.name, web.service_account, web.kind, web.role) == (
        "shop", "web", "web", "sidecar", "sidecar",
    )  # fmt: skip
    assert web.containers == (
        Container(
            "web",
            "serve --bind $(INSIDE_ADDRESS):9080",
            (("COLOUR", "blue"), ("EMPTY", "")),
            (ContainerPortSpec("http", 9080), ContainerPortSpec("", 9100)),
        ),
    )
    assert web.inbound == (InboundPort(9080, "STRICT", "http"), InboundPort(9100, "STRICT"))
    assert web.annotations.sources == (ScrapeSource(9080),)
    assert str(web.spiffe_id("td.example")) == "spiffe://td.example/ns/shop/sa/web"
    assert web.manifest_where == f"m.yaml:{line('apiVersion: apps/v1')}: Deployment shop/web"


def test_a_gateway_is_read_from_its_label_or_template() -> None:
    """Its own container's environment configures its agent; it has no application."""
    edge = mesh().workloads[1]
    assert (edge.namespace, edge.service_account, edge.kind, edge.role) == (
        "default", "default", "gateway", "router",
    )  # fmt: skip
    assert edge.containers == ()
    assert edge.pod_env == {"ENVOY_SECURE_METRICS_PORT": "15091"}
    assert edge.inbound == (InboundPort(8080, "DISABLE", "http"),)


def test_a_workload_that_captures_nothing_has_credentials_alone() -> None:
    """Its ports are plain text whatever the policies say: no Envoy is before them."""
    prometheus = mesh().workloads[2]
    assert prometheus.kind == "credentials"
    assert prometheus.inbound == (InboundPort(9090, "DISABLE", "web"),)
    by_annotation = MANIFEST.replace(
        "proxy.istio.io/config: |\n"
        '          proxyMetadata: {INBOUND_CAPTURE_PORTS: "", OUTPUT_CERTS: /certs}',
        'traffic.sidecar.istio.io/includeInboundPorts: ""',
    )
    assert mesh(by_annotation).workloads[2].kind == "credentials"


def test_routes_lead_to_workloads() -> None:
    """Through a Service and its named target port, or by the workload's own name; in their order."""
    found = mesh()
    routes = (Route("/direct", "shop", "web", 9100), Route("/", "shop", "web", 9080))
    assert found.gateways == (Gateway("default", "edge", 8080, routes),)
    web, edge, _ = found.workloads
    assert (found.routes_of(edge), found.routes_of(web), found.routes) == (routes, (), routes)
    assert found.workload("shop", "web") is web
    assert found.workload("shop", "other") is None


def test_the_agents_environment_is_what_the_injector_would_write() -> None:
    """proxyMetadata, identity, scrape annotations and ports; the place where it runs adds the rest."""
    web, edge, prometheus = mesh().workloads
    assert agent_environment(web, "cluster.local") == {
        "ENVOY_SECURE_MERGED_METRICS_PORT": "15092",
        "SECRET_TTL": "1h",
        "TRUST_DOMAIN": "cluster.local",
        "POD_NAMESPACE": "shop",
        "SERVICE_ACCOUNT": "web",
        "ISTIO_META_WORKLOAD_NAME": "web",
        "ISTIO_PROMETHEUS_ANNOTATIONS": '{"scrape": "true", "path": "/metrics", "port": "9080"}',
        "MESHSCRAPE_INBOUND": '[{"port": 9080, "mode": "STRICT", "name": "http"}, '
        '{"port": 9100, "mode": "STRICT", "name": ""}]',
    }
    assert "ISTIO_PROMETHEUS_ANNOTATIONS" not in agent_environment(edge, "cluster.local")
    credentials = agent_environment(prometheus, "cluster.local")
    assert credentials["INBOUND_CAPTURE_PORTS"] == ""
    assert "MESHSCRAPE_INBOUND" not in credentials


def test_ports_that_are_not_captured_stay_plain_text() -> None:
    """As in Istio, where their connections never reach Envoy."""
    excluded = MANIFEST.replace(
        'prometheus.io/scrape: "true"', 'traffic.sidecar.istio.io/excludeInboundPorts: "9100"'
    )
    assert [item.mode for item in mesh(excluded).workloads[0].inbound] == ["STRICT", "DISABLE"]
    included = MANIFEST.replace(
        'prometheus.io/scrape: "true"', 'traffic.sidecar.istio.io/includeInboundPorts: "9100"'
    )
    assert [item.mode for item in mesh(included).workloads[0].inbound] == ["DISABLE", "STRICT"]


def test_the_status_port_of_proxy_config_moves_the_merged_port() -> None:
    """As statusPort does in Istio."""
    moved = MANIFEST.replace("          # settings of the agent\n", "          statusPort: 16020\n")
    assert agent_environment(mesh(moved).workloads[0], "cluster.local")["STATUS_PORT"] == "16020"


def test_a_services_target_port_is_its_port_when_not_said() -> None:
    """As in Kubernetes; the Service of another workload does not matter."""
    same = MANIFEST.replace("port: 80, targetPort: http}", "port: 9080}").replace(
        "{number: 80}", "{number: 9080}"
    )
    assert mesh(same).routes[-1].port == 9080
    with pytest.raises(InputError) as caught:
        mesh(
            same.replace("9080}\n  - {name: dns", "81}\n  - {name: dns").replace(
                "{number: 9080}", "{number: 81}"
            )
        )
    assert caught.value.code == "no-such-port"
    other = "{metadata: {name: o, namespace: shop}, spec: {selector: {app: o}, ports: [{port: 1}]}}"
    assert mesh(MANIFEST + "---\n{apiVersion: v1, kind: Service, " + other[1:]).workloads


def test_the_older_name_of_the_service_account_counts_too() -> None:
    """Kubernetes calls it deprecated and honours it."""
    older = MANIFEST.replace("serviceAccountName: web", "serviceAccount: web")
    assert mesh(older).workloads[0].service_account == "web"


def test_commands_of_several_containers_are_told_apart_by_name() -> None:
    """One annotation per container."""
    several = MANIFEST.replace("local-command: serve", "local-command.web: serve").replace(
        "      - name: web\n", "      - name: helper\n      - name: web\n"
    )
    containers = mesh(several).workloads[0].containers
    assert [(c.name, c.command_line) for c in containers] == [
        ("helper", None), ("web", "serve --bind $(INSIDE_ADDRESS):9080"),
    ]  # fmt: skip


def test_annotations_of_the_deployment_itself_do_nothing_and_are_refused() -> None:
    """They belong to the pod template; a port thought closed would be open."""
    misplaced = MANIFEST.replace(
        "  name: web\n", "  name: web\n  annotations: {proxy.istio.io/config: ''}\n", 1
    )
    with pytest.raises(InputError) as caught:
        mesh(misplaced)
    assert caught.value.code == "misplaced-annotation"


def test_mesh_without_workloads_is_refused() -> None:
    """Files that declare none are a mistake."""
    with pytest.raises(InputError, match="no workload is declared"):
        mesh("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")


def test_mesh_without_workloads_is_blamed_on_its_file() -> None:
    """The error names the manifest, as no object can be named."""
    with pytest.raises(InputError) as caught:
        parse_mesh([], where="mesh.yaml")
    assert str(caught.value.place) == "mesh.yaml"


def test_the_trust_domain_is_checked() -> None:
    """It is part of every identity."""
    with pytest.raises(InputError, match="not a SPIFFE ID"):
        parse_mesh(load_documents(MANIFEST, "m.yaml"), trust_domain="Not/One")


KUBERNETES_FIELDS = {
    "pod": [
        "activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "dnsConfig", "dnsPolicy",
        "enableServiceLinks", "hostAliases", "hostIPC", "hostNetwork", "hostPID", "hostUsers", "hostname",
        "imagePullSecrets", "nodeName", "nodeSelector", "os", "overhead", "preemptionPolicy", "priority",
        "priorityClassName", "readinessGates", "resourceClaims", "resources", "restartPolicy",
        "runtimeClassName", "schedulerName", "schedulingGates", "securityContext", "setHostnameAsFQDN",
        "shareProcessNamespace", "subdomain", "terminationGracePeriodSeconds", "tolerations",
        "topologySpreadConstraints", "volumes",
    ],
    "container": [
        "args", "command", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe",
        "readinessProbe", "resizePolicy", "resources", "restartPolicy", "securityContext", "startupProbe",
        "stdin", "stdinOnce", "terminationMessagePath", "terminationMessagePolicy", "tty", "volumeDevices",
        "volumeMounts", "workingDir",
    ],
}  # fmt: skip


@pytest.mark.parametrize("level", ["pod", "container"])
def test_ordinary_fields_of_a_pod_are_accepted(level: str) -> None:
    """Everything that Kubernetes knows and the local mesh has no use for."""
    documents = load_documents(MANIFEST, "m.yaml")
    data: Any = copy.deepcopy(documents[3].data)
    pod = data["spec"]["template"]["spec"]
    target = pod if level == "pod" else pod["containers"][0]
    target |= {name: {} for name in KUBERNETES_FIELDS[level]}
    documents[3] = Document(data, documents[3].where)
    assert parse_mesh(documents).workloads[0].name == "web"


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in nested data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in paths_of(item, (*path, key)))]


OBJECTS = list(yaml.safe_load_all(MANIFEST))
PLACES = [(index, *path) for index, data in enumerate(OBJECTS) for path in paths_of(data) if path]
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["*", "web"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "port", "number", "mode", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(place=st.sampled_from(PLACES), value=anything)
def test_any_field_with_any_value_is_a_mesh_or_an_input_error(place: tuple[Any, ...], value: Any) -> None:
    """Whatever somebody writes into a manifest."""
    objects: Any = copy.deepcopy(OBJECTS)
    target = objects
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    try:
        parse_mesh([Document(data, "m.yaml:1") for data in objects])
    except InputError as error:
        assert str(error).startswith("m.yaml:1: ") or "no workload" in str(error)
        assert error.remedy
