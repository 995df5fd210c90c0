"""PeerAuthentication: which policy decides a port's mode."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.istio.settings import InboundMode
from meshscrape.kube.mesh import parse_mesh

WORKLOADS = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, ports: [{containerPort: 9080}, {containerPort: 9100}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: tool, namespace: istio-system}
spec:
  template:
    metadata: {labels: {app: tool}}
    spec:
      containers: [{name: tool, ports: [{containerPort: 9080}]}]
"""

MESH = "{metadata: {name: mesh, namespace: istio-system}, spec: {mtls: {mode: %s}}}"
NAMESPACE = "{metadata: {name: namespace, namespace: shop}, spec: {mtls: {mode: %s}}}"
WEB = (
    "{metadata: {name: web, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, mtls: {mode: %s}}}"
)
PORT = (
    "{metadata: {name: web, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, mtls: {mode: %s},"
    " portLevelMtls: {9080: {mode: %s}}}}"
)
TOOL = WEB.replace("web", "tool").replace("namespace: shop", "namespace: istio-system")


def modes(*policies: str) -> list[list[InboundMode]]:
    """The modes of the ports of shop/web and istio-system/tool under `policies`."""
    head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
    written = ["{" + head.replace("\n", ", ") + policy[1:] for policy in policies]
    mesh = parse_mesh(load_documents("\n---\n".join([WORKLOADS, *written]), "m.yaml"))
    return [[item.mode for item in workload.inbound] for workload in mesh.workloads]


@pytest.mark.parametrize(
    ("policies", "web", "other", "tool"),
    [
        ([], "PERMISSIVE", "PERMISSIVE", "PERMISSIVE"),
        ([MESH % "STRICT"], "STRICT", "STRICT", "STRICT"),
        ([MESH % "UNSET"], "PERMISSIVE", "PERMISSIVE", "PERMISSIVE"),
        ([NAMESPACE % "STRICT"], "STRICT", "STRICT", "PERMISSIVE"),
        ([MESH % "STRICT", NAMESPACE % "DISABLE"], "DISABLE", "DISABLE", "STRICT"),
        ([NAMESPACE % "DISABLE", MESH % "STRICT"], "DISABLE", "DISABLE", "STRICT"),
        ([MESH % "STRICT", NAMESPACE % "UNSET"], "STRICT", "STRICT", "STRICT"),
        ([NAMESPACE % "STRICT", WEB % "DISABLE"], "DISABLE", "DISABLE", "PERMISSIVE"),
        ([MESH % "DISABLE", NAMESPACE % "STRICT", WEB % "UNSET"], "STRICT", "STRICT", "DISABLE"),
        ([MESH % "STRICT", WEB % "UNSET"], "STRICT", "STRICT", "STRICT"),
        ([MESH % "STRICT", PORT % ("PERMISSIVE", "DISABLE")], "DISABLE", "PERMISSIVE", "STRICT"),
        ([MESH % "STRICT", PORT % ("UNSET", "DISABLE")], "DISABLE", "STRICT", "STRICT"),
        ([MESH % "STRICT", PORT % ("PERMISSIVE", "UNSET")], "PERMISSIVE", "PERMISSIVE", "STRICT"),
        ([NAMESPACE % "STRICT", PORT % ("UNSET", "UNSET")], "STRICT", "STRICT", "PERMISSIVE"),
    ],
)
def test_the_nearest_policy_that_sets_a_mode_decides(
    policies: list[str], web: str, other: str, tool: str
) -> None:
    """Port before workload before namespace before mesh before PERMISSIVE, whatever the order of files."""
    assert modes(*policies) == [[web, other], [tool]]


def test_policy_without_a_spec_inherits_its_mode() -> None:
    """An empty policy inherits everything."""
    assert modes("{metadata: {name: web, namespace: shop}}") == [["PERMISSIVE", "PERMISSIVE"], ["PERMISSIVE"]]


@pytest.mark.parametrize(
    ("policies", "what"),
    [
        (
            [NAMESPACE % "STRICT", NAMESPACE.replace("name: namespace", "name: b") % "DISABLE"],
            "whole namespace too",
        ),
        ([WEB % "STRICT", WEB.replace("name: web", "name: b") % "DISABLE"], "selects the same workload"),
        (
            [NAMESPACE.replace("mtls: {mode: %s}", "portLevelMtls: {9080: {mode: STRICT}}")],
            "needs a selector",
        ),
        ([PORT.replace("9080", "9081") % ("STRICT", "STRICT")], "no selected workload declares port 9081"),
        ([TOOL % "STRICT"], "Istio ignores policies of istio-system that select workloads"),
        ([WEB.replace("app: web", "app: wbe") % "STRICT"], "no workload of the namespace has these labels"),
        ([PORT % ("STRICT", "strict")], "'strict' is not a mode"),
        ([PORT.replace("9080", "http") % ("STRICT", "STRICT")], "'http' is not a port"),
        ([MESH.replace("mode: %s", "mode: STRICT, x: 1")], "unknown field 'x'"),
    ],
)
def test_a_policy_that_is_unclear_or_protects_nothing_is_refused(policies: list[str], what: str) -> None:
    """A silent policy is worse than none: somebody believes in it."""
    with pytest.raises(InputError, match=what) as caught:
        modes(*policies)
    assert "PeerAuthentication " in str(caught.value)
