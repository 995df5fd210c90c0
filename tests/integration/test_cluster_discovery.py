"""Which pods of a cluster the secure jobs scrape, and how: by Prometheus' own relabeling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from meshscrape.prometheus.existing import with_secure_jobs
from meshscrape.prometheus.kubernetes_sd import ApplicationPort, ClusterJobs, drop_secured, secure_jobs
from meshscrape.prometheus.targets import ENVOY_JOB, MERGED_JOB
from support.discovery import discovered
from support.promtool import relabelled
from support.upstream import INJECTED, SAMPLES, needs_upstream

PROXY_PORTS = [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}]
GATEWAY_PORTS = [{"containerPort": 15020, "name": "metrics"}, {"containerPort": 15021}, *PROXY_PORTS]
APPLICATION = ApplicationPort("shop", "web", {"app": "web", "app.kubernetes.io/name": "we.b"}, 9080)
JOBS = {job["job_name"]: job for job in secure_jobs(ClusterJobs("/certs", (), (APPLICATION,)))}


def pod(
    name: str = "web-5d4f-x1",
    *,
    address: str = "10.0.0.7",
    phase: str = "Running",
    native: bool = False,
    proxy_ports: list[dict[str, Any]] | None = None,
    owner: tuple[str, str] | None = ("ReplicaSet", "web-5d4f"),
    labels: dict[str, str] | None = None,
    **annotations: str,
) -> dict[str, Any]:
    """A pod with an application of two ports and a sidecar, that announces secure port 15092."""
    proxy = {"name": "istio-proxy", "image": "proxyv2:1.31.0"}
    proxy["ports"] = PROXY_PORTS if proxy_ports is None else proxy_ports  # type: ignore[assignment]
    web = {
        "name": "web",
        "image": "web",
        "ports": [{"containerPort": 9080, "name": "http"}, {"containerPort": 81}],
    }
    init = {"name": "istio-init", "image": "proxyv2:1.31.0"}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "shop",
        "labels": {"pod-template-hash": "5d4f"} if labels is None else labels,
        "annotations": {"prometheus.istio.io/secure-port": "15092", **annotations},
    }
    if owner:
        metadata["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "controller": True}]
    return {
        "metadata": metadata,
        "spec": {
            "containers": [web] if native else [web, proxy],
            "initContainers": [init, proxy] if native else [init],
        },
        "status": {"phase": phase, "podIP": address},
    }


def scraped(job: str, directory: Path, *pods: dict[str, Any]) -> list[dict[str, str]]:
    """The targets that a job makes of pods, with their final labels."""
    return relabelled(JOBS[job], [labels for each in pods for labels in discovered(each)], directory)


def test_one_target_per_running_pod_whatever_its_sidecar(tmp_path: Path) -> None:
    """Classic and native sidecars, gateways with three ports or none: one https target each, none skipped."""
    pods = [
        pod("classic"),
        pod("native", native=True),
        pod("gateway", proxy_ports=GATEWAY_PORTS),
        pod("bare-gateway", proxy_ports=[]),
    ]
    found = scraped(MERGED_JOB, tmp_path, *pods)
    assert [each["pod"] for each in found] == ["classic", "native", "gateway", "bare-gateway"]
    for each in found:
        assert (each["__scheme__"], each["__address__"]) == ("https", "10.0.0.7:15092")
        assert each["__metrics_path__"] == "/stats/prometheus"


def test_addresses_of_both_families(tmp_path: Path) -> None:
    """IPv6 addresses are put into brackets, the short spellings too."""
    six = ["2001:db8::7", "2001:db8::", "::ffff:7", "fd00:1:2:3:4:5:6:7"]
    pods = [pod(f"pod-{number}", address=address) for number, address in enumerate(["10.1.2.3", *six])]
    found = scraped(MERGED_JOB, tmp_path, *pods)
    wanted = ["10.1.2.3:15092", *(f"[{address}]:15092" for address in six)]
    assert [each["__address__"] for each in found] == wanted
    assert [each["instance"] for each in found] == wanted


def test_only_running_pods_that_announce_a_port(tmp_path: Path) -> None:
    """Pods that are not running, that announce nothing, or 0, or no number, are no targets."""
    silent = pod("silent")
    del silent["metadata"]["annotations"]["prometheus.istio.io/secure-port"]
    wrong = [
        pod(f"wrong-{n}", **{"prometheus.istio.io/secure-port": text})
        for n, text in enumerate(["0", "", "x:1"])
    ]
    phases = [pod(phase, phase=phase) for phase in ("Pending", "Succeeded", "Failed", "Unknown")]
    found = scraped(MERGED_JOB, tmp_path, silent, *wrong, *phases, pod("good"))
    assert [each["pod"] for each in found] == ["good"]


def test_application_path_does_not_apply_to_the_secure_port(tmp_path: Path) -> None:
    """`prometheus.io/path` of a pod without merging belongs to the application's port."""
    (found,) = scraped(MERGED_JOB, tmp_path, pod(**{"prometheus.io/path": "/actuator/prometheus"}))
    assert found["__metrics_path__"] == "/stats/prometheus"


