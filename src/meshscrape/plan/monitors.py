"""Plan monitors of the Prometheus Operator: secure monitors derived from plaintext ones, which pods leave."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import MANAGED_BY, MONITORING_V1
from meshscrape.kube.objects import Object, Ref, as_list, as_mapping, dig, labels, selects
from meshscrape.observe.model import Scraper
from meshscrape.plan.applications import application_ports
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import MANAGER, Refused
from meshscrape.plan.readings import ENDPOINTS, PlaintextReading, cover, endpoints_of
from meshscrape.plan.scrape_proxy import access_for, proxy_for
from meshscrape.plan.workloads import Context
from meshscrape.prometheus import operator
from meshscrape.prometheus.derived import derived_endpoint, with_drop
from meshscrape.prometheus.kubernetes_sd import ProxyInPod
from meshscrape.prometheus.options import PrometheusOptions
from meshscrape.prometheus.targets import ENVOY_JOB, MERGED_JOB

_REASON = "scrapes the secure ports over mutual TLS"
# Limits of a Prometheus object for all monitors. A scrape or scrape job that exceeds one fails as a whole.
# Source: Prometheus Operator, API reference, PrometheusSpec.
_ENFORCED = (
    "enforcedSampleLimit", "enforcedBodySizeLimit", "enforcedTargetLimit", "enforcedLabelLimit",
    "enforcedLabelNameLengthLimit", "enforcedLabelValueLengthLimit",
)  # fmt: skip
_SELECTORS = {"PodMonitor": "podMonitorSelector", "ServiceMonitor": "serviceMonitorSelector"}


def derive_monitors(
    context: Context, scraper: Scraper, readings: list[PlaintextReading], known: frozenset[Ref]
) -> Refused | None:
    """Plan the secure monitors that an existing Prometheus object selects."""
    spec = as_mapping(dig(context.object_of(scraper.ref), "spec"))
    targets = {target.ref for target in context.targets}
    chosen = _chosen(context, readings, known)
    if chosen or not known:
        _note_limits(context, scraper, spec)
    for ref in dict.fromkeys(reading.job.ref for reading in chosen):
        indexes = {_index(reading.job.job) for reading in chosen if reading.job.ref == ref}
        monitor = _derived(context, ref, indexes, spec, access_for(context, scraper))
        if isinstance(monitor, Refused):
            return monitor
        context.draft.ensure(monitor, _REASON)
    if known and not chosen:
        note_known(context, scraper)
    elif not chosen and not any(reading.refs & targets for reading in readings):
        return _standard(context, scraper, spec)
    return _applications(context, _options(context, scraper, spec))


def note_known(context: Context, scraper: Scraper) -> None:
    """Note that a job that meshscrape did not make already reads the secure ports."""
    context.draft.note(
        scraper.ref,
        "read-already",
        "a job of its own already reads the secure ports over mutual TLS: no other job is added",
        "remove that job to get the planned job instead",
    )


def _note_limits(context: Context, scraper: Scraper, spec: Object) -> None:
    """Note the enforced limits of a Prometheus object that also apply to the secure monitors."""
    limits = [f"{field} {spec[field]}" for field in _ENFORCED if spec.get(field) not in (None, "", 0)]
    if limits:
        context.draft.note(
            scraper.ref,
            "enforced-limits",
            f"its limits ({', '.join(limits)}) also apply to the secure monitors; a scrape above them fails",
            "compare them with the merged metrics of your largest pod, or raise them",
        )


def leave_monitor(context: Context, ref: Ref, reason: str) -> bool:
    """Let a plaintext monitor drop secured pods; return whether it does now (or already did)."""

    def change(data: Mutable) -> None:
        for endpoint in endpoints_of(data):
            endpoint["relabelings"] = with_drop(endpoint.get("relabelings"), camel=True)

    context.draft.edit(ref, change, reason)
    return context.draft.get(ref) is not None


def _chosen(
    context: Context, readings: list[PlaintextReading], known: frozenset[Ref]
) -> list[PlaintextReading]:
    uncovered = frozenset().union(*(reading.refs for reading in readings)) - known
    derived = [
        reading.job.job
        for reading in readings
        if context.draft.get(_derived_ref(reading.job.ref)) is not None
    ]
    return cover(readings, uncovered, derived)


def _index(job: str) -> int:
    """Return the number of a scrape job's endpoint in its monitor, from the name that the Operator gives."""
    return int(job.rpartition("/")[2])


