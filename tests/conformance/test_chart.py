"""The Helm chart in helm's own hands: rendered, refused, installed, removed; and what it renders, in use."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance import operator, shop
from conformance.cluster import programs
from conformance.kube import Kube, Object, until
from conformance.live import Live
from conformance.migration import Migration
from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.recorded import GROUP
from meshscrape.prometheus.scrape_proxy_pod import ScrapeProxyPod
from support.documents import faults

Row = Callable[..., None]
CHART = Path(__file__).parents[2] / "charts/meshscrape"
SPACE = "chart"
NOTE = "proxy.istio.io/config"
YES = ("--yes", "--yes-interruption")
HOLE = 'meshscrape_check_failed{check="plaintext-closed",workload="httpbin"}'
IMAGE = {"repository": "docker.io/meshscrape/meshscrape", "tag": "test"}
ALIAS = "old.example"
EVERYTHING = {
    "image": {**IMAGE, "digest": "sha256:" + "0" * 64},
    "prometheus": {
        "kind": "Prometheus", "name": "main", "namespace": SPACE, "serviceAccount": "prometheus-main"
    },
    "mesh": {"trustDomainAliases": [ALIAS]},
    "proxy": {"namespaces": ["shop", SPACE], "monitorLabels": {"release": "main"}},
    "verifier": {"enabled": True, "namespaces": ["shop"]},
    "rules": {
        "as": "PrometheusRule",
        "labels": {"release": "main"},
        "runbookUrl": "https://wiki.example/runbook",
        "without": ["MeshPlaintextScrape"],
    },
    "dashboard": {"annotations": {"folder": "mesh"}},
}  # fmt: skip
CASES: Mapping[str, dict[str, Any]] = {
    "a Deployment": {"image": IMAGE},
    "a StatefulSet": {"image": IMAGE, "prometheus": {"kind": "StatefulSet"}},
    "a DaemonSet": {"image": IMAGE, "prometheus": {"kind": "DaemonSet"}},
    "a Prometheus object, everything set": EVERYTHING,
    "rules and dashboard alone": {"proxy": {"enabled": False}},
    "a verifier that stays": {
        "image": IMAGE,
        "verifier": {"enabled": True, "kind": "Deployment", "prometheusLabels": {"app": "prometheus"}},
    },
    "a verifier that stays, for a Prometheus object": {
        "image": IMAGE,
        "prometheus": {"kind": "Prometheus", "namespace": SPACE},
        "verifier": {"enabled": True, "kind": "Deployment", "namespaces": ["shop"]},
    },
}


class Helm:
    """helm with directories of its own."""

    def __init__(self, kubeconfig: Path, directory: Path) -> None:
        self._kubeconfig, self._directory = kubeconfig, directory

    def run(self, *words: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Run helm; `values` go to its standard input."""
        homes = {f"HELM_{name}_HOME": str(self._directory / name) for name in ("CACHE", "CONFIG", "DATA")}
        more = [] if values is None else ["--values", "-"]
        return subprocess.run(
            [str(programs.program("helm")), *words, "--kubeconfig", str(self._kubeconfig), *more],
            input=None if values is None else json.dumps(values),
            env={**os.environ, **homes},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def template(self, values: Mapping[str, Any], namespace: str = SPACE) -> list[Object]:
        """Return the objects that the chart renders."""
        done = self.run("template", "ms", str(CHART), "--namespace", namespace, values=values)
        assert done.returncode == 0, done.stderr
        return [value for value in yaml.safe_load_all(done.stdout) if value]


@pytest.fixture
def helm(kube: Kube, tmp_path: Path) -> Helm:
    """The pinned helm."""
    return Helm(kube.kubeconfig, tmp_path / "helm")


@pytest.fixture
def rendering(tmp_path: Path) -> Helm:
    """The pinned helm without a cluster: `helm template` needs none."""
    programs.built("helm")
    return Helm(tmp_path / "kubeconfig", tmp_path / "helm")


@pytest.fixture
def space(kube: Kube) -> Iterator[str]:
    """A namespace, beside the Operator's CRDs without the Operator."""
    definitions, _ = operator.bundle()
    names = re.findall(r"^  name: (\S+\.monitoring\.coreos\.com)$", definitions, re.MULTILINE)
    kube.apply(definitions, "--server-side", "--force-conflicts")
    kube("wait", "--for=condition=Established", "crd", *names)
    try:
        with kube.namespace(SPACE) as name, kube.namespace("shop"):
            yield name
    finally:
        kube("delete", "crd", *names, "--ignore-not-found", "--timeout=300s")


def test_chart_is_accepted_installed_and_taken_away(kube: Kube, helm: Helm, space: str, row: Row) -> None:
    """The API server takes every object of every case; nothing is left after `helm uninstall`."""
    kinds: set[str] = set()
    for name, values in CASES.items():
        linted = helm.run("lint", str(CHART), "--strict", values=values)
        assert linted.returncode == 0, (name, linted.stdout, linted.stderr)
        objects = helm.template(values)
        kinds |= {each["kind"] for each in objects}
        kube.apply(objects, "--server-side", "--dry-run=server")
        done = helm.run("install", "ms", str(CHART), "--namespace", space, values=values)
        assert done.returncode == 0, (name, done.stderr)
        for each in objects:
            assert kube.has(*_place(each)), each["metadata"]
        done = helm.run("uninstall", "ms", "--namespace", space)
        assert done.returncode == 0, (name, done.stderr)
        assert [each["metadata"] for each in objects if kube.has(*_place(each))] == []
    row(
        "Helm chart: helm lint, template, install, uninstall",
        f"{len(CASES)} sets of values; the API server takes {', '.join(sorted(kinds))}; nothing is left",
        helm=programs.BY_NAME["helm"].version,
    )


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_patch_adds_the_proxy_to_an_owner_of_pods(
    kube: Kube, helm: Helm, tmp_path: Path, kind: str, row: Row
) -> None:
    """What was there stays; the same patch again changes nothing."""
    with kube.namespace("owners") as space:
        _patch_twice(kube, helm, tmp_path, kind, space)
    row(
        f"Helm chart: its patch on a {kind}",
        "own containers, volumes and mounts stay; patched again: no change",
    )


def _patch_twice(kube: Kube, helm: Helm, tmp_path: Path, kind: str, space: str) -> None:
    labels = {"app": "own"}
    container = {
        "name": "prometheus",
        "image": "docker.io/prom/prometheus:v3.10.0",
        "volumeMounts": [{"name": "config", "mountPath": "/etc/prometheus"}],
    }
    pod = {
        "nodeSelector": {"nowhere": "true"},
        "initContainers": [{"name": "prepare", "image": "docker.io/library/pause:1"}],
        "containers": [container, {"name": "reloader", "image": "docker.io/library/pause:1"}],
        "volumes": [{"name": "config", "emptyDir": {}}],
    }
    own = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "own", "namespace": space},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
            **({"serviceName": "own", "replicas": 2} if kind == "StatefulSet" else {}),
        },
    }
    kube.apply(own)
    (config,) = [
        each
        for each in helm.template({"image": IMAGE, "prometheus": {"kind": kind, "name": "own"}})
        if each["metadata"]["name"] == "ms-meshscrape-prometheus"
    ]
    patch = tmp_path / "patch.yaml"
    patch.write_text(config["data"]["patch.yaml"])
    words = ("-n", space, "patch", kind.lower(), "own", "--patch-file", str(patch))
    kube(*words)
    patched = kube.get("-n", space, kind.lower(), "own")
    spec = patched["spec"]["template"]["spec"]
    assert [each["name"] for each in spec["containers"]] == ["prometheus", "reloader"]
    names = {each["name"] for each in spec["initContainers"]}
    assert names == {"prepare", *scrape_proxy_pod.CONTAINERS}
    mounts = [each["name"] for each in spec["containers"][0]["volumeMounts"]]
    assert set(mounts) == {"config", scrape_proxy_pod.TOKEN_VOLUME}
    kube(*words)
    # kubectl itself says "no change" only if the controller has not written the status meanwhile.
    again = kube.get("-n", space, kind.lower(), "own")
    assert again["metadata"]["generation"] == patched["metadata"]["generation"]


