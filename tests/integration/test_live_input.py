"""The verbs about a cluster read its API server, also an awkward one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from support.addresses import free_port, loopback
from support.applications import applications, header
from support.documents import faults
from support.mesh import meshscrape

APPS = {"name": "apps", "preferredVersion": {"version": "v1"}}
LISTABLE = ["list", "watch"]
DISCOVERY: dict[str, Any] = {
    "/apis": {"groups": [APPS]},
    "/api/v1": {
        "resources": [
            {"name": "namespaces", "kind": "Namespace", "verbs": LISTABLE},
            {"name": "configmaps", "kind": "ConfigMap", "verbs": LISTABLE},
            {"name": "secrets", "kind": "Secret", "verbs": LISTABLE},
        ]
    },
    "/apis/apps/v1": {"resources": [{"name": "deployments", "kind": "Deployment", "verbs": LISTABLE}]},
}
WEB = {
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web"}]}},
    },
}
LISTS: dict[str, Any] = {
    "/api/v1/namespaces": {"items": [{"metadata": {"name": "shop"}}]},
    "/api/v1/configmaps": {"items": []},
    "/apis/apps/v1/deployments": {"items": [WEB]},
}
Answers = dict[str, Any]


class ApiServer:
    """Answers by path: an object, or one after the other from a list of (status, object)."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = {
            path: list(answer) if isinstance(answer, list) else answer for path, answer in answers.items()
        }
        self.asked: list[str] = []

    async def __call__(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        path = request.split()[1].decode().partition("?")[0]
        self.asked.append(request.split()[1].decode())
        answer = self.answers.get(path, [(404, {"message": "not found"})])
        status, told = answer.pop(0) if isinstance(answer, list) else (200, answer)
        body = json.dumps(told).encode()
        head = header("application/json", f"Content-Length: {len(body)}", status=f"{status} Status")
        writer.write(head + body)
        await writer.drain()


@contextmanager
def served(tmp_path: Path, answers: Mapping[str, Any]) -> Iterator[tuple[ApiServer, Path]]:
    """Run an API server, and write a kubeconfig for it."""
    server, address = ApiServer(DISCOVERY | LISTS | dict(answers)), loopback()
    with applications(address, {"api": server}) as ports:
        yield server, kubeconfig(tmp_path, f"http://{address}:{ports['api']}")


def kubeconfig(directory: Path, url: str) -> Path:
    """Write a kubeconfig whose context is called `here`."""
    file = directory / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "here",
            }
        )
    )
    return file


def observe(file: Path, *arguments: str) -> CompletedProcess[str]:
    """Observe the cluster of a kubeconfig."""
    return meshscrape("observe", "--kubeconfig", str(file), *arguments)


def test_observes_the_cluster_of_a_kubeconfig(tmp_path: Path) -> None:
    with served(tmp_path, {}) as (server, file):
        done = observe(file, "-o", "json")
    assert done.returncode == 0, done.stderr
    workloads = json.loads(done.stdout)["workloads"]
    assert [(each["object"]["namespace"], each["object"]["name"]) for each in workloads] == [("shop", "web")]
    assert not [path for path in server.asked if "secrets" in path]


def test_reads_every_page_of_a_list(tmp_path: Path) -> None:
    second = {**WEB, "metadata": {"name": "other", "namespace": "shop"}}
    pages = [(200, {"metadata": {"continue": "next"}, "items": [WEB]}), (200, {"items": [second]})]
    with served(tmp_path, {"/apis/apps/v1/deployments": pages}) as (_, file):
        done = observe(file, "-o", "json")
    assert [each["object"]["name"] for each in json.loads(done.stdout)["workloads"]] == ["other", "web"]


def test_begins_a_list_again_whose_pages_expired(tmp_path: Path) -> None:
    pages = [
        (200, {"metadata": {"continue": "old"}, "items": [{**WEB, "metadata": {"name": "gone"}}]}),
        (410, {"message": "the provided continue parameter is too old"}),
        (200, {"items": [WEB]}),
    ]
    with served(tmp_path, {"/apis/apps/v1/deployments": pages}) as (_, file):
        done = observe(file, "-o", "json")
    assert [each["object"]["name"] for each in json.loads(done.stdout)["workloads"]] == ["web"]


