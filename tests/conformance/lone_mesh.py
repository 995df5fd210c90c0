"""A mesh on an API server alone: its workloads have no pods, because nothing but the API server runs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.api_server import ApiServer
from meshscrape.kube.objects import stable
from support.objects import control_plane, deployment, injected_namespace, namespace
from support.scraping_objects import permissions, plain_prometheus

NAMES = "deployments,configmaps,namespaces"
# Its Prometheus has no pod, so that nothing but its name shows that it scrapes.
SCRAPER = ("--scraper", "spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus")
COMMAND = Path(sys.executable).parent / "meshscrape"
SPACES = ("shop", "monitoring")


@contextlib.contextmanager
def mesh_on(server: ApiServer) -> Iterator[ApiServer]:
    """Provide the mesh, and remove its objects at the end."""
    things = [
        namespace("istio-system"),
        injected_namespace("shop"),
        namespace("monitoring"),
        *control_plane(),
        *(idle(deployment(name, "shop")) for name in ("web", "cart")),
        *map(idle, plain_prometheus()),
        *permissions(namespace="monitoring"),
    ]
    server.apply([each for each in things if each["kind"] == "Namespace"])
    server.apply([served(each) for each in things if each["kind"] != "Namespace"])
    yield server
    for space in (*SPACES, "istio-system"):
        server("-n", space, "delete", "deployments,configmaps,services,leases", "--all")
    server("delete", "mutatingwebhookconfigurations", "--all")


def idle(thing: Any) -> Any:
    """A workload without replicas, complete enough for an API server."""
    if thing["kind"] != "Deployment":
        return thing
    template = thing["spec"]["template"]
    container = {"image": "example.com/web:1"} | template["spec"]["containers"][0]
    spec = template["spec"] | {"containers": [container]}
    return {**thing, "spec": {**thing["spec"], "replicas": 0, "template": {**template, "spec": spec}}}


def served(thing: Any) -> Any:
    """An object as kubectl sends it."""
    return idle({key: value for key, value in thing.items() if key != "status"})


def start(kubeconfig: Path, verb: str, *words: str) -> subprocess.Popen[str]:
    """Start a verb on the API server of a kubeconfig."""
    place = () if verb == "rbac" else ("--kubeconfig", str(kubeconfig))
    return subprocess.Popen(
        [str(COMMAND), verb, *place, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(server: ApiServer | Path, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a verb on an API server, or with a kubeconfig, to its end."""
    process = start(server if isinstance(server, Path) else server.kubeconfig, verb, *words)
    out, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def objects(server: ApiServer) -> dict[str, Any]:
    """The objects that a plan could change, without what changes by itself."""
    found = {}
    for each in server.get(NAMES, "-A")["items"]:
        if each["metadata"].get("namespace", each["metadata"]["name"]) in SPACES:
            found[f"{each['kind']} {each['metadata']['name']}"] = stable(each)
    return found
