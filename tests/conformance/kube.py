"""A cluster as the scenarios see it: a kubeconfig, and what kubectl says."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]
RUNS_PODS = (  # whatever makes others first
    "prometheuses.monitoring.coreos.com",
    "gateways.gateway.networking.k8s.io",
    "statefulsets.apps",
    "daemonsets.apps",
    "deployments.apps",
    "pods",
)
ROLLOUT = 300.0  # seconds; generous, because the machine may build something at the same time


@dataclass(frozen=True)
class Capabilities:
    """What a cluster can show and another one cannot."""

    name: str  # as the rows say it
    istio_envoy: bool = False  # Istio's own build of Envoy, with its filters
    kube_proxy: bool = False
    network_policies: bool = False  # a CNI that enforces them
    local_images: bool = False  # programs of this machine stand for images


class Kube:
    """kubectl on one kubeconfig."""

    def __init__(self, kubectl: Path, kubeconfig: Path, capabilities: Capabilities) -> None:
        self.kubeconfig, self.capabilities = kubeconfig, capabilities
        self._command = [str(kubectl), "--kubeconfig", str(kubeconfig)]

    def run(
        self, *words: str, stdin: str | None = None, timeout: float = ROLLOUT + 30
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return how it ended."""
        return subprocess.run(
            [*self._command, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl, expect success, return what it prints."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, (
            f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}"
        )
        return done.stdout

    def apply(self, value: Object | list[Object] | str, *words: str) -> str:
        """Apply objects with strict field validation."""
        if isinstance(value, list):
            value = {"apiVersion": "v1", "kind": "List", "items": value}
        text = value if isinstance(value, str) else json.dumps(value)
        return self("apply", "--validate=strict", *words, "-f", "-", stdin=text)

    def get(self, *words: str) -> Any:
        """Return objects as data."""
        return json.loads(self("get", *words, "-o", "json"))

    def rollout(self, namespace: str, *names: str) -> None:
        """Wait until workloads (`deployment/NAME`; without names all Deployments) run as they should."""
        for name in names or tuple(self("-n", namespace, "get", "deployment", "-o", "name").split()):
            self("-n", namespace, "rollout", "status", name, f"--timeout={ROLLOUT:.0f}s")
        until(lambda: not self.terminating(namespace), f"no pod of {namespace} is terminating")

    def terminating(self, namespace: str) -> list[str]:
        """Return the pods that are being deleted."""
        pods = self.get("-n", namespace, "pods")["items"]
        return [pod["metadata"]["name"] for pod in pods if pod["metadata"].get("deletionTimestamp")]

    def pods(self, namespace: str, selector: str = "") -> list[Object]:
        """Return the pods that run and are not being deleted."""
        words = ("-l", selector) if selector else ()
        found: list[Object] = self.get("-n", namespace, "pods", *words)["items"]
        return [
            pod
            for pod in found
            if not pod["metadata"].get("deletionTimestamp") and pod["status"].get("phase") == "Running"
        ]

    def address(self, namespace: str, selector: str) -> str:
        """Return the address of the only pod of a selector."""
        (pod,) = self.pods(namespace, selector)
        return str(pod["status"]["podIP"])

    def has(self, *words: str) -> bool:
        """Return whether an object exists."""
        return self.run("get", *words).returncode == 0

    @contextlib.contextmanager
    def namespace(self, name: str, **labels: str) -> Iterator[str]:
        """Provide a namespace, and wait until it is gone at the end."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        try:
            yield name
        finally:
            self._empty(name)
            self("delete", "namespace", name, "--ignore-not-found", f"--timeout={ROLLOUT:.0f}s")

    def _empty(self, namespace: str) -> None:
        """Delete what runs pods, and wait until none is left.

        The namespace controller looks again only after half of the longest grace period of its pods:
        five minutes for a Prometheus of the Operator.
        """
        known = set(self("api-resources", "--verbs=delete", "--namespaced", "-o", "name").split())
        kinds = [kind for kind in RUNS_PODS if kind in known]
        for kind in kinds:
            self("-n", namespace, "delete", kind, "--all", f"--timeout={ROLLOUT:.0f}s")
        until(lambda: not self.get("-n", namespace, "pods")["items"], f"no pod is left in {namespace}")


def until(
    condition: Callable[[], Any],
    what: str,
    timeout: float = 180.0,
    detail: Callable[[], object] | None = None,
) -> Any:
    """Poll until a condition holds, and return its value."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}" + (
            f"; last seen: {detail()}" if detail else ""
        )
        time.sleep(0.5)
