"""A namespace whose pods are scraped through scrape proxies, which reach the API server by a gate."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from conformance import prober, samples, scraper, shop
from conformance.api_gate import Gate
from conformance.cluster.node import WANTED_ADDRESS
from conformance.kube import Kube, Object, until
from conformance.prometheus import Prometheus
from conformance.scraper import FILE, Program
from meshscrape.local.binaries import find_prometheus
from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.kubernetes_sd import ready
from meshscrape.prometheus.scrape_proxy_pod import CertificateFiles, ScrapeProxyPod

SPACE = "proxied"
IMAGE = "registry.example/meshscrape:test"
CERTIFICATES_MOUNT = {"name": "certificates", "mountPath": prober.CERTIFICATES, "readOnly": True}
LIFETIME = "60s"  # of every certificate; renewed at half of it
ANNOUNCED = "announced/"  # before the names of jobs with HTTP SD
MERGED, ENVOY = "istio-secure-merged-metrics", "istio-secure-envoy-metrics"
APPLICATION = "istio-secure-application-metrics"
OWN = "meshscrape-scrape-proxy"
PROMETHEUS_2 = Program(
    "docker.io/prom/prometheus:v2", (f"--config.file={FILE}", "--storage.tsdb.path=/data"), "prometheus"
)
# Ends the process that follows pods, as its own user, inside its pod.
KILL = """
import os, pathlib, signal
own = os.readlink("/proc/self/ns/net")
for entry in pathlib.Path("/proc").iterdir():
    try:
        words = (entry / "cmdline").read_bytes().split(b"\\0")
        if b"routes" in words and os.readlink(entry / "ns/net") == own:
            os.kill(int(entry.name), signal.SIGKILL)
    except (OSError, ValueError):
        continue
