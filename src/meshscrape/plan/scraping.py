"""The jobs: over mutual TLS for the secured pods, and without them for those in the clear."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MANAGED_BY, MONITORING_GROUP
from meshscrape.kube.objects import Ref, as_list, as_mapping, dig, selects
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe import observe
from meshscrape.observe.model import ObservedJob, Scraper
from meshscrape.plan.applications import application_ports
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import LEGACY_PORT, MANAGER, Plan
from meshscrape.plan.scrapers import RIGHTS, concerns, guarded, new_objects, secured_scrapers
from meshscrape.plan.workloads import Context
from meshscrape.prometheus import kubernetes_sd, operator, scraper_pod
from meshscrape.prometheus.new_prometheus import PrometheusOptions
from meshscrape.prometheus.targets import ENVOY_JOB, MERGED_JOB

_DROP_REASON = "pods that announce a secure port leave this plaintext job, each as it is recreated"


def plan_scraping(context: Context) -> set[str]:
    """Jobs over mutual TLS, and plaintext jobs without the secured pods; the consumers moved that way."""
    if context.intent.prometheus == "none":
        return set()
    if context.intent.prometheus == "existing":
        found = secured_scrapers(context)
        if not found:
            context.draft.note(
                None,
                "no Prometheus is among the objects: none gets the jobs over mutual TLS",
                "give it too, or take --prometheus addon or operator, or see prometheus-config",
            )
        for scraper in found:
            guarded(context, scraper.ref, partial(_jobs, context, scraper))
    else:
        for wanted in new_objects(context):
            if wanted["kind"] not in RIGHTS:
                context.draft.ensure(wanted, "Prometheus with the jobs over mutual TLS")
    targets = {target.ref for target in context.targets}
    concerned = [each for each in context.observation.scrape_jobs if concerns(each, targets)]
    return {each.name for each in concerned if _move(context, each)}


def _reads_them_already(context: Context, scraper: Scraper) -> bool:
    """Whether a job of another name reads every target's merged metrics over mutual TLS, once all pods are as
    their templates say: with ours beside it, each pod would be scraped twice."""
    if not any(_is_their_own(each, scraper) for each in context.observation.scrape_jobs):
        return False
    joined = Plan(context.draft.changes()).apply(context.inventory)
    after = observe(joined, istio_version=context.intent.istio_version)
    merged = context.intent.merged_port
    ports = {each.ref: LEGACY_PORT if each.mode == "legacy" else merged for each in context.targets}
    for each in after.scrape_jobs:
        read = each.ports_after
        if _is_their_own(each, scraper) and all(port in read.get(ref, ()) for ref, port in ports.items()):
            context.draft.note(
                scraper.ref,
                f"{each.name} reads the secure ports over mutual TLS already: no other job is added",
                "take it away to get ours in its place",
            )
            return True
    return False


def _is_their_own(consumer: ObservedJob, scraper: Scraper) -> bool:
    ours = consumer.job in (MERGED_JOB, ENVOY_JOB) or "/meshscrape-" in consumer.job
    return consumer.scraper == scraper.ref and consumer.over == "mtls" and not ours


def _jobs(context: Context, scraper: Scraper) -> None:
    known = _reads_them_already(context, scraper)
    if scraper.kind == "operator":
        _monitors(context, scraper, known)
        return
    directory = scraper.certs_mount or scraper_pod.CERTIFICATES
    # Of all namespaces, whichever are planned for: only pods that announce a secure port are found.
    options = kubernetes_sd.ClusterJobs(directory, (), application_ports(context))
    wanted = kubernetes_sd.secure_jobs(options)
    if not context.intent.envoy_port:
        wanted = [job for job in wanted if job["job_name"] != ENVOY_JOB]
    if known:
        wanted = [job for job in wanted if job["job_name"] != MERGED_JOB]
    if scraper.config is None or context.draft.get(scraper.config) is None:
        raise InputError(
            "its configuration is not among the objects",
            remedy="put the jobs in yourself: meshscrape prometheus-config --kubernetes --existing FILE",
        )

    def change(config: Mutable) -> None:
        present = as_list(config.get("scrape_configs"))
        by_name = {str(dig(job, "job_name")): job for job in present}
        for job in wanted:
            theirs = by_name.get(job["job_name"])
            if theirs is None:
                present.append(job)
            else:
                own = theirs.get("tls_config")
                theirs.update(job)
                if own and scraper.certs_mount:
                    # It has certificates already, and this job knows where.
                    theirs["tls_config"] = own
        config["scrape_configs"] = present

    _edit_config(context, scraper.config, change, "scrapes the secure ports over mutual TLS")


def _edit_config(context: Context, ref: Ref, change: Callable[[Mutable], None], reason: str) -> bool:
    """Change the Prometheus configuration in a ConfigMap; False when none is in it."""
    content = as_mapping(dig(context.object_of(ref), "data"))
    for key, text in content.items():
        if "scrape_configs" not in str(text):
            continue
        config = load_text(str(text), f"{ref}: {key}")
        if not isinstance(config, dict) or "scrape_configs" not in config:
            continue
        change(config)
        written = rewrite(str(text), config)

        def put(data: Mutable, key: str = key, written: str = written) -> None:
            data["data"][key] = written

        context.draft.edit(ref, put, reason)
        return True
    return False


def _monitors(context: Context, scraper: Scraper, known: bool) -> None:
    """PodMonitors that an existing Prometheus object selects."""
    spec = as_mapping(dig(context.object_of(scraper.ref), "spec"))
    selector = spec.get("podMonitorSelector")
    options = PrometheusOptions(
        namespace=scraper.namespace,
        name=f"meshscrape-{scraper.name}",
        labels=as_mapping(as_mapping(selector).get("matchLabels")),
    )
    if selector is None:
        if all(spec.get(f"{kind}Selector") is None for kind in ("serviceMonitor", "scrapeConfig", "probe")):
            raise InputError(
                "it has no selector at all: its configuration is its owner's own Secret",
                remedy="put the jobs in there: meshscrape prometheus-config --kubernetes --existing FILE",
            )

        def select(data: Mutable) -> None:
            data["spec"]["podMonitorSelector"] = {"matchLabels": {MANAGED_BY: MANAGER}}

        context.draft.edit(scraper.ref, select, "a null podMonitorSelector selects nothing")
    for monitor in operator.pod_monitors(options):
        if monitor["metadata"]["name"].endswith("envoy-metrics") and not context.intent.envoy_port:
            continue
        if monitor["metadata"]["name"].endswith("merged-metrics") and known:
            continue
        if selector is not None and not selects(selector, monitor["metadata"]["labels"]):
            raise InputError(
                "its podMonitorSelector cannot be met by labels",
                remedy="let it select app.kubernetes.io/managed-by: meshscrape too",
            )
        context.draft.ensure(monitor, "scrapes the secure ports over mutual TLS")
    for application in application_ports(context):
        wanted = operator.application_monitor(application, options)
        context.draft.ensure(wanted, "scrapes the application's own port over mutual TLS")


def _move(context: Context, consumer: ObservedJob) -> bool:
    """Take secured pods out of a plaintext job; whether that is (or was already) done."""
    if consumer.ref.kind == "ConfigMap":
        moved = False
        rule = kubernetes_sd.drop_secured()

        def drop(config: Mutable) -> None:
            nonlocal moved
            for job in as_list(config.get("scrape_configs")):
                if isinstance(job, dict) and job.get("job_name") == consumer.job:
                    job["relabel_configs"] = _with_drop(job.get("relabel_configs"), rule)
                    moved = True

        try:
            _edit_config(context, consumer.ref, drop, _DROP_REASON)
        except InputError as error:
            context.draft.note(consumer.ref, str(error), "correct it first", refused=True)
            return False
        return moved
    if consumer.ref.kind == "PodMonitor" and consumer.ref.group == MONITORING_GROUP:
        own = kubernetes_sd.drop_secured_monitor()

        def change(data: Mutable) -> None:
            found = as_list(dig(data, "spec", "podMetricsEndpoints"))
            for endpoint in (each for each in found if isinstance(each, dict)):
                endpoint["relabelings"] = _with_drop(endpoint.get("relabelings"), own)

        context.draft.edit(consumer.ref, change, _DROP_REASON)
        return context.draft.get(consumer.ref) is not None
    return False


def _with_drop(rules: Any, rule: Mutable) -> list[Any]:
    present = as_list(rules)
    return present if rule in present else [*present, rule]
