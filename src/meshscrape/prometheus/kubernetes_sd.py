"""Prometheus' jobs that find the secure ports of a cluster's pods, with the relabeling they need.

Facts of service discovery (role `pod`) are Prometheus'; annotations are Istio's. Every field is known to
Prometheus 2.42 and 3, vmagent and the OpenTelemetry Collector, except `enable_http2` (see `collectors`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MERGED_PATH, SECURE_ENVOY_PORT_META, SECURE_PORT_META
from meshscrape.istio.ports import HIGHEST, MERGED, STATS
from meshscrape.prometheus.direct import direct_tls
from meshscrape.prometheus.targets import APPLICATION_JOB, ENVOY_JOB, MERGED_JOB

Rule = dict[str, Any]

SECURE_JOBS: Mapping[str, str] = {MERGED_JOB: SECURE_PORT_META, ENVOY_JOB: SECURE_ENVOY_PORT_META}
POD_META = "__meta_kubernetes_pod_"
_OWN_SERIES = (
    "duration_seconds", "samples_scraped", "samples_post_metric_relabeling", "series_added",
    "timeout_seconds", "sample_limit", "body_size_bytes",
)  # fmt: skip
_PORT = "[1-9][0-9]{0,4}"


@dataclass(frozen=True, slots=True)
class ApplicationPort:
    """An application's own metrics port, scraped over mTLS: `https://POD:port path`.

    `labels` select the pods of `namespace`. `service_labels` and `service_port` are the labels of the Service
    and the name of its port, for a ServiceMonitor; without them a PodMonitor does it. Works where the port's
    mTLS mode is STRICT and Istio takes the port for HTTP.
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    port: int
    path: str = "/metrics"
    service_labels: Mapping[str, str] | None = None
    service_port: str = ""

    def __post_init__(self) -> None:
        if not self.labels or not 0 < self.port <= HIGHEST or not self.path.startswith("/"):
            raise InputError(
                f"application {self.namespace}/{self.name}: no pod labels, or no port, or no path",
                remedy="name the pods' labels, a port from 1 to 65535 and a path that begins with /",
            )


@dataclass(frozen=True, slots=True)
class ClusterJobs:
    """What the jobs are made of. `certificates` is the directory of OUTPUT_CERTS as the scraper sees it.

    `namespaces`: only pods of these; none is all. Intervals are durations as Prometheus writes them; empty
    is the global setting. `keep_own_series`: keep `up` and `scrape_*` that an application exposes (for
    federation). `sample_limit`, `body_size_limit`: limits of one scrape; 0 and "" are none.
    """

    certificates: str
    namespaces: tuple[str, ...] = ()
    applications: tuple[ApplicationPort, ...] = ()
    interval: str = ""
    timeout: str = ""
    keep_own_series: bool = False
    sample_limit: int = 0
    body_size_limit: str = ""


def secure_jobs(options: ClusterJobs) -> list[dict[str, Any]]:
    """The list for `scrape_configs`: merged metrics, Envoy's alone, and the applications' own ports."""
    jobs = [
        _job(job, options, options.namespaces, (*_annotated(annotation), *labels()))
        for job, annotation in SECURE_JOBS.items()
    ]
    return jobs + [_application_job(each, options) for each in options.applications]


def drop_secured() -> Rule:
    """For a plaintext job, as its last rule: leave out the proxy's ports of pods that announce a secure one.

    So none is scraped twice: a pod moves by itself when it gets the annotation, and back when it loses it. An
    application's own port stays, for it may be in no merge.
    """
    return {
        "action": "drop",
        "source_labels": [f"{POD_META}annotationpresent_{SECURE_PORT_META}", "__address__"],
        "regex": f"true;.*:({MERGED}|{STATS})",
    }


def drop_secured_monitor() -> Rule:
    """`drop_secured` as a PodMonitor writes it."""
    return camel_rule(drop_secured())


def drop_own_series() -> Rule:
    """Return a metric relabelling rule that drops what an application must not write.

    Prometheus adds `up` and `scrape_*` to every scrape itself. An application that exposes series of these
    names forges or silences them, because a sample with a later timestamp wins. What Prometheus adds does not
    pass this rule.
    """
    return {
        "action": "drop",
        "source_labels": ["__name__"],
        "regex": f"up|scrape_({'|'.join(_OWN_SERIES)})",
    }


def camel_rule(rule: Mapping[str, Any]) -> Rule:
    """Return a relabeling rule as Prometheus' Operator spells it (`sourceLabels`, `targetLabel`)."""
    return {camel(key): value for key, value in rule.items()}