"""


def restarts(kube: Kube, prometheus: Prometheus) -> int:
    """Return how often the process that follows pods was started again."""
    (pod,) = kube.pods(prometheus.namespace, prometheus.selector)
    statuses = pod["status"]["initContainerStatuses"]
    return sum(int(each["restartCount"]) for each in statuses if each["name"] == scrape_proxy_pod.CONTAINER)


def kill(kube: Kube, prometheus: Prometheus) -> None:
    """Kill the process that follows pods, and wait until the kubelet has started it again."""
    (pod,) = kube.pods(prometheus.namespace, prometheus.selector)
    place = ("-n", prometheus.namespace, "exec", pod["metadata"]["name"], "-c", scrape_proxy_pod.CONTAINER)
    before = restarts(kube, prometheus)
    # What runs in a container ends with its main process, so this command does, too.
    kube.run(*place, "--", "python3", "-c", KILL)
    until(lambda: restarts(kube, prometheus) > before, "the kubelet starts the killed process again")


@dataclass
class Tally:
    """The scrapes of the targets that stayed, while a block ran."""

    scrapes: int = 0


@dataclass
class Mesh:
    """The namespace: what stays in it, what comes and goes, and the Prometheus that reads it."""

    kube: Kube
    gate: Gate
    prometheus: Prometheus
    steady: dict[str, str] = field(default_factory=dict)  # the address of each workload that stays

    def expected(self) -> set[tuple[str, str]]:
        """Return job and URL of every target that stays."""
        found = set()
        for address in self.steady.values():
            found |= endpoints(address)
        own = f"http://{self.steady['productpage']}:9080/metrics"
        return found | {(APPLICATION, own), (ANNOUNCED + APPLICATION, own)}

    def up(self, prometheus: Prometheus, wanted: set[tuple[str, str]]) -> None:
        """Wait until these targets are there and up, and no others of their hosts."""
        hosts = {url.split("/")[2].rpartition(":")[0] for _, url in wanted}
        seen: list[Object] = []

        def good() -> bool:
            seen[:] = prometheus.of(hosts)
            there = sorted((each["scrapePool"], each["scrapeUrl"]) for each in seen)
            return there == sorted(wanted) and all(each["health"] == "up" for each in seen)

        def detail() -> list[object]:
            return [
                (each["scrapePool"], each["scrapeUrl"], each["health"], each["lastError"][:200])
                for each in seen
            ]

        until(good, f"{sorted(wanted)} are up", detail=detail)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[Tally]:
        """Count the scrapes of the targets that stay while the block runs; fail if one is lost or missing."""
        self.up(self.prometheus, self.expected())
        began, tally = self.prometheus.now(), Tally()
        yield tally
        self.up(self.prometheus, self.expected())
        seconds = max(1, round(self.prometheus.now() - began))
        addresses = set(self.steady.values())
        lost = self.prometheus.lost_scrapes(addresses, seconds)
        assert not lost, f"{len(lost)} scrapes were lost in {seconds} s: {lost[:20]}; {self._why(seconds)}"
        # The proxy's own job has a fixed target, so it shows how many scrapes there can have been.
        counts = {
            (each["metric"]["job"], each["metric"]["instance"]): int(float(each["value"][1]))
            for each in self.prometheus.query(f"count_over_time(up[{seconds}s])")
        }
        (most,) = (count for (job, _), count in counts.items() if job == OWN)
        for job, url in self.expected():
            count = counts.get((job, url.split("/")[2]), 0)
            # Each target has its own moment within the interval, at both ends.
            assert count >= most - 2, f"{job} {url}: {count} scrapes in {seconds} s, {most} of a fixed target"
            tally.scrapes += count

    def _why(self, seconds: int) -> str:
        """Return what the proxy refused meanwhile, and how often Prometheus did not reach the proxy itself.

        What is in neither of the two was too late for Prometheus.
        """
        asked = f"sum by (reason, target) (increase(meshscrape_scrape_refusals_total[{seconds}s])) > 0"
        refused = [(each["metric"], each["value"][1]) for each in self.prometheus.query(asked)]
        missed = self.number(f'sum(count_over_time((up{{job="{OWN}"}} == 0)[{seconds}s:1s]))')
        return f"refused {refused}, own metrics missed {missed:.0f} times"

    def number(self, expression: str) -> float:
        """Return the value of a query that has one; 0 without a value."""
        found = self.prometheus.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    def reachable(self) -> bool:
        """Return whether the proxy says that it follows the API server."""
        return self.number("min(meshscrape_scrape_proxy_source_up)") == 1

    def log(self) -> str:
        """Return what the process that follows pods has said."""
        words = ("logs", "prometheus", "-c", scrape_proxy_pod.CONTAINER)
        return self.kube("-n", SPACE, *words)

    @contextlib.contextmanager
    def guest(self, name: str, account: str = "guest", address: str = "") -> Iterator[str]:
        """Provide a pod that comes and goes, ready, with some address or a given one; return the address."""
        self.kube.apply(guest(name, account, address))
        try:
            yield self.arrived(name)
        finally:
            self.kube("-n", SPACE, "delete", "pod", name, "--ignore-not-found", "--timeout=120s")

    def arrived(self, name: str) -> str:
        """Wait until a pod is ready, and return its address."""
        self.kube("-n", SPACE, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s")
        return str(self.kube.get("-n", SPACE, "pod", name)["status"]["podIP"])

    def before_first_success(self, address: str) -> dict[str, int]:
        """Return how many scrapes of a new pod failed before its first success, at most, by way."""
        found = {"drop-in": 0, "HTTP SD": 0}
        for each in self.prometheus.query(f'up{{instance=~"{address}:.*"}}[300s]'):
            values = [value for _, value in each["values"]]
            way = "HTTP SD" if each["metric"]["job"].startswith(ANNOUNCED) else "drop-in"
            found[way] = max(found[way], values.index("1"))
        return found


def endpoints(address: str) -> set[tuple[str, str]]:
    """Return job and URL of the secure ports of a pod, in both ways of discovery."""
    found = set()
    for job, port in ((MERGED, 15092), (ENVOY, 15091)):
        url = f"http://{address}:{port}/stats/prometheus"
        found |= {(job, url), (ANNOUNCED + job, url)}
    return found


@contextlib.contextmanager
def mesh(kube: Kube, meshscrape: Path, gate: Gate) -> Iterator[Mesh]:
    """Provide the namespace: httpbin and productpage stay, one Prometheus 3 reads them in both ways."""
    with kube.namespace(SPACE, **shop.INJECTED):
        kube.apply(
            [
                {
                    "apiVersion": "security.istio.io/v1",
                    "kind": "PeerAuthentication",
                    "metadata": prober.named(SPACE, "default"),
                    "spec": {"mtls": {"mode": "STRICT"}},
                },
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": prober.named(SPACE, "gate")}
                | {"data": {"ca.crt": gate.ca}},
                *accounts("guest", "impostor"),
            ]
        )
        kube.apply([_secured(each) for each in (*samples.httpbin(), *shop.productpage())], "-n", SPACE)
        kube.rollout(SPACE)
        prometheus = start(kube, meshscrape, gate, "prometheus", scraper.PROMETHEUS)
        steady = {name: kube.address(SPACE, f"app={name}") for name in ("httpbin", "productpage")}
        yield Mesh(kube, gate, prometheus, steady)


def accounts(*names: str) -> list[Object]:
    """Return ServiceAccounts."""
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": prober.named(SPACE, name)}
        for name in names
    ]


def _annotations() -> dict[str, str]:
    """Return the annotations of a pod with both secure ports, under STRICT, with short certificates."""
    return {
        "proxy.istio.io/config": samples.proxy_metadata(**samples.SECURE_PORTS, SECRET_TTL=LIFETIME),
        "prometheus.istio.io/secure-port": "15092",
        "prometheus.istio.io/secure-envoy-port": "15091",
        "traffic.sidecar.istio.io/excludeInboundPorts": "15091,15092",
    }


def _secured(value: Object) -> Object:
    return samples.annotate(value, **_annotations()) if value["kind"] == "Deployment" else value


def guest(name: str, account: str, address: str, space: str = SPACE) -> Object:
    """Return a pod that does nothing; its sidecar is what is scraped."""
    wanted = {WANTED_ADDRESS: json.dumps([address])} if address else {}
    container = {"name": "pause", "image": "registry.k8s.io/pause:3.10"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **prober.named(space, name),
            "labels": {"app": name},
            "annotations": _annotations() | wanted,
        },
        "spec": {
            "serviceAccountName": account,
            "terminationGracePeriodSeconds": 2,
            "containers": [container],
        },
    }


def prometheus_2_is_there() -> bool:
    """Return whether this machine has a Prometheus beside those that are built."""
    return find_prometheus(os.environ) is not None


# --- scrapers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variation:
    """How a scrape proxy differs from the usual one.

    It follows the pods of `namespaces`. With `share` other proxies may follow it; with `follow`, it follows
    the proxy at this address in place of the API server. With `files`, the pod's istio-proxy writes its
    certificate. `account` is the ServiceAccount of the pod, by default one of the pod's own name.
    """

    namespaces: tuple[str, ...] = (SPACE,)
    share: bool = False
    follow: str = ""
    files: bool = False
    account: str = ""


USUAL = Variation()
SHARE_PORT = 15098


def start(
    kube: Kube,
    meshscrape: Path,
    gate: Gate,
    name: str,
    program: Program,
    *,
    drop_in: bool = True,
    variation: Variation = USUAL,
) -> Prometheus:
    """Start a scraper with a scrape proxy beside it; both reach the API server through the gate."""
    value = pod(gate, name, program, variation)
    return scraper.start(kube, value, configuration(meshscrape, program, drop_in))


def configuration(meshscrape: Path, program: Program, drop_in: bool) -> str:
    """Return jobs in both ways of discovery, or with HTTP SD alone; those of HTTP SD have a prefix."""
    proxy = scrape_proxy_pod.IN_POD
    words = ("prometheus-config", "--scrape-interval", "1s", "--for", program.collector)
    access = ("--proxy", proxy.address, "--token-file", proxy.token_file)

    def made(*more: str) -> Any:
        command = [str(meshscrape), *words, *access, *more]
        return yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    whole = made()
    for job in whole["scrape_configs"]:
        if "http_sd_configs" in job:
            job["job_name"] = ANNOUNCED + job["job_name"]
    if drop_in:
        jobs = made("--kubernetes", "--namespace", SPACE)["scrape_configs"]
        whole["scrape_configs"] += [*jobs, _application(jobs[0])]
    return str(yaml.safe_dump(whole, sort_keys=False))


def _application(job: Object) -> Object:
    """Return a job for productpage's own port, made of one that goes through the proxy."""
    own = copy.deepcopy(job)
    keep = {
        "source_labels": [
            "__meta_kubernetes_pod_label_app",
            "__meta_kubernetes_pod_container_port_number",
        ],
        "regex": "productpage;9080",
        "action": "keep",
    }
    return own | {"job_name": APPLICATION, "metrics_path": "/metrics", "relabel_configs": [ready(), keep]}


