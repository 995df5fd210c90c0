"""meshscrape's way through a cluster: dump, observe, plan, render, apply phase by phase."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.kube import Kube

# The kinds of docs/observe.md. Those that are not installed are left out, as it says.
CORE = (
    "ns,deploy,sts,ds,rs,cronjob,job,pod,hpa,svc,sa,cm,netpol,clusterrole,clusterrolebinding,role,rolebinding,"
    "mutatingwebhookconfiguration,validatingwebhookconfiguration"
)
CUSTOM = (
    "peerauthentications.security.istio.io",
    "authorizationpolicies.security.istio.io",
    "sidecars.networking.istio.io",
    "proxyconfigs.networking.istio.io",
    "gateways.networking.istio.io",
    "virtualservices.networking.istio.io",
    "serviceentries.networking.istio.io",
    "gateways.gateway.networking.k8s.io",
    "gatewayclasses.gateway.networking.k8s.io",
    "prometheuses.monitoring.coreos.com",
    "podmonitors.monitoring.coreos.com",
    "servicemonitors.monitoring.coreos.com",
    "scrapeconfigs.monitoring.coreos.com",
    "prometheusrules.monitoring.coreos.com",
)


@dataclass
class Migration:
    """One plan with its options, applied to a cluster."""

    kube: Kube
    command: Path
    directory: Path
    options: tuple[str, ...]
    applied: list[str] = field(default_factory=list)

    def dump(self) -> Path:
        """Write a dump of the whole cluster."""
        known = set(self.kube("api-resources", "-o", "name").split())
        kinds = ",".join([CORE, *(kind for kind in CUSTOM if kind in known)])
        file = self.directory / "dump.json"
        file.write_text(self.kube("get", "-A", "-o", "json", kinds))
        return file

    def run(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one verb of meshscrape on a new dump."""
        return subprocess.run(
            [str(self.command), verb, "-f", str(self.dump()), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def observe(self) -> dict[str, Any]:
        """Return what meshscrape sees."""
        done = self.run("observe", "-o", "json")
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def plan(self) -> subprocess.CompletedProcess[str]:
        """Plan on a new dump."""
        return self.run("plan", *self.options)

    def render(self) -> Path:
        """Render into a directory and return it."""
        out = self.directory / "out"
        shutil.rmtree(out, ignore_errors=True)
        done = self.run("render", *self.options, "--out", str(out))
        assert done.returncode == 0, done.stderr
        return out

    def phases(self) -> list[str]:
        """Return the rendered phases in their order."""
        return sorted(entry.name for entry in (self.directory / "out").iterdir() if entry.name[0].isdigit())

    def apply(self, phase: str) -> None:
        """Apply one rendered phase with strict field validation."""
        directory = self.directory / "out" / phase
        verb = "replace" if phase.endswith("removal") else "apply"
        if any(entry.is_file() and entry.suffix == ".yaml" for entry in directory.iterdir()):
            self.kube(verb, "--validate=strict", "-f", str(directory))
        if (directory / "delete").is_dir():
            self.kube("delete", "--ignore-not-found", "-f", str(directory / "delete"))
        self.applied.append(phase)

    def settle(self, namespaces: tuple[str, ...]) -> None:
        """Wait until every workload runs as its template says."""
        for namespace in namespaces:
            for kind in ("deployment", "statefulset"):
                names = self.kube("-n", namespace, "get", kind, "-o", "name").split()
                if names:
                    self.kube.rollout(namespace, *names)

    def migrate(self, namespaces: tuple[str, ...], after: Callable[[str], None]) -> list[str]:
        """Render, then apply phase by phase; `after` looks at the cluster after each."""
        self.render()
        for phase in self.phases():
            self.apply(phase)
            self.settle(namespaces)
            after(phase)
        return self.phases()

    def restore(self) -> None:
        """Bring back what was there, as docs/kubernetes.md says."""
        originals = self.directory / "out/originals"
        if any(entry.suffix == ".yaml" for entry in originals.iterdir()):
            self.kube("replace", "-f", str(originals))
        if (originals / "delete").is_dir():
            self.kube("delete", "--ignore-not-found", "-f", str(originals / "delete"))
