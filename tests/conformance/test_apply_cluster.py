"""apply and remove on the cluster when something goes wrong: lost scrapes, hanging rollouts, going back."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance import api_gate, shop
from conformance.api_gate import Gate
from conformance.kube import Kube, until
from conformance.live import Live
from conformance.prometheus import Prometheus

Row = Callable[..., None]
pytestmark = pytest.mark.whole
SPACE = shop.NAMESPACE
YES = ("--yes", "--yes-interruption")
PLAN = ("--mode", "native", "-n", SPACE)
MISSING = "registry.example/nothing:1"


@pytest.fixture
def live(kube: Kube, meshscrape: Path) -> Live:
    """meshscrape on the cluster."""
    return Live(meshscrape, kube.kubeconfig)


@pytest.fixture
def prometheus(kube: Kube) -> Iterator[Prometheus]:
    """The shop in a namespace of its own, read in plaintext by Istio's Prometheus add-on."""
    with shop.shop(kube, strict=False), shop.found(kube, "existing") as found:
        assert found is not None
        found.wait_for_up(set(shop.addresses(kube).values()))
        yield found


def set_image(kube: Kube, name: str, image: str) -> str:
    """Give a Deployment's first container another image; return the one that it had."""
    container = kube.get("-n", SPACE, "deployment", name)["spec"]["template"]["spec"]["containers"][0]
    kube("-n", SPACE, "set", "image", f"deployment/{name}", f"{container['name']}={image}")
    return str(container["image"])


@pytest.mark.timeout(1200)
def test_a_rollout_whose_image_is_missing_stops_the_run(
    kube: Kube, live: Live, prometheus: Prometheus, row: Row
) -> None:
    """The old pods go on, the line has the kubelet's reason, and the run goes on when the image is there."""
    # The template names the image already, but no pod was made from it: a paused rollout.
    kube("-n", SPACE, "rollout", "pause", "deployment/productpage")
    good = set_image(kube, "productpage", MISSING)
    kube("-n", SPACE, "patch", "deployment", "productpage", "-p", '{"spec": {"paused": false}}')
    until(lambda: "ImagePullBackOff" in waiting(kube), "the kubelet says ImagePullBackOff")
    stopped = live.run("apply", *PLAN, *YES, "--canary", f"{SPACE}/productpage", "--timeout", "20")
    assert stopped.returncode == 1, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert "ImagePullBackOff in pod productpage-" in last and MISSING in last and "run apply again" in last, (
        last
    )
    prometheus.wait_for_up(set(shop.addresses(kube).values()))
    set_image(kube, "productpage", good)
    kube.rollout(SPACE)
    done = live.run("apply", *PLAN, *YES)
    assert done.returncode == 0, done.stderr
    row("apply with an image that is missing", f"stopped: {last.partition('; see why')[0]}; mended: goes on")


def waiting(kube: Kube) -> list[str]:
    """Return the reasons for which containers of the shop wait."""
    pods = kube.get("-n", SPACE, "pods")["items"]
    states = [each["state"] for pod in pods for each in pod["status"].get("containerStatuses", ())]
    return [state["waiting"]["reason"] for state in states if "waiting" in state]


@pytest.mark.timeout(1200)
def test_stops_at_a_lost_scrape_and_at_a_bound_on_head_series(
    kube: Kube, live: Live, prometheus: Prometheus, row: Row
) -> None:
    """Somebody lets the scrapes time out during the pause between two waves; the run goes on after that."""
    bounded = live.run("apply", *PLAN, *YES, "--max-head-series", "1")
    assert (bounded.returncode, "the bound is 1" in bounded.stderr) == (1, True), bounded.stderr
    assert "raise --max-head-series" in bounded.stderr and "updated" not in bounded.stderr, bounded.stderr
    words = ("--canary", f"{SPACE}/httpbin", "--pause", "60", "--max-head-series", "10000000")
    process = live.start("apply", *PLAN, *YES, *words)
    assert process.stderr is not None
    lines, good = [], ""
    for line in process.stderr:
        lines.append(line)
        if "phase listeners: pausing" in line and not good:
            good = time_out(kube)
    assert good and process.wait(120) == 1, lines
    assert "lost: http://" in lines[-1] and "run apply again" in lines[-1], lines
    assert "`meshscrape remove`" in lines[-1], lines
    write_configuration(kube, good)
    prometheus.wait_for_up(set(shop.addresses(kube).values()))
    done = live.run("apply", *PLAN, *YES)
    assert done.returncode == 0, done.stderr
    targets = prometheus.wait_for_up(set(shop.addresses(kube).values()))
    assert all(target["scrapeUrl"].startswith("https://") for target in targets)
    row(
        "a scrape is lost during apply; a bound on head series",
        "stopped at the first one and at the bound, each with the way on and back; run again: finished",
    )


def time_out(kube: Kube) -> str:
    """Give the plaintext job a timeout that no scrape keeps; return the configuration of before."""
    text = str(kube.get("-n", "istio-system", "configmap", "prometheus")["data"]["prometheus.yml"])
    configuration = yaml.safe_load(text)
    for job in configuration["scrape_configs"]:
        if job["job_name"] == "kubernetes-pods":
            job["scrape_timeout"] = "1ms"
    write_configuration(kube, yaml.safe_dump(configuration, sort_keys=False))
    return text


