"""Istio and its neighbours in the cluster: rendered by the real tools, applied with kubectl."""

from __future__ import annotations

from pathlib import Path

from conformance.cluster import programs
from conformance.cluster.images import NEWER, OLDER
from conformance.cluster.machine import run

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

    def istiod(self, *, tag: str = NEWER, revision: str = "") -> None:
        """Install istiod and wait until it is ready. A revision brings no CRDs of its own."""
        self.apply('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}')
        more = (f"revision={revision}", "components.base.enabled=false") if revision else ()
        self.apply(manifests(tag, "profile=minimal", *more))
        self._ready(f"istiod-{revision}" if revision else "istiod")

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


def _ingress_gateway() -> str:
    part = "components.ingressGateways[0]"
    return manifests(NEWER, "profile=empty", f"{part}.name=istio-ingressgateway", f"{part}.enabled=true")


def manifests(tag: str, *more: str) -> str:
    """Return what `istioctl install` would apply for a version, with the charts that it carries."""
    istioctl = programs.program("istioctl-1.30" if tag == OLDER else "istioctl")
    words = [word for setting in (*more, f"tag={tag}", *SETTINGS) for word in ("--set", setting)]
    return run(istioctl, "manifest", "generate", *words).stdout
