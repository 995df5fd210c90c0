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

    def istiod(self, *more: str, tag: str = NEWER) -> None:
        """Install istiod and wait until it is ready. `more` are further settings of istioctl."""
        self.kubectl("create", "namespace", "istio-system", "--dry-run=client", "-o", "yaml")
        self.apply('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}')
        self.apply(manifests(tag, *more))
        self.kubectl(
            "-n", "istio-system", "rollout", "status", "deployment", "-l", "app=istiod", "--timeout=180s"
        )


def manifests(tag: str, *more: str) -> str:
    """Return what `istioctl install` would apply for a version, with the charts that it carries."""
    istioctl = programs.program("istioctl-1.30" if tag == OLDER else "istioctl")
    words = [word for setting in (*SETTINGS, f"tag={tag}", *more) for word in ("--set", setting)]
    return run(istioctl, "manifest", "generate", "--set", "profile=minimal", *words).stdout