def write_configuration(kube: Kube, text: str) -> None:
    """Write Prometheus' configuration."""
    patch = json.dumps({"data": {"prometheus.yml": text}})
    kube("-n", "istio-system", "patch", "configmap", "prometheus", "-p", patch)


def stateful() -> list[Any]:
    """Return a StatefulSet and a DaemonSet that export metrics."""
    found = []
    for kind, name in (("StatefulSet", "db"), ("DaemonSet", "agent")):
        labels = {"app": name}
        container = {
            "name": "web",
            "image": "docker.io/mccutchen/go-httpbin:v2.15.0",
            "ports": [{"containerPort": 8080}],
        }
        template = {
            "metadata": {
                "labels": labels,
                "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "15020"},
            },
            "spec": {"containers": [container]},
        }
        spec: dict[str, Any] = {"selector": {"matchLabels": labels}, "template": template}
        if kind == "StatefulSet":
            spec |= {"serviceName": name, "replicas": 2}
        found.append({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
    return found


KINDS = ("deployment/httpbin", "statefulset/db", "daemonset/agent")


@pytest.mark.timeout(2400)
def test_rollout_undo_works_after_apply_and_after_remove(
    kube: Kube, live: Live, prometheus: Prometheus, row: Row
) -> None:
    """In bootstrap mode an old revision needs its ConfigMap: it is there, and the next run goes on."""
    kube.apply(stateful(), "-n", SPACE)
    kube.rollout(SPACE, *KINDS)
    plan = ("--mode", "bootstrap", "-n", SPACE)
    done = live.run("apply", *plan, *YES)
    assert done.returncode == 0, done.stderr
    undo(kube)
    again = live.run("apply", *plan, *YES)
    assert again.returncode == 0, again.stderr
    prometheus.wait_for_up(set(shop.addresses(kube).values()))
    back = live.run("remove", *YES, "--yes-plaintext")
    assert back.returncode == 0, back.stderr
    prometheus.wait_for_up(set(shop.addresses(kube).values()))
    undo(kube)
    templates = [kube.get("-n", SPACE, *name.split("/"))["spec"]["template"]["metadata"] for name in KINDS]
    assert all("sidecar.istio.io/bootstrapOverride" in each["annotations"] for each in templates), templates
    last = live.run("remove", *YES, "--yes-plaintext")
    assert last.returncode == 0, last.stderr
    prometheus.wait_for_up(set(shop.addresses(kube).values()))
    row(
        "rollout undo after apply and after remove: bootstrap; Deployment, StatefulSet, DaemonSet",
        "the pods of the old revisions are ready each time; apply or remove run again: finished",
    )


def undo(kube: Kube) -> None:
    """Undo the last rollout of each workload, and wait until its pods run."""
    for name in KINDS:
        kube("-n", SPACE, "rollout", "undo", name)
    kube.rollout(SPACE, *KINDS)


@contextlib.contextmanager
def through_a_gate(kube: Kube, directory: Path) -> Iterator[tuple[Gate, Path]]:
    """A gate in front of the API server, and a kubeconfig of an administrator that leads through it."""
    name = "gated"
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    things = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": role,
            "subjects": [subject],
        },
    ]
    kube.apply(things)
    try:
        with api_gate.running(kube, directory) as gate:
            token = kube("-n", "default", "create", "token", name).strip()
            authority = base64.b64encode(gate.ca.encode()).decode()
            server = {"server": f"https://{gate.host}:{gate.port}", "certificate-authority-data": authority}
            file = directory / "gated"
            file.write_text(
                json.dumps(
                    {
                        "current-context": name,
                        "clusters": [{"name": name, "cluster": server}],
                        "users": [{"name": name, "user": {"token": token}}],
                        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
                    }
                )
            )
            yield gate, file
    finally:
        kube("delete", "clusterrolebinding", name)
        kube("-n", "default", "delete", "serviceaccount", name)


@pytest.mark.timeout(1200)
def test_an_api_server_that_goes_away_in_the_middle(
    kube: Kube, meshscrape: Path, live: Live, prometheus: Prometheus, tmp_path: Path, row: Row
) -> None:
    """The run says how much is made; pods and Prometheus go on, and so does the next run."""
    with through_a_gate(kube, tmp_path) as (gate, kubeconfig):
        words = ("--canary", f"{SPACE}/httpbin", "--pause", "300")
        process = Live(meshscrape, kubeconfig).start("apply", *PLAN, *YES, *words)
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "phase listeners: pausing" in line:
                break
        with gate.closed():
            lines += process.stderr.readlines()
            assert process.wait(120) == 2, lines
    last = lines[-1]
    assert "made and stay" in last and "run apply again" in last, lines
    prometheus.wait_for_up(set(shop.addresses(kube).values()))
    # The Lease of the run that could not give it back lasts for a minute.
    until(lambda: "changes this cluster" not in live.run("apply", *PLAN, *YES).stderr, "the Lease expires")
    again = live.run("plan", *PLAN)
    assert again.returncode == 0, again.stdout
    row(
        "API server away from apply in its middle",
        "exit code 2 with the number of changes, every target up meanwhile; run again: finished",
    )