def test_chart_renders_what_the_values_say(helm: Helm) -> None:
    """The containers are the package's own; rules are left out and lead to the user's runbook."""
    rendered = helm.template(EVERYTHING)
    objects = {(each["kind"], each["metadata"]["name"]): each for each in rendered}
    spec = yaml.safe_load(objects["ConfigMap", "ms-meshscrape-prometheus"]["data"]["spec.yaml"])
    image = f"{IMAGE['repository']}@sha256:{'0' * 64}"
    proxy = ScrapeProxyPod(image, "istiod.istio-system.svc:15012", "cluster.local", (ALIAS,))
    wanted = scrape_proxy_pod.init_containers(proxy)
    namespaces = ["--namespace", "shop", "--namespace", SPACE]
    arguments = [each["args"] for each in wanted]
    arguments[2][-2:-2] = namespaces
    assert spec["initContainers"] == wanted
    assert spec["volumes"] == scrape_proxy_pod.volumes(proxy)
    rule = objects["PrometheusRule", "ms-meshscrape-rules"]
    rules = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    alerts = {each["alert"]: each for each in rules if "alert" in each}
    assert "MeshTargetDown" in alerts
    assert "MeshPlaintextScrape" not in alerts
    urls = [each["annotations"]["runbook_url"] for each in alerts.values()]
    assert all(url.startswith("https://wiki.example/runbook#mesh") for url in urls)
    assert GROUP in [group["name"] for group in rule["spec"]["groups"]]
    assert rule["metadata"]["labels"]["release"] == "main"
    monitors = [each for (kind, _), each in objects.items() if kind == "PodMonitor"]
    assert {each["metadata"]["labels"]["release"] for each in monitors} == {"main"}
    selected = [each["spec"]["namespaceSelector"] for each in monitors]
    assert selected == [{"matchNames": ["shop", SPACE]}] * 2
    roles: dict[str, list[str]] = {}
    for role in [value for value in rendered if value["kind"] == "Role"]:
        roles.setdefault(role["metadata"]["name"], []).append(role["metadata"]["namespace"])
    # One for the discovery of the proxy, one for the verifier.
    assert list(roles.values()) == [["shop", SPACE]] * 2
    board = json.loads(objects["ConfigMap", "ms-meshscrape-dashboard"]["data"]["meshscrape.json"])
    assert board["panels"]