def test_refuses_to_judge_a_part_of_the_objects(tmp_path: Path) -> None:
    forbidden = [(403, {"message": 'configmaps is forbidden: User "dev" cannot list'})]
    with served(tmp_path, {"/api/v1/configmaps": forbidden}) as (_, file):
        done = observe(file)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "configmaps" in done.stderr
    assert "meshscrape rbac observe" in done.stderr


def test_names_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    address = loopback()
    url = f"http://{address}:{free_port(address)}"
    done = observe(kubeconfig(tmp_path, url))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert url in done.stderr


@pytest.mark.parametrize(("verb", "reads_files"), [("plan", True), ("apply", False)])
def test_without_a_kubeconfig_only_verbs_that_read_files_ask_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, reads_files: bool
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = meshscrape(verb)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert ("(FILE)" in done.stderr) is reads_files


@pytest.mark.parametrize("verb", ["observe", "plan"])
def test_does_not_read_files_and_a_cluster_at_once(tmp_path: Path, verb: str) -> None:
    file = kubeconfig(tmp_path, "http://127.0.0.1:1")
    done = meshscrape(verb, "--kubeconfig", str(file), "-f", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith("meshscrape: --kubeconfig: ")


def test_the_rights_of_a_verb_are_objects_to_apply() -> None:
    done = meshscrape("rbac", "proxy", "-n", "shop", "--service-account", "monitoring/prometheus")
    assert done.returncode == 0, done.stderr
    assert "kind: Role\n" in done.stdout
    assert "kind: ClusterRole\n" not in done.stdout
    assert "namespace: monitoring" in done.stdout


ISTIOD = {
    "metadata": {"name": "istiod", "namespace": "istio-system", "labels": {"app": "istiod"}},
    "spec": {
        "template": {
            "metadata": {"labels": {"app": "istiod"}},
            "spec": {"containers": [{"name": "discovery", "image": "docker.io/istio/pilot:1.31.0"}]},
        }
    },
}
VERSION = {"/version": {"gitVersion": "v1.37.2"}, "/apis/apps/v1/deployments": {"items": [ISTIOD]}}


def versions(file: Path, *arguments: str) -> CompletedProcess[str]:
    """Ask for the versions of the cluster of a kubeconfig."""
    return meshscrape("version", "--kubeconfig", str(file), *arguments)


def test_version_names_kubernetes_and_istio(tmp_path: Path) -> None:
    with served(tmp_path, VERSION) as (_, file):
        text, document = versions(file), versions(file, "-o", "json")
        alone = versions(file, "--client", "-o", "json")
    assert "kubernetes v1.37.2" in text.stdout
    assert "istio 1.31.0" in text.stdout
    told = json.loads(document.stdout)
    assert faults(told, "Version") == []
    plane = {"revision": "default", "namespace": "istio-system", "version": "1.31.0"}
    assert told["cluster"]["istio"] == [plane]
    assert "cluster" not in json.loads(alone.stdout)


def test_version_without_the_right_to_list_deployments(tmp_path: Path) -> None:
    forbidden = [(403, {"message": "deployments.apps is forbidden"})]
    with served(tmp_path, VERSION | {"/apis/apps/v1/deployments": forbidden}) as (_, file):
        done = versions(file, "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert faults(told, "Version") == []
    assert (told["cluster"]["kubernetes"], told["cluster"]["istio"]) == ("v1.37.2", None)


def test_version_reports_the_installation_when_the_cluster_does_not_answer(tmp_path: Path) -> None:
    address = loopback()
    done = versions(kubeconfig(tmp_path, f"http://{address}:{free_port(address)}"), "-o", "json")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert faults(json.loads(done.stdout), "Version") == []