def _derived_ref(ref: Ref) -> Ref:
    return Ref(ref.group, ref.kind, ref.namespace, f"meshscrape-{ref.name}")


def _derived(
    context: Context, ref: Ref, indexes: set[int], server: Object, proxy: ProxyInPod | None
) -> Mutable | Refused:
    monitor = context.object_of(ref)
    spec: Mutable = dict(as_mapping(monitor.get("spec")))
    field = ENDPOINTS[ref.kind]
    own = _derived_ref(ref)
    selecting = server.get(_SELECTORS[ref.kind])
    chosen = _selected_labels(selecting, labels(monitor))
    if chosen is None:
        return Refused(
            "monitor-selector",
            f"its {_SELECTORS[ref.kind]} selects {ref} by a label that belongs to another tool",
            f"let it select {MANAGED_BY}: {MANAGER} too",
        )
    names = (f"{own.namespace}/{own.name}", f"{ref.namespace}/{ref.name}")
    intent = context.intent
    endpoints = [
        derived_endpoint(
            endpoint, names, proxy=proxy, new_job=intent.new_job, keep_own_series=intent.keep_own_series
        )
        for index, endpoint in enumerate(as_list(spec.get(field)))
        if index in indexes
    ]
    return {
        "apiVersion": MONITORING_V1,
        "kind": ref.kind,
        "metadata": {"name": own.name, "namespace": own.namespace, "labels": {**chosen, MANAGED_BY: MANAGER}},
        "spec": {**spec, "scrapeClass": operator.class_of(proxy is not None), field: endpoints},
    }


def _selected_labels(selector: Any, present: Object) -> dict[str, str] | None:
    """Return the labels that make the selector match the new monitor; None if that is impossible.

    Only the required labels are set: with a label of Argo CD or Helm, that tool would remove the monitor.
    """
    required = {key: str(value) for key, value in as_mapping(dig(selector, "matchLabels")).items()}
    for expression in as_list(dig(selector, "matchExpressions")):
        key = str(dig(expression, "key", default=""))
        if key in present:
            required[key] = str(present[key])
    return required if selects(selector, {**required, MANAGED_BY: MANAGER}) else None


def _options(context: Context, scraper: Scraper, spec: Object) -> PrometheusOptions:
    return PrometheusOptions(
        keep_own_series=context.intent.keep_own_series,
        namespace=scraper.namespace,
        name=f"meshscrape-{scraper.name}",
        labels=as_mapping(as_mapping(spec.get("podMonitorSelector")).get("matchLabels")),
        proxy=proxy_for(context, operated=True),
    )


def _standard(context: Context, scraper: Scraper, spec: Object) -> Refused | None:
    """Plan monitors for a Prometheus object that does not read the mesh yet."""
    options = _options(context, scraper, spec)
    selector = spec.get("podMonitorSelector")
    if selector is None:
        if all(spec.get(f"{kind}Selector") is None for kind in ("serviceMonitor", "scrapeConfig", "probe")):
            return Refused(
                "no-selector",
                "it has no selectors, so its configuration is a Secret of its owner",
                "add the jobs there: meshscrape prometheus-config --kubernetes --existing FILE",
            )

        def select(data: Mutable) -> None:
            data["spec"]["podMonitorSelector"] = {"matchLabels": {MANAGED_BY: MANAGER}}

        context.draft.edit(scraper.ref, select, "a null podMonitorSelector selects nothing")
    jobs = (MERGED_JOB, ENVOY_JOB) if context.intent.envoy_port or context.split else (MERGED_JOB,)
    for monitor in operator.pod_monitors(options, jobs):
        if selector is not None and not selects(selector, monitor["metadata"]["labels"]):
            return Refused(
                "monitor-selector",
                "no labels can satisfy its podMonitorSelector",
                f"let it select {MANAGED_BY}: {MANAGER} too",
            )
        context.draft.ensure(monitor, _REASON)
    return _applications(context, options)


def _applications(context: Context, options: PrometheusOptions) -> Refused | None:
    for application in application_ports(context):
        monitor = operator.application_monitor(application, options)
        context.draft.ensure(monitor, "scrapes the application's own port over mutual TLS")
    return None