def rendered(helm: Helm, **verifier: Any) -> dict[tuple[str, str], Object]:
    """Return what the chart renders with a verifier, by kind and name."""
    values = {
        "image": IMAGE,
        "prometheus": {"namespace": "monitoring"},
        "verifier": {"enabled": True, **verifier},
    }
    return {(each["kind"], each["metadata"]["name"]): each for each in helm.template(values)}


VERIFIER = "ms-meshscrape-verifier"


def test_verifier_that_stays_is_confined(rendering: Helm) -> None:
    """A restricted pod; only Prometheus's pods may read its metrics, whose own labels are kept."""
    labels = {"app.kubernetes.io/name": "prometheus"}
    objects = rendered(rendering, kind="Deployment", interval="30s", prometheusLabels=labels)
    assert ("CronJob", VERIFIER) not in objects
    template = objects["Deployment", VERIFIER]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    context = container["securityContext"]
    assert (context["runAsNonRoot"], context["readOnlyRootFilesystem"]) == (True, True)
    assert (context["capabilities"], context["allowPrivilegeEscalation"]) == ({"drop": ["ALL"]}, False)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    (port,) = container["ports"]
    assert container["args"] == [
        "verify", "--kubernetes", "--quiet", "--watch", "--interval", "30s",
        "--metrics", f"0.0.0.0:{port['containerPort']}",
    ]  # fmt: skip
    policy = objects["NetworkPolicy", VERIFIER]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    ((admitted,), (open_port,)) = policy["ingress"][0]["from"], policy["ingress"][0]["ports"]
    assert admitted["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert admitted["podSelector"] == {"matchLabels": labels}
    assert open_port["port"] == port["containerPort"]
    (job,) = yaml.safe_load(objects["ConfigMap", VERIFIER]["data"]["jobs.yaml"])
    assert job["honor_labels"] is True


def test_verifier_of_some_namespaces_may_connect_to_their_pods_only(rendering: Helm) -> None:
    """And to Prometheus's. It reads objects of every namespace, because a part of a mesh cannot be judged."""
    objects = rendered(rendering, namespaces=["shop"])
    reading = objects["ClusterRole", f"{SPACE}-{VERIFIER}"]["rules"]
    assert {verb for rule in reading for verb in rule["verbs"]} == {"list"}
    assert not [rule for rule in reading if "pods/proxy" in rule["resources"]]
    everything = rendered(rendering)["ClusterRole", f"{SPACE}-{VERIFIER}"]["rules"]
    (visiting,) = (rule for rule in everything if "pods/proxy" in rule["resources"])
    assert visiting["verbs"] == ["get"]
    values = {
        "image": IMAGE, "prometheus": {"namespace": "monitoring"},
        "verifier": {"enabled": True, "namespaces": ["shop"]},
    }  # fmt: skip
    roles = {
        each["metadata"]["namespace"]: each["rules"]
        for each in rendering.template(values)
        if each["kind"] == "Role" and each["metadata"]["name"] == f"{SPACE}-{VERIFIER}"
    }
    assert roles == {"shop": [visiting], "monitoring": [visiting]}


def test_alert_misses_a_verifier_that_stays(rendering: Helm) -> None:
    """Where none is to be there, its absence is no alert."""
    for kind, groups in (("Deployment", 1), ("CronJob", 0)):
        text = rendered(rendering, kind=kind)["ConfigMap", "ms-meshscrape-rules"]["data"]["rules.yaml"]
        names = [group["name"] for group in yaml.safe_load(text)["groups"]]
        assert names.count("meshscrape-verifier") == groups


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "image.repository"),
        ({"image": IMAGE, "prometeus": {}}, "prometeus"),
        ({"image": IMAGE, "prometheus": {"kind": "Pod"}}, "kind"),
        ({"image": IMAGE, "mesh": {"caAddress": "istiod"}}, "caAddress"),
        ({"image": IMAGE, "verifier": {"kind": "DaemonSet"}}, "kind"),
    ],
    ids=str,
)  # fmt: skip
def test_chart_refuses_wrong_values(helm: Helm, values: dict[str, Any], said: str) -> None:
    """helm says which value is wrong, before anything reaches a cluster."""
    done = helm.run("template", "ms", str(CHART), values=values)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.timeout(900)
