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


# What is replaced, by what, where the mistake then is (a text of the changed manifest), the error's code.
MISTAKES = [
    ("kind: Namespace", "kind: ConfigMap",
     "kind: ConfigMap", "unsupported-kind"),
    ("kind: Namespace", "kind: Deploymnt", "kind: Deploymnt", "unsupported-kind"),
    ("kind: Namespace", "kind:", "kind:", "missing"),
    ("apiVersion: apps/v1", "apiVersion: v1", "apiVersion: v1\nkind: Deployment", "unsupported-version"),
    ("metadata: {name: shop}", "metadata: {name: Shop}",
     "metadata: {name: Shop}", "not-a-name"),
    ("metadata: {name: shop}", "metadata: {}", "metadata: {}", "missing"),
    ("metadata: {name: shop}", "metadata: shop", "metadata: shop", "not-a-mapping"),
    ("metadata: {name: edge}", "metadata: {nam: edge}", "metadata: {nam:", "unknown-field"),
    ("metadata: {name: edge}", "metadata: {name: edge, namespace: a.b}",
     "metadata: {name: edge", "not-a-name"),
    ("metadata: {name: web-service, namespace: shop}", "metadata: {name: 1}",
     "metadata: {name: 1", "not-a-string"),
    ("metadata: {name: prometheus, namespace: istio-system}",
     "metadata: {name: edge}",
     "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: edge}\nspec:\n  template:\n    metadata:\n"
     "      anno",
     "declared-twice"),
    ("replicas: 1", "replicas: 2", "replicas: 2", "replicas"),
    ("replicas: 1", "replicas: 0", "replicas: 0", "replicas"),
    ("replicas: 1", "replicas: true", "replicas: true", "replicas"),
    ("replicas: 1", "replica: 1", "replica: 1", "unknown-field"),
    ("matchLabels: {app: web}", "matchLabels: {app: other}",
     "selector: {matchLabels", "selector-mismatch"),
    ("version: v1}", "version: 1}",
     "labels: {app: web", "not-a-string"),
    ('scrape: "true"', "scrape: true", "prometheus.io/scrape", "not-a-string"),
    ('port: "9080"', 'port: "15090"', "prometheus.io/port", "reserved-port"),
    ("prometheus.istio.io/secure-port", "prometheus.istio.io/secure-prot",
     "prometheus.istio.io/secure-prot", "unknown-annotation"),
    ('secure-port: "15092"',
     'secure-port: "15091"',
     "prometheus.istio.io/secure-port",
     "announced-port"),
    ('secure-port: "15092"',
     'secure-envoy-port: "15091"',
     "prometheus.istio.io/secure-envoy-port",
     "announced-port"),
    ("local-command: serve", "local-command: serve '", "meshscrape.io/local-command", "not-a-command"),
    ("local-command: serve", "local-command.wbe: serve",
     "meshscrape.io/local-command.wbe", "no-container"),
    ("      - name: web\n", "      - name: helper\n      - name: web\n",
     "meshscrape.io/local-command", "which-container"),
    ("      - name: web\n", "      - name: web\n      - name: web\n",
     "- name: web", "container-twice"),
    ("SECRET_TTL: 1h", "SECRET_TTL: 1d",
     "SECRET_TTL", "not-a-duration"),
    ("SECRET_TTL: 1h", "SECRET_TLL: 1h", "SECRET_TLL", "unknown-setting"),
    ("SECRET_TTL: 1h", "MESHSCRAPE_X: 1h", "MESHSCRAPE_X", "unknown-setting"),
    ("SECRET_TTL: 1h", "SERVICE_ACCOUNT: admin", "SERVICE_ACCOUNT", "set-by-the-mesh"),
    ("SECRET_TTL: 1h", 'STATUS_PORT: "9080"', "m.yaml", "port-twice"),
    ("SECRET_TTL: 1h", "SECRET_TTL: 1",
     "SECRET_TTL", "not-a-string"),
    ('METRICS_PORT: "15092"', 'METRICS_PORT: "15020"', "ENVOY_SECURE_MERGED", "port-twice"),
    ('value: "15091"', 'value: "15092"',
     "ENVOY_SECURE_METRICS_PORT", "reserved-port"),
    ('value: "15091"', "value: 15091", "ENVOY_SECURE_METRICS_PORT", "not-a-string"),
    ('value: "15091"', "valueFrom: {}", "ENVOY_SECURE_METRICS_PORT", "value-from"),
    ("{name: COLOUR, value: blue}", "{name: A=B, value: blue}", "A=B", "not-a-variable"),
    ("SECRET_TTL: 1h", "SECRET_TTL: @1h", "SECRET_TTL", "not-yaml"),
    ("SECRET_TTL: 1h", "ISTIO_PROMETHEUS_ANNOTATIONS: x", "ISTIO_PROM", "set-by-the-mesh"),
    ("serviceAccountName: web", "serviceAccountName: wbe",
     "serviceAccountName: wbe", "no-service-account"),
    ("serviceAccountName: web", "serviceAcountName: web",
     "serviceAcountName", "unknown-field"),
    ("labels: {app: web, version: v1}", 'labels: {app: web, sidecar.istio.io/inject: "false"}',
     "labels: {app: web, s", "not-in-mesh"),
    ("{containerPort: 9100}", "{containerPort: 9080}",
     "{containerPort: 9080}", "port-twice"),
    ("{containerPort: 9100}", "{containerPort: 15006}",
     "{containerPort: 15006}", "reserved-port"),
    ("{containerPort: 9100}", '{containerPort: "9100"}', '{containerPort: "9100"', "not-a-number"),
    ("{containerPort: 9100}", "{containerPort: 99999}", "{containerPort: 99999}", "not-a-port"),
    ("{containerPort: 9100}", "{containerport: 9100}",
     "{containerport: 9100}", "unknown-field"),
    ("{containerPort: 9100}", "{containerPort: 9100, protocol: tcp}",
     "{containerPort: 9100", "not-a-protocol"),
    ("{containerPort: 9100}", "9100", "- 9100", "not-a-mapping"),
    ("targetPort: http}", "targetPort: web}", "targetPort: web}", "no-such-port"),
    ("targetPort: http}", "targetPort: 81}", "targetPort: 81}", "no-such-port"),
    ("targetPort: http}", "tragetPort: http}", "tragetPort", "unknown-field"),
    ("mode: STRICT", "mode: strict", "mtls: {mode: strict}", "not-a-mode"),
    ("mtls: {mode: STRICT}", "mtsl: {mode: STRICT}", "mtsl", "unknown-field"),
    ("labels: {istio: ingressgateway}", "labels: {app: edge}", "selector: {istio", "selects-nothing"),
    ("number: 8080", "number: 15021", "number: 15021", "reserved-port"),
    ("protocol: HTTP}", "protocol: HTTPS}", "protocol: HTTPS}", "not-http"),
    ('hosts: ["*"]\n---', "hosts: [a.example]\n---", "hosts: [a.example]", "every-host"),
    ("gateways: [default/entrance]", "gateways: [entrance]",
     "gateways: [entrance]", "no-gateway"),
    ("gateways: [default/entrance]", "gateways: []", "gateways: []", "missing"),
    ("{uri: {prefix: /direct}}", "{uri: {exact: /direct}}", "exact: /direct", "unknown-field"),
    ("{uri: {prefix: /direct}}", "{uri: {prefix: direct}}", "prefix: direct", "not-a-path"),
    ("{uri: {prefix: /direct}}", "{headers: {}}", "{headers", "unknown-field"),
    ("{uri: {prefix: /direct}}", "{uri: {prefix: /}}",
     "apiVersion: networking.istio.io/v1\nkind: Gateway", "route-never-taken"),
    ("host: web, port: {number: 9100}", "host: wbe", "host: wbe", "one-workload-per-host"),
    ("host: web, port: {number: 9100}", "host: web", "host: web}", "which-port"),
    ("host: web, port: {number: 9100}", "host: web, port: {number: 1}",
     "port: {number: 1}", "no-such-port"),
    ("host: web, port: {number: 9100}", "host: web.example.com",
     "host: web.example.com", "unknown-host"),
    ("host: web, port: {number: 9100}", "host: prometheus.istio-system",
     "host: prometheus", "no-mutual-tls"),
    ("weight: 100", "weight: 50", "weight: 50", "divided-traffic"),
    ("- route: [", "- timeout: 5s\n    route: [", "timeout: 5s", "unknown-field"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "place", "code"), MISTAKES, ids=[f"{m[1]} ({m[3]})" for m in MISTAKES]
)
def test_a_mistake_is_one_line_with_its_place(old: str, new: str, place: str, code: str) -> None:
    """File and line first, then the object, the field and what to do."""
    assert old in MANIFEST
    changed = MANIFEST.replace(old, new, 1)
    with pytest.raises(InputError) as caught:
        mesh(changed)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert caught.value.place.file == "m.yaml"
    if place != "m.yaml":
        assert caught.value.place.line == changed[: changed.index(place)].count("\n") + 1


def test_the_object_is_named_between_line_and_field() -> None:
    """So that the message makes sense without opening the file."""
    with pytest.raises(InputError) as caught:
        mesh(MANIFEST.replace("replicas: 1", "replicas: 2"))
    assert str(caught.value) == (
        f"m.yaml:{line('replicas: 1')}: Deployment shop/web: spec.replicas: the local mesh runs one pod per "
        "workload; write replicas: 1 or remove it"
    )
