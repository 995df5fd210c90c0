"""Istio and its neighbours in the cluster: rendered by the real tools, applied with kubectl."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from conformance.cluster import programs
from conformance.cluster.api import Object
from conformance.cluster.images import NEWER, OLDER
from conformance.cluster.machine import run
from conformance.kube import until

# Stock Envoy has none of the filters that only Istio's build has: istiod must not send them.
SETTINGS = (
    "values.telemetry.enabled=false",
    "values.pilot.env.PILOT_ENABLE_METADATA_EXCHANGE=false",
    "values.pilot.env.PILOT_ENABLE_ALPN_FILTER=false",
    "values.pilot.autoscaleEnabled=false",
    "hub=docker.io/istio",
)


class Installer:
    """Installs into the cluster of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubectl = [programs.program("kubectl"), "--kubeconfig", kubeconfig]

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints."""
        return run(*self._kubectl, *words, stdin=stdin).stdout

    def apply(self, text: str) -> None:
        """Apply objects on the server's side."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def gateway_api(self) -> None:
        """Install the CRDs of the Gateway API, at the version that this Istio is built with."""
        directory = programs.source("istio", "sigs.k8s.io/gateway-api") / "config/crd/standard"
        self._crds(directory, "gateway.networking.k8s.io_*.yaml")

    def operator_crds(self) -> None:
        """Install the CRDs of the Prometheus Operator, at the Operator's own version."""
        module = "github.com/prometheus-operator/prometheus-operator"
        self._crds(programs.source("operator", module) / "example/prometheus-operator-crd", "*.yaml")

    def _crds(self, directory: Path, pattern: str) -> None:
        files = [
            file
            for file in sorted(directory.glob(pattern))
            if "kind: CustomResourceDefinition" in file.read_text()
        ]
        if not files:
            raise RuntimeError(f"{directory} holds no CRD any more")
        self.apply("\n---\n".join(file.read_text() for file in files))
        wait_for_openapi(functools.partial(run, *self._kubectl, check=False))

    def istiod(self, *, tag: str = NEWER, revision: str = "", mesh: Object | None = None) -> None:
        """Install istiod and wait until it is ready. A revision brings no CRDs of its own.

        `mesh` is the `spec` of an IstioOperator with more settings.
        """
        self.apply('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}')
        more = (f"revision={revision}", "components.base.enabled=false") if revision else ()
        self.apply(manifests(tag, "profile=minimal", *more, spec=mesh))
        self._ready(f"istiod-{revision}" if revision else "istiod")

    @contextlib.contextmanager
    def revision(self, name: str, *, tag: str = NEWER, mesh: Object | None = None) -> Iterator[str]:
        """Provide a second istiod, and remove it at the end."""
        chosen = ("-l", f"istio.io/rev={name}", "--ignore-not-found")
        try:
            self.istiod(tag=tag, revision=name, mesh=mesh)
            yield name
        finally:
            self.kubectl("delete", "deployment,service,configmap,pdb", "-n", "istio-system", *chosen)
            self.kubectl("delete", "mutatingwebhookconfiguration,validatingwebhookconfiguration", *chosen)

    def ingress_gateway(self) -> None:
        """Install the classic gateway `istio-ingressgateway` in istio-system."""
        self.apply(_ingress_gateway())
        self._ready("istio-ingressgateway")

    def remove_ingress_gateway(self) -> None:
        """Remove it again."""
        self.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=_ingress_gateway())

    def _ready(self, deployment: str) -> None:
        words = ("rollout", "status", f"deployment/{deployment}", "--timeout=400s")
        self.kubectl("-n", "istio-system", *words)


def wait_for_openapi(kubectl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Wait until the API server has built its OpenAPI again, as it must after a change of CRDs.

    On a busy machine that can take longer than the 32 s that `kubectl apply` waits for it.
    """
    until(lambda: kubectl("get", "--raw", "/openapi/v2").returncode == 0, "OpenAPI is built", timeout=600)


def _ingress_gateway() -> str:
    part = "components.ingressGateways[0]"
    return manifests(NEWER, "profile=empty", f"{part}.name=istio-ingressgateway", f"{part}.enabled=true")


def manifests(tag: str, *more: str, spec: Object | None = None) -> str:
    """Return what `istioctl install` would apply for a version, with the charts that it carries."""
    istioctl = programs.program("istioctl-1.30" if tag == OLDER else "istioctl")
    words = [word for setting in (*more, f"tag={tag}", *SETTINGS) for word in ("--set", setting)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        kind = {"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator"}
        json.dump({**kind, "spec": spec or {}}, file)
        file.flush()
        return run(istioctl, "manifest", "generate", "-f", file.name, *words).stdout