OWNERS = [
    ("web-5d4f-x1", ("ReplicaSet", "web-5d4f"), {"pod-template-hash": "5d4f"}, "web"),
    ("web-a-b-5d4f-x1", ("ReplicaSet", "web-a-b-5d4f"), {"pod-template-hash": "5d4f"}, "web-a-b"),
    ("bare-rs-x1", ("ReplicaSet", "bare-rs"), {}, "bare-rs"),
    ("db-0", ("StatefulSet", "db"), {}, "db"),
    ("agent-x1", ("DaemonSet", "agent"), {}, "agent"),
    ("nightly-29381760-x1", ("Job", "nightly-29381760"), {}, "nightly"),
    ("migrate-x1", ("Job", "migrate"), {}, "migrate"),
    ("alone", None, {}, "alone"),
]


def test_workload_label_names_the_controller(tmp_path: Path) -> None:
    """The Deployment behind a ReplicaSet, the CronJob behind a Job, else the controller, else the pod."""
    pods = [pod(name, owner=owner, labels=labels) for name, owner, labels, _ in OWNERS]
    found = scraped(MERGED_JOB, tmp_path, *pods)
    assert [(each["namespace"], each["pod"], each["workload"]) for each in found] == [
        ("shop", name, workload) for name, _, _, workload in OWNERS
    ]


def test_envoy_port_has_its_own_job(tmp_path: Path) -> None:
    """`secure-envoy-port` makes a target of the second job, at that port."""
    both = pod(**{"prometheus.istio.io/secure-envoy-port": "15091"})
    (merged,) = scraped(MERGED_JOB, tmp_path, both)
    (envoy,) = scraped(ENVOY_JOB, tmp_path, both)
    assert (merged["__address__"], envoy["__address__"]) == ("10.0.0.7:15092", "10.0.0.7:15091")
    assert (merged["job"], envoy["job"]) == (MERGED_JOB, ENVOY_JOB)


def test_an_applications_own_port(tmp_path: Path) -> None:
    """The pods with all of its labels, one target each, at its port and path; a dot in a value is a dot."""
    labels = {"app": "web", "app.kubernetes.io/name": "we.b"}
    other = pod("other", labels={**labels, "app.kubernetes.io/name": "weXb"})
    job = f"istio-secure-application-metrics/{APPLICATION.namespace}/{APPLICATION.name}"
    (found,) = scraped(job, tmp_path, pod("mine", labels=labels, address="fd00::9"), other)
    assert (found["pod"], found["__address__"]) == ("mine", "[fd00::9]:9080")
    assert (found["__metrics_path__"], found["__scheme__"]) == ("/metrics", "https")


def test_plaintext_job_drops_proxies_of_secured_pods(tmp_path: Path) -> None:
    """Port 15090 of pods that announce a secure port is dropped; applications and other pods are not."""
    silent = pod("silent", address="10.0.0.8")
    del silent["metadata"]["annotations"]["prometheus.istio.io/secure-port"]
    job = {"job_name": "kubernetes-pods", "relabel_configs": [drop_secured()]}
    found = relabelled(job, [*discovered(pod("secured")), *discovered(silent)], tmp_path)
    # Prometheus 2 adds the scheme's port where there is none (the init container's target).
    assert [each["__address__"].removesuffix(":80") for each in found] == [
        "10.0.0.7:9080", "10.0.0.7:81", "10.0.0.7",
        "10.0.0.8:9080", "10.0.0.8:81", "10.0.0.8:15090", "10.0.0.8",
    ]  # fmt: skip


@needs_upstream
def test_job_of_istios_addon_releases_pod_after_pod(tmp_path: Path) -> None:
    """Its job `kubernetes-pods`, with the rule: secured pods are gone from it, over IPv6 too; others stay."""
    documents = yaml.safe_load_all((SAMPLES / "prometheus-secure-metrics.yaml").read_text())
    data = next(each for each in documents if each["kind"] == "ConfigMap")["data"]
    config = with_secure_jobs(yaml.safe_load(data["prometheus.yml"]), ClusterJobs("/c"), ["kubernetes-pods"])
    (job,) = [each for each in config["scrape_configs"] if each["job_name"] == "kubernetes-pods"]
    merged = {"prometheus.io/scrape": "true", "prometheus.io/port": "15020"}
    own = {"prometheus.io/scrape": "true", "prometheus.io/port": "9080"}
    silent = pod("silent", **merged)
    del silent["metadata"]["annotations"]["prometheus.istio.io/secure-port"]
    pods = [pod("secured", **merged), pod("six", address="fd00::7", **merged), pod("own-port", **own), silent]
    found = relabelled(job, [labels for each in pods for labels in discovered(each)], tmp_path)
    assert {each["pod"] for each in found} == {"own-port", "silent"}


@needs_upstream
def test_pods_as_the_injector_writes_them(tmp_path: Path) -> None:
    """Each of upstream's injected pods is one target once it announces a port."""
    pods = [_live(path) for path in sorted(INJECTED.glob("*.yaml"))]
    found = scraped(MERGED_JOB, tmp_path, *pods)
    assert len(pods) >= 5
    assert [each["pod"] for each in found] == [each["metadata"]["name"] for each in pods]


def _live(path: Path) -> dict[str, Any]:
    """The pod of a sample as it would run, announcing a secure port."""
    document = next(iter(yaml.safe_load_all(path.read_text())))
    template = document if document["kind"] == "Pod" else document["spec"]["template"]
    metadata = {**template["metadata"], "name": path.stem}
    metadata["annotations"] = {**metadata["annotations"], "prometheus.istio.io/secure-port": "15092"}
    status = {"phase": "Running", "podIP": "10.9.9.9"}
    return {"metadata": metadata, "spec": template["spec"], "status": status}