def pod(gate: Gate, name: str, program: Program, variation: Variation = USUAL) -> Object:
    """Return the pod of a scraper with the sidecars that a plan gives it."""
    access = [
        {"name": "KUBERNETES_SERVICE_HOST", "value": gate.host},
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(gate.port)},
    ]
    mount = {"name": "api", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    proxy = ScrapeProxyPod(
        IMAGE,
        "istiod.istio-system.svc:15012",
        "cluster.local",
        namespaces=variation.namespaces,
        files=CertificateFiles(prober.CERTIFICATES, CERTIFICATES_MOUNT) if variation.files else None,
    )
    *agents, envoy, routes = scrape_proxy_pod.init_containers(proxy)
    for agent in agents:
        agent["env"].append({"name": "SECRET_TTL", "value": LIFETIME})
    if variation.follow:
        _follow(routes, variation)
    else:
        routes["env"] = list(access)
        routes["volumeMounts"].append(mount)
    if variation.share:
        routes["env"].append({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
        routes["args"] += ["--share", f"$(POD_IP):{SHARE_PORT}"]
    value = scraper.pod(SPACE, name, program, SECRET_TTL=LIFETIME)
    if not variation.files:
        value["metadata"]["labels"]["sidecar.istio.io/inject"] = "false"
        value["metadata"]["annotations"] = {}
    spec = value["spec"]
    spec["serviceAccountName"] = variation.account or name
    (container,) = spec["containers"]
    container["env"] = access
    container["volumeMounts"] = [
        *(each for each in container["volumeMounts"] if each["name"] != "certificates"),
        mount,
        scrape_proxy_pod.token_mount(),
    ]
    spec["initContainers"] = [*agents, envoy, routes]
    spec["automountServiceAccountToken"] = False
    spec["volumes"] = [
        *(each for each in spec["volumes"] if variation.files or each["name"] != "certificates"),
        *scrape_proxy_pod.volumes(proxy),
        _api_access(),
    ]
    return value


def _follow(routes: Object, variation: Variation) -> None:
    """Let the container follow another proxy; it gets no access to the API server."""
    pairs = [word for name in variation.namespaces for word in ("--namespace", name)]
    own = routes["args"][: -len(pairs)]
    assert routes["args"] == [*own, *pairs]
    routes["args"] = [word for word in own if word not in ("--kubernetes", "--applications")]
    routes["args"] += ["--follow", f"{variation.follow}:{SHARE_PORT}"]


def _api_access() -> Object:
    """Return what a pod usually gets for the API server, with the certificate of the gate."""
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"configMap": {"name": "gate"}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": "api", "projected": {"sources": sources}}
