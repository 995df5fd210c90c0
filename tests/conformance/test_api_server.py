"""apply and remove on an API server alone: what they write, and how they fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.api_server import ApiServer, running
from meshscrape.kube.objects import stable
from support.objects import control_plane, deployment, injected_namespace, namespace
from support.scraping_objects import permissions, plain_prometheus

NAMES = "deployments,configmaps,namespaces"
SPACES = ("shop", "monitoring")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with the kinds of Istio, the Gateway API and the Operator."""
    with running(tmp_path_factory.mktemp("api-server")) as found:
        yield found


@pytest.fixture
def mesh(server: ApiServer) -> Iterator[ApiServer]:
    """A mesh on it, whose workloads have no pods: nothing but the API server runs."""
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


def run(server: ApiServer | Path, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a verb on the API server, with a kubeconfig."""
    command = Path(sys.executable).parent / "meshscrape"
    file = server if isinstance(server, Path) else server.kubeconfig
    return subprocess.run(
        [command, verb, "--kubeconfig", file, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def objects(server: ApiServer) -> dict[str, Any]:
    """The objects that a plan could change, without what changes by itself."""
    found = {}
    for each in server.get(NAMES, "-A")["items"]:
        if each["metadata"].get("namespace", each["metadata"]["name"]) in SPACES:
            found[f"{each['kind']} {each['metadata']['name']}"] = stable(each)
    return found


@pytest.mark.parametrize("mode", ["native", "bootstrap", "legacy"])
def test_remove_restores_every_object(mesh: ApiServer, mode: str) -> None:
    before = objects(mesh)
    done = run(mesh, "apply", "--mode", mode, "-n", "shop", "--yes")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert objects(mesh) != before
    back = run(mesh, "remove", "--yes", "--yes-plaintext")
    assert back.returncode == 0, (back.stdout, back.stderr)
    assert objects(mesh) == before
    again = run(mesh, "remove", "--yes", "--yes-plaintext")
    assert (again.returncode, again.stdout) == (0, "Nothing to do.\n"), (again.stdout, again.stderr)