def test_chart_puts_the_scrape_proxy_beside_an_existing_prometheus(
    kube: Kube, helm: Helm, meshscrape: Path, tmp_path: Path, row: Row
) -> None:
    """The notes of the chart, followed: patch and jobs, and Prometheus scrapes through the proxy."""
    with shop.shop(kube, strict=True), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        secured = Migration(kube, meshscrape, tmp_path, ("--mode", "native", "-n", shop.NAMESPACE))
        secured.render()
        secured.apply("3-listeners")
        secured.settle((shop.NAMESPACE,))
        values = {
            "image": IMAGE,
            "verifier": {"enabled": True, "namespaces": [shop.NAMESPACE]},
            "prometheus": {
                "name": "prometheus",
                "serviceAccount": "prometheus",
                "container": "prometheus-server",
            },
        }
        done = helm.run(
            "install", "meshscrape", str(CHART), "--namespace", prometheus.namespace, values=values
        )
        assert done.returncode == 0, done.stderr
        try:
            data = kube.get("-n", prometheus.namespace, "configmap", "meshscrape-prometheus")["data"]
            _add_jobs(kube, prometheus.namespace, yaml.safe_load(data["jobs.yaml"]))
            patch = tmp_path / "patch.yaml"
            patch.write_text(data["patch.yaml"])
            kube("-n", prometheus.namespace, "patch", "deployment/prometheus", "--patch-file", str(patch))
            kube.rollout(prometheus.namespace, "deployment/prometheus")
            targets = prometheus.wait_for_up(
                set(shop.addresses(kube).values()), "istio-secure-merged-metrics"
            )
            report = _verified(kube, prometheus.namespace)
        finally:
            helm.run("uninstall", "meshscrape", "--namespace", prometheus.namespace)
        assert all(re.fullmatch(r"http://.+:15092/stats/prometheus", each["scrapeUrl"]) for each in targets)
        assert faults(report, "VerifyReport") == []
        assert {each["check"] for each in report["checks"]} >= {"no-certificate", "prometheus-target"}
        row(
            "Helm chart: scrape proxy beside an existing Prometheus",
            f"patch and jobs as its notes say; {len(targets)} targets up through the proxy; "
            f"its CronJob verified {len(report['checks'])} checks",
            Prometheus=prometheus.version(),
            helm=programs.BY_NAME["helm"].version,
        )


@pytest.mark.whole
@pytest.mark.timeout(900)
def test_verifier_that_stays_tells_prometheus_of_a_hole(
    kube: Kube, helm: Helm, meshscrape: Path, row: Row
) -> None:
    """A pod that is older than its hardened template serves metrics in plaintext; then it restarts."""
    live = Live(meshscrape, kube.kubeconfig)
    with shop.shop(kube, strict=True), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        done = live.run("apply", "--mode", "native", "--no-harden", "-n", shop.NAMESPACE, *YES)
        assert done.returncode == 0, (done.stdout, done.stderr)
        values = {
            "image": IMAGE, "proxy": {"enabled": False},
            "verifier": {
                "enabled": True, "kind": "Deployment", "interval": "5s", "namespaces": [shop.NAMESPACE],
                "prometheusLabels": dict([shop.PROMETHEUS.split("=")]),
            },
        }  # fmt: skip
        space = prometheus.namespace
        done = helm.run("install", "meshscrape", str(CHART), "--namespace", space, values=values)
        assert done.returncode == 0, done.stderr
        try:
            kube.rollout(space, "deployment/meshscrape-verifier")
            _may_no_more_than_it_must(kube, space)
            data = kube.get("-n", space, "configmap", "meshscrape-verifier")["data"]
            _add_jobs(kube, space, yaml.safe_load(data["jobs.yaml"]))
            until(lambda: prometheus.query("meshscrape_verify_last_run_success == 1"), "a run is made", 180.0)
            assert prometheus.query(HOLE) == []
            kube("-n", shop.NAMESPACE, "rollout", "pause", "deployment/httpbin")
            _harden(kube, "httpbin")
            (hole,) = until(lambda: prometheus.query(f"{HOLE} == 1"), "the hole is seen", 180.0)
            kube("-n", shop.NAMESPACE, "rollout", "resume", "deployment/httpbin")
            until(lambda: prometheus.query(f"{HOLE} == 0"), "it is closed", 180.0)
        finally:
            helm.run("uninstall", "meshscrape", "--namespace", space)
        metric = hole["metric"]
        assert (metric["namespace"], metric["severity"]) == (shop.NAMESPACE, "hole")
        row(
            "Helm chart: a verifier that stays, scraped by an existing Prometheus",
            "a pod older than its hardened template: meshscrape_check_failed is 1, and 0 after its restart",
            Prometheus=prometheus.version(),
            helm=programs.BY_NAME["helm"].version,
        )


