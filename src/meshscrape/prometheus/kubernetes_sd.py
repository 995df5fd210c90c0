"""Prometheus jobs that discover the secure ports of a cluster's pods, with the relabelling they need.

Sources: Prometheus's documentation of service discovery (role `pod`), Istio's annotations. Prometheus 2.42
and 3, vmagent and the OpenTelemetry Collector know every field, except `enable_http2` (see `collectors`).
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
    and the name of its port, for a ServiceMonitor; without them it is a PodMonitor. The port's mTLS mode must
    be STRICT, and Istio must know that it speaks HTTP.
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
class ProxyInPod:
    """A scrape proxy beside the scraper: `host:port` for scrapes, and the token as the scraper sees it."""

    address: str
    token_file: str


@dataclass(frozen=True, slots=True)
class ClusterJobs:
    """The options of the jobs. `certificates` is the directory of OUTPUT_CERTS as seen by the scraper.

    With `proxy`, scrapes go through a scrape proxy, which verifies each target, and `certificates` is unused.
    `namespaces`: only pods of these; empty means all. Intervals are durations in Prometheus's syntax; empty
    means the global setting. `keep_own_series`: keep `up` and `scrape_*` that an application exposes (for
    federation). `sample_limit`, `body_size_limit`: limits of one scrape; 0 and "" mean no limit.
    """

    certificates: str
    namespaces: tuple[str, ...] = ()
    applications: tuple[ApplicationPort, ...] = ()
    interval: str = ""
    timeout: str = ""
    keep_own_series: bool = False
    sample_limit: int = 0
    body_size_limit: str = ""
    proxy: ProxyInPod | None = None


def secure_jobs(options: ClusterJobs) -> list[dict[str, Any]]:
    """Return the list for `scrape_configs`: merged metrics, Envoy's alone, and applications' own ports."""
    jobs = [
        _job(job, options, options.namespaces, (*_annotated(annotation), *labels()))
        for job, annotation in SECURE_JOBS.items()
    ]
    return jobs + [_application_job(application, options) for application in options.applications]


def drop_secured() -> Rule:
    """Return a plaintext job's last rule, which drops the proxy ports of pods that announce a secure port.

    So no pod is scraped twice: a pod moves when it gets the annotation, and back when it loses it. An
    application's own port stays, because its metrics may not be merged.
    """
    return {
        "action": "drop",
        "source_labels": [f"{POD_META}annotationpresent_{SECURE_PORT_META}", "__address__"],
        "regex": f"true;.*:({MERGED}|{STATS})",
    }


def drop_secured_monitor() -> Rule:
    """Return the rule `drop_secured` in a PodMonitor's spelling."""
    return camel_rule(drop_secured())


def drop_own_series() -> Rule:
    """Return a metric relabelling rule that drops series which an application must not expose.

    Prometheus adds `up` and `scrape_*` to every scrape itself. An application that exposes series with these
    names forges or hides them, because a sample with a later timestamp wins. The rule does not apply to the
    series that Prometheus adds.
    """
    return {
        "action": "drop",
        "source_labels": ["__name__"],
        "regex": f"up|scrape_({'|'.join(_OWN_SERIES)})",
    }


def camel_rule(rule: Mapping[str, Any]) -> Rule:
    """Return a relabelling rule in the Prometheus Operator's spelling (`sourceLabels`, `targetLabel`)."""
    return {camel(key): value for key, value in rule.items()}


def camel(name: str) -> str:
    """Return `insecure_skip_verify` as `insecureSkipVerify`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def anchor() -> list[Rule]:
    """Return rules for one target per pod with a mesh Envoy: Running pods, istio-proxy, its port 15090.

    Discovery gives one target for every declared port of every container, including init containers (native
    sidecars), and one without a port for containers that declare none. Every Istio template declares 15090,
    alone or among others; a gateway whose ports are not exposed declares none.
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
    """Return rules that keep pods which announce a port by `annotation` (sanitised), and use that port.

    Discovery gives IPv6 addresses without brackets.
    """
    port = f"{POD_META}annotation_{annotation}"
    return [
        {"action": "keep", "source_labels": [port], "regex": _PORT},
        *_address([f"{POD_META}ip", port], "(.+)"),
    ]


def labels() -> list[Rule]:
    """Return rules for the labels `namespace`, `pod` and `workload`, named as in Istio's telemetry.

    The workload is the pod's controller: for a ReplicaSet its Deployment (recognised by the hash in the pods'
    labels), for a Job its CronJob. A pod without a controller is its own workload.
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
    """Return a Kubernetes label or annotation key sanitised as service discovery does it."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)


def application_rules(application: ApplicationPort) -> list[Rule]:
    """Return rules that keep an application's pods, one target each, at its own port."""
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
    # If Istio does not know that the port speaks HTTP, Envoy offers HTTP/2 in its handshake and then passes
    # HTTP/2 on to an application that may only support HTTP/1.1.
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
        # The path of a secure port is fixed, and `prometheus.io/path` may still be the application's.
        "metrics_path": MERGED_PATH,
        # A hostile target must not redirect the scraper, which holds a key, to another server.
        "follow_redirects": False,
        **transport(options.certificates, options.proxy),
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": [*([ready()] if options.proxy else []), *rules],
        **({} if options.keep_own_series else {"metric_relabel_configs": [drop_own_series()]}),
    }


def transport(certificates: str, proxy: ProxyInPod | None) -> dict[str, Any]:
    """Return the fields of a job that say how it reaches its targets: directly, or through a scrape proxy."""
    if proxy is None:
        return {"scheme": "https", "tls_config": direct_tls(certificates)}
    # Plain HTTP stays in the pod: the scrape proxy speaks mutual TLS with the target.
    return {
        "scheme": "http",
        "proxy_url": f"http://{proxy.address}",
        "authorization": {"credentials_file": proxy.token_file},
    }


def ready() -> Rule:
    """Return the rule that keeps ready pods.

    Prometheus's discovery announces a pod as soon as it exists. The scrape proxy refuses it until its Envoy
    is ready, so without this rule each new pod would be down at first.
    """
    return {"action": "keep", "source_labels": [f"{POD_META}ready"], "regex": "true"}


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
