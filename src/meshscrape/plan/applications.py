"""Scrape applications whose metrics are not merged over mutual TLS at their own ports, where possible."""

from __future__ import annotations

from meshscrape.istio.names import (
    MERGE_METRICS,
    PROMETHEUS_PATH,
    PROMETHEUS_PORT,
    PROMETHEUS_SCHEME,
    PROMETHEUS_SCRAPE,
)
from meshscrape.istio.ports import HIGHEST
from meshscrape.kube.objects import labels
from meshscrape.kube.views.pod import ContainerPort
from meshscrape.kube.views.service import service
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.workloads import Context, selector_of
from meshscrape.prometheus.kubernetes_sd import ApplicationPort

_REMEDY = (
    "let Istio's agent merge them (no prometheus.istio.io/merge-metrics: false): the secure port has them"
)


def application_ports(context: Context) -> tuple[ApplicationPort, ...]:
    """Return applications' own metrics ports that Prometheus can read through the sidecar; note others."""
    planned = {target.ref for target in context.targets}
    candidates = (
        _port(context, workload)
        for workload in context.observation.workloads
        # Include all workloads of the mesh, not only the chosen ones: the plan must not remove others' jobs.
        if workload.kind == "sidecar" or (workload.ref in planned and not workload.is_gateway)
    )
    return tuple(sorted((port for port in candidates if port), key=lambda port: (port.namespace, port.name)))


def _port(context: Context, workload: ObservedWorkload) -> ApplicationPort | None:
    notes = workload.annotations
    merge = notes.get(MERGE_METRICS, "true" if context.observation.mesh.prometheus_merge else "false")
    text = notes.get(PROMETHEUS_PORT, "")
    scraped = (
        notes.get(PROMETHEUS_SCRAPE, "").lower() == "true" and notes.get(PROMETHEUS_SCHEME, "http") == "http"
    )
    if merge.lower() != "false" or not scraped or not text.isdecimal() or not 0 < int(text) <= HIGHEST:
        return None
    number = int(text)
    if workload.mtls.of(number) != "STRICT":
        # Plaintext scrapes continue. Over TLS, Istio accepts only clients with its own ALPN on this port.
        context.draft.note(
            workload.ref,
            "application-port-permissive",
            f"its own metrics port {number} stays plaintext: Prometheus needs STRICT there for mutual TLS",
            _REMEDY,
        )
        return None
    protocol = {port.number: port.protocol for port in workload.container_ports}.get(number, "auto")
    if protocol != "http":
        context.draft.note(
            workload.ref,
            "application-port-not-http",
            f"Prometheus cannot read its own metrics port {number}: Istio does not know that it speaks HTTP",
            f"name the Service's port http-… (or set appProtocol: http); or {_REMEDY}",
        )
        return None
    service_labels, service_port = _service(context, workload, number)
    path = notes.get(PROMETHEUS_PATH, "") or "/metrics"
    return ApplicationPort(
        workload.namespace,
        workload.name,
        selector_of(context, workload),
        number,
        path if path.startswith("/") else f"/{path}",
        service_labels,
        service_port,
    )


def _service(context: Context, workload: ObservedWorkload, number: int) -> tuple[dict[str, str] | None, str]:
    """Return the labels of the Service that leads to the port, and the port's name in that Service."""
    declared = [ContainerPort(port.number, port.name) for port in workload.container_ports]
    for manifest in context.inventory.in_namespace(workload.namespace, "Service", ""):
        view = service(manifest.data)
        if view.selects(workload.labels):
            for port in view.ports:
                if port.number(declared) == number:
                    return dict(labels(manifest.data)), port.name
    return None, ""