def _may_no_more_than_it_must(kube: Kube, space: str) -> None:
    """What a workload could do with the verifier's token."""
    account = f"--as=system:serviceaccount:{space}:meshscrape-verifier"
    asked = {
        ("get", "pods", "proxy", shop.NAMESPACE): "yes",
        ("get", "pods", "proxy", space): "yes",
        ("get", "pods", "proxy", "default"): "no",
        ("create", "pods", "proxy", shop.NAMESPACE): "no",
        ("create", "serviceaccounts", "token", space): "no",
        ("list", "secrets", "", shop.NAMESPACE): "no",
        ("create", "pods", "", space): "no",
        ("list", "pods", "", "default"): "yes",
    }
    answers = {}
    for verb, resource, part, where in asked:
        words = ("auth", "can-i", verb, resource, f"--subresource={part}", "-n", where, account)
        answers[verb, resource, part, where] = kube.run(*words).stdout.strip()
    assert answers == asked


def _harden(kube: Kube, name: str) -> None:
    """Close the plaintext ports in the template of a Deployment of the shop."""
    deployment = kube.get("-n", shop.NAMESPACE, "deployment", name)
    note = deployment["spec"]["template"]["metadata"]["annotations"][NOTE]
    settings = yaml.safe_load(note)
    settings["proxyMetadata"]["METRICS_LOCALHOST_ACCESS_ONLY"] = "true"
    metadata = {"annotations": {NOTE: yaml.safe_dump(settings)}}
    patch = {"spec": {"template": {"metadata": metadata}}}
    kube("-n", shop.NAMESPACE, "patch", "deployment", name, "-p", json.dumps(patch))


def _verified(kube: Kube, namespace: str) -> Object:
    """Run the chart's CronJob once, and return the report that it logs; 1 is its exit code for findings."""
    kube("-n", namespace, "create", "job", "once", "--from=cronjob/meshscrape-verifier")

    def code() -> list[int]:
        pods = kube.get("-n", namespace, "pods", "-l", "job-name=once")["items"]
        states = [state["state"] for pod in pods for state in pod["status"].get("containerStatuses", [])]
        return [state["terminated"]["exitCode"] for state in states if "terminated" in state]

    (ended,) = until(code, "the verifier's pod ends")
    told = kube("-n", namespace, "logs", "job/once")
    kube("-n", namespace, "delete", "job", "once")
    assert ended in (0, 1), told
    report: Object = json.loads(told)
    return report


def _add_jobs(kube: Kube, namespace: str, jobs: list[Object]) -> None:
    """Add jobs to the configuration of Istio's Prometheus add-on, without its plaintext jobs on proxies."""
    config = kube.get("-n", namespace, "configmap", "prometheus")
    settings = yaml.safe_load(config["data"]["prometheus.yml"])
    kept = [job for job in settings["scrape_configs"] if job["job_name"] != "kubernetes-pods"]
    settings["scrape_configs"] = kept + jobs
    config["data"]["prometheus.yml"] = yaml.safe_dump(settings, sort_keys=False)
    kube("replace", "-f", "-", stdin=json.dumps(config))


def _place(each: Object) -> tuple[str, ...]:
    """Return the words of kubectl that name an object."""
    group = each["apiVersion"].rpartition("/")[0]
    kind = f"{each['kind']}.{group}" if group else each["kind"]
    namespace = each["metadata"].get("namespace")
    return (*(("-n", namespace) if namespace else ()), kind, each["metadata"]["name"])