def camel(name: str) -> str:
    """Return `insecure_skip_verify` as `insecureSkipVerify`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def anchor() -> list[Rule]:
    """One target per pod with an Envoy of the mesh: Running pods, container istio-proxy, its port 15090.

    Discovery gives one target for every declared port of every container, init containers (native
    sidecars) included, and one without a port for containers that declare none. Every template of Istio
    declares 15090 alone or among others; a gateway whose ports are not exposed declares none.
    """
    return [
        {"action": "keep", "source_labels": [f"{POD_META}phase"], "regex": "Running"},
        {
            "action": "keep",
            "source_labels": [f"{POD_META}container_name", f"{POD_META}container_port_number"],
            "regex": f"istio-proxy;({STATS})?",
        },
    ]


def announced(annotation: str) -> list[Rule]:
    """Keep the pods that announce a port by `annotation` (sanitised), and make it the target's address.

    Discovery gives IPv6 addresses without brackets.
    """
    port = f"{POD_META}annotation_{annotation}"
    return [
        {"action": "keep", "source_labels": [port], "regex": _PORT},
        *_address([f"{POD_META}ip", port], "(.+)"),
    ]


def labels() -> list[Rule]:
    """Return `namespace`, `pod` and `workload`, the names that Istio's own telemetry has for them.

    The workload is what controls the pod. A Deployment is behind a ReplicaSet (told by the hash that it
    labels its pods with), a CronJob behind a Job; a pod that nothing controls is its own workload.
    """
    controller = [
        f"{POD_META}controller_kind",
        f"{POD_META}label_pod_template_hash",
        f"{POD_META}controller_name",
    ]
    return [
        _replace(["__meta_kubernetes_namespace"], "(.+)", "namespace", "$1"),
        _replace([f"{POD_META}name"], "(.+)", "pod", "$1"),
        _replace([f"{POD_META}name"], "(.+)", "workload", "$1"),
        _replace([f"{POD_META}controller_name"], "(.+)", "workload", "$1"),
        _replace(controller, "ReplicaSet;[^;]+;(.+)-[a-z0-9]+", "workload", "$1"),
        _replace(controller, "Job;[^;]*;(.+)-[0-9]{8,10}", "workload", "$1"),
    ]


def label_name(name: str) -> str:
    """Return a Kubernetes label or annotation key as service discovery sanitises it."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)


def application_rules(application: ApplicationPort) -> list[Rule]:
    """Keep the pods of an application, one target each, at its own port."""
    keep = [
        {"action": "keep", "source_labels": [f"{POD_META}label_{label_name(key)}"], "regex": _literal(value)}
        for key, value in sorted(application.labels.items())
    ]
    return [*keep, *_address([f"{POD_META}ip"], None, str(application.port))]


def _annotated(annotation: str) -> Iterable[Rule]:
    return (*anchor(), *announced(annotation))


def _application_job(application: ApplicationPort, options: ClusterJobs) -> dict[str, Any]:
    rules = (*anchor(), *application_rules(application), *labels())
    name = f"{APPLICATION_JOB}/{application.namespace}/{application.name}"
    job = _job(name, options, (application.namespace,), rules)
    job["metrics_path"] = application.path
    # Envoy offers HTTP/2 in its handshake where Istio does not know the port to be HTTP, and then passes
    # HTTP/2 on to an application that may speak HTTP/1.1 alone.
    job["enable_http2"] = False
    return job


def _job(name: str, options: ClusterJobs, namespaces: Sequence[str], rules: Iterable[Rule]) -> dict[str, Any]:
    discovery: dict[str, Any] = {"role": "pod"}
    if namespaces:
        discovery["namespaces"] = {"names": sorted(namespaces)}
    job: dict[str, Any] = {"job_name": name}
    if options.interval:
        job["scrape_interval"] = options.interval
    if options.timeout:
        job["scrape_timeout"] = options.timeout
    if options.sample_limit:
        job["sample_limit"] = options.sample_limit
    if options.body_size_limit:
        job["body_size_limit"] = options.body_size_limit
    return job | {
        "scheme": "https",
        # The path of a secure port is fixed; `prometheus.io/path` may still be that of the application.
        "metrics_path": MERGED_PATH,
        # A target answers itself or not at all: it does not send the scraper, with its key, elsewhere.
        "follow_redirects": False,
        "tls_config": direct_tls(options.certificates),
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": list(rules),
        **({} if options.keep_own_series else {"metric_relabel_configs": [drop_own_series()]}),
    }


def _address(sources: list[str], port_pattern: str | None, port: str = "$2") -> list[Rule]:
    tail = f";{port_pattern}" if port_pattern else ""
    return [
        _replace(sources, f"(.*:.*){tail}", "__address__", f"[$1]:{port}"),
        _replace(sources, f"([^:;]+){tail}", "__address__", f"$1:{port}"),
    ]


def _replace(sources: list[str], regex: str, target: str, replacement: str) -> Rule:
    return {
        "action": "replace",
        "source_labels": list(sources),
        "regex": regex,
        "target_label": target,
        "replacement": replacement,
    }


def _literal(text: str) -> str:
    """Return a regular expression (RE2) that matches `text` alone."""
    return "".join(c if c.isalnum() or c in "_-/" else f"\\{c}" for c in text)
