"""Every mistake in a manifest is one line with its place."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.kube.mesh import parse_mesh
from meshscrape.kube.mesh_spec import MeshSpec
from support.manifest import MANIFEST


def mesh(manifest: str) -> MeshSpec:
    """The mesh of a manifest."""
    return parse_mesh(load_documents(manifest, "m.yaml"))


def line(text: str) -> int:
    """The line of MANIFEST where `text` is."""
    return MANIFEST[: MANIFEST.index(text)].count("\n") + 1


# What is replaced, by what, where the mistake then is (a text of the changed manifest), what is said of it.
MISTAKES = [
    ("kind: Namespace", "kind: ConfigMap",
     "kind: ConfigMap", "kind 'ConfigMap' is not supported; supported are"),
    ("kind: Namespace", "kind: Deploymnt", "kind: Deploymnt", "did you mean Deployment?"),
    ("kind: Namespace", "kind:", "kind:", "missing"),
    ("apiVersion: apps/v1", "apiVersion: v1", "apiVersion: v1\nkind: Deployment", "write apps/v1"),
    ("metadata: {name: shop}", "metadata: {name: Shop}",
     "metadata: {name: Shop}", "cannot name a Kubernetes"),
    ("metadata: {name: shop}", "metadata: {}", "metadata: {}", "metadata.name: missing"),
    ("metadata: {name: shop}", "metadata: shop", "metadata: shop", "metadata: not a mapping"),
    ("metadata: {name: edge}", "metadata: {nam: edge}", "metadata: {nam:", "did you mean name?"),
    ("metadata: {name: edge}", "metadata: {name: edge, namespace: a.b}",
     "metadata: {name: edge", "a namespace"),
    ("metadata: {name: web-service, namespace: shop}", "metadata: {name: 1}",
     "metadata: {name: 1", "quote it"),
    ("metadata: {name: prometheus, namespace: istio-system}",
     "metadata: {name: edge}",
     "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: edge}\nspec:\n  template:\n    metadata:\n"
     "      anno",
     "declared already at m.yaml:"),
    ("replicas: 1", "replicas: 2", "replicas: 2", "one pod per workload"),
    ("replicas: 1", "replicas: 0", "replicas: 0", "one pod per workload"),
    ("replicas: 1", "replicas: true", "replicas: true", "one pod per workload"),
    ("replicas: 1", "replica: 1", "replica: 1", "did you mean replicas?"),
    ("matchLabels: {app: web}", "matchLabels: {app: other}",
     "selector: {matchLabels", "does not match the labels"),
    ("version: v1}", "version: 1}",
     "labels: {app: web", "spec.template.metadata.labels.version: 1 is not a string"),
    ('scrape: "true"', "scrape: true", "prometheus.io/scrape", "True is not a string; quote it"),
    ('port: "9080"', 'port: "15090"', "prometheus.io/port", "reserved for Envoy's statistics"),
    ("prometheus.istio.io/secure-port", "prometheus.istio.io/secure-prot",
     "prometheus.istio.io/secure-prot", "did you mean prometheus.istio.io/secure-port?"),
    ('secure-port: "15092"',
     'secure-port: "15091"',
     "prometheus.istio.io/secure-port",
     "port 15091 is announced, but ENVOY_SECURE_MERGED_METRICS_PORT is 15092"),
    ('secure-port: "15092"',
     'secure-envoy-port: "15091"',
     "prometheus.istio.io/secure-envoy-port",
     "port 15091 is announced, but ENVOY_SECURE_METRICS_PORT is off"),
    ("local-command: serve", "local-command: serve '", "meshscrape.io/local-command", "not a command line"),
    ("local-command: serve", "local-command.wbe: serve",
     "meshscrape.io/local-command.wbe", "no container is called"),
    ("      - name: web\n", "      - name: helper\n      - name: web\n",
     "meshscrape.io/local-command", "the pod has 2 containers"),
    ("      - name: web\n", "      - name: web\n      - name: web\n",
     "- name: web", "two containers have this name"),
    ("SECRET_TTL: 1h", "SECRET_TTL: 1d",
     "SECRET_TTL", "environment variable SECRET_TTL: '1d' is not a duration"),
    ("SECRET_TTL: 1h", "SECRET_TLL: 1h", "SECRET_TLL", "did you mean SECRET_TTL?"),
    ("SECRET_TTL: 1h", "MESHSCRAPE_X: 1h", "MESHSCRAPE_X", "unknown setting"),
    ("SECRET_TTL: 1h", "SERVICE_ACCOUNT: admin", "SERVICE_ACCOUNT", "SERVICE_ACCOUNT is set by the mesh"),
    ("SECRET_TTL: 1h", 'STATUS_PORT: "9080"', "m.yaml", "already taken by STATUS_PORT"),
    ("SECRET_TTL: 1h", "SECRET_TTL: 1",
     "SECRET_TTL", "annotation proxy.istio.io/config: proxyMetadata.SECRET_TTL: 1 is not a string"),
    ('METRICS_PORT: "15092"', 'METRICS_PORT: "15020"', "ENVOY_SECURE_MERGED", "already taken by STATUS_PORT"),
    ('value: "15091"', 'value: "15092"',
     "ENVOY_SECURE_METRICS_PORT", "reserved for merged metrics over mutual"),
    ('value: "15091"', "value: 15091", "ENVOY_SECURE_METRICS_PORT", "15091 is not a string; quote it"),
    ('value: "15091"', "valueFrom: {}", "ENVOY_SECURE_METRICS_PORT", "cannot read values from other objects"),
    ("{name: COLOUR, value: blue}", "{name: A=B, value: blue}", "A=B", "cannot name a variable"),
    ("SECRET_TTL: 1h", "SECRET_TTL: @1h", "SECRET_TTL", "config: not YAML"),
    ("SECRET_TTL: 1h", "ISTIO_PROMETHEUS_ANNOTATIONS: x", "ISTIO_PROM", "is set by the mesh"),
    ("serviceAccountName: web", "serviceAccountName: wbe",
     "serviceAccountName: wbe", "no ServiceAccount shop/wbe"),
    ("serviceAccountName: web", "serviceAcountName: web",
     "serviceAcountName", "did you mean serviceAccountName?"),
    ("labels: {app: web, version: v1}", 'labels: {app: web, sidecar.istio.io/inject: "false"}',
     "labels: {app: web, s", "a workload without a sidecar"),
    ("{containerPort: 9100}", "{containerPort: 9080}",
     "{containerPort: 9080}", "port 9080 is declared twice"),
    ("{containerPort: 9100}", "{containerPort: 15006}",
     "{containerPort: 15006}", "reserved for inbound traffic"),
    ("{containerPort: 9100}", '{containerPort: "9100"}', '{containerPort: "9100"', "not a number"),
    ("{containerPort: 9100}", "{containerPort: 99999}", "{containerPort: 99999}", "99999' is not a port"),
    ("{containerPort: 9100}", "{containerport: 9100}",
     "{containerport: 9100}", "did you mean containerPort?"),
    ("{containerPort: 9100}", "{containerPort: 9100, protocol: tcp}",
     "{containerPort: 9100", "not a protocol"),
    ("{containerPort: 9100}", "9100", "- 9100", "not a mapping"),
    ("targetPort: http}", "targetPort: web}", "targetPort: web}", "no container declares port web"),
    ("targetPort: http}", "targetPort: 81}", "targetPort: 81}", "declared are 9080 (http), 9100"),
    ("targetPort: http}", "tragetPort: http}", "tragetPort", "did you mean targetPort?"),
    ("mode: STRICT", "mode: strict", "mtls: {mode: strict}", "'strict' is not a mode"),
    ("mtls: {mode: STRICT}", "mtsl: {mode: STRICT}", "mtsl", "did you mean mtls?"),
    ("labels: {istio: ingressgateway}", "labels: {app: edge}", "selector: {istio", "no gateway workload has"),
    ("number: 8080", "number: 15021", "number: 15021", "reserved for health"),
    ("protocol: HTTP}", "protocol: HTTPS}", "protocol: HTTPS}", "'HTTPS' is not supported here"),
    ('hosts: ["*"]\n---', "hosts: [a.example]\n---", "hosts: [a.example]", "serve every host"),
    ("gateways: [default/entrance]", "gateways: [entrance]",
     "gateways: [entrance]", "no Gateway shop/entrance"),
    ("gateways: [default/entrance]", "gateways: []", "gateways: []", "only gateways route"),
    ("{uri: {prefix: /direct}}", "{uri: {exact: /direct}}", "exact: /direct", "unknown field 'exact'"),
    ("{uri: {prefix: /direct}}", "{uri: {prefix: direct}}", "prefix: direct", "not a path of a URL"),
    ("{uri: {prefix: /direct}}", "{headers: {}}", "{headers", "unknown field 'headers'"),
    ("{uri: {prefix: /direct}}", "{uri: {prefix: /}}",
     "apiVersion: networking.istio.io/v1\nkind: Gateway", "the route for / is never taken"),
    ("host: web, port: {number: 9100}", "host: wbe", "host: wbe", "0 workloads are behind shop/wbe"),
    ("host: web, port: {number: 9100}", "host: web", "host: web}", "which port is not said; write port"),
    ("host: web, port: {number: 9100}", "host: web, port: {number: 1}",
     "port: {number: 1}", "port 1 is not there"),
    ("host: web, port: {number: 9100}", "host: web.example.com",
     "host: web.example.com", "not a host of the mesh"),
    ("host: web, port: {number: 9100}", "host: prometheus.istio-system",
     "host: prometheus", "no Envoy that takes"),
    ("weight: 100", "weight: 50", "weight: 50", "not divided here"),
    ("- route: [", "- timeout: 5s\n    route: [", "timeout: 5s", "unknown field 'timeout'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "place", "what"), MISTAKES, ids=[f"{m[1]} ({m[3]})" for m in MISTAKES]
)
def test_a_mistake_is_one_line_with_its_place(old: str, new: str, place: str, what: str) -> None:
    """File and line first, then the object, the field and what to do."""
    assert old in MANIFEST
    changed = MANIFEST.replace(old, new, 1)
    with pytest.raises(InputError) as caught:
        mesh(changed)
    message = str(caught.value)
    assert what in message
    assert "\n" not in message
    assert caught.value.remedy
    if place != "m.yaml":
        found = changed[: changed.index(place)].count("\n") + 1
        assert message.startswith(f"m.yaml:{found}: "), message


def test_the_object_is_named_between_line_and_field() -> None:
    """So that the message makes sense without opening the file."""
    with pytest.raises(InputError) as caught:
        mesh(MANIFEST.replace("replicas: 1", "replicas: 2"))
    assert str(caught.value) == (
        f"m.yaml:{line('replicas: 1')}: Deployment shop/web: spec.replicas: the local mesh runs one pod per "
        "workload; write replicas: 1 or remove it"
    )
