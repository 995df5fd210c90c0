"""Plan the scrape jobs: jobs over mutual TLS for secured pods, and plaintext jobs that these pods leave."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import SECURE_ENVOY_PORT_META, SECURE_PORT_META
from meshscrape.kube.objects import Ref, as_list, as_mapping, dig
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe.model import ObservedJob, Scraper
from meshscrape.plan.applications import application_ports
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import Refused
from meshscrape.plan.monitors import derive_monitors, leave_monitor, note_known
from meshscrape.plan.readings import ENDPOINTS, PlaintextReading, cover, readings_of
from meshscrape.plan.scrape_proxy import access_for, note_transport
from meshscrape.plan.scrapers import (
    RIGHTS,
    concerns,
    guarded,
    new_objects,
    new_prometheus_ref,
    secured_scrapers,
)
from meshscrape.plan.workloads import Context, merges_envoy, secure_port_of
from meshscrape.prometheus import kubernetes_sd, scrape_proxy_pod, scraper_pod
from meshscrape.prometheus.config import plain_job
from meshscrape.prometheus.derived import derived_job, is_derived, with_drop, without_drop
from meshscrape.prometheus.targets import ENVOY_JOB, MERGED_JOB, PROXY_JOB

LEAVES = "pods that announce a secure port leave this plaintext job, each as it is recreated"
READS = "scrapes the secure ports over mutual TLS"


def plan_scraping(context: Context) -> set[str]:
    """Plan the jobs over mutual TLS; return the names of the plaintext jobs that the secured pods leave."""
    intent = context.intent
    if intent.prometheus == "none":
        return set()
    moved: set[str] = set()
    if intent.prometheus == "existing":
        scrapers = secured_scrapers(context)
        if not scrapers:
            context.draft.note(
                None,
                "no-prometheus",
                "no Prometheus is among the given objects, so the jobs over mutual TLS are not planned",
                "give it too, or use --prometheus addon or operator, or see prometheus-config",
            )
        for scraper in scrapers:
            note_transport(context, scraper.ref, operated=scraper.kind == "operator")
            if scraper.ref not in context.held.scrapers and guarded(
                context, scraper.ref, partial(_existing, context, scraper)
            ):
                moved |= _leave(context, [scraper.ref])
        return moved
    note_transport(context, None, operated=intent.prometheus == "operator")
    if new_prometheus_ref(context) in context.held.scrapers:
        return set()
    for new_object in new_objects(context):
        if new_object["kind"] not in RIGHTS:
            context.draft.ensure(new_object, "Prometheus with the jobs over mutual TLS")
    return _leave(context, None)


def _existing(context: Context, scraper: Scraper) -> Refused | None:
    """Plan the secure jobs of an existing Prometheus."""
    readings = [reading for reading in readings_of(context, scraper) if _movable(reading.job, scraper)]
    known = _read_already(context, scraper)
    if scraper.kind == "operator":
        return derive_monitors(context, scraper, readings, known)
    if scraper.config is None or context.draft.get(scraper.config) is None:
        return Refused(
            "configuration-unknown",
            "its configuration is not among the given objects",
            "add the jobs yourself: meshscrape prometheus-config --kubernetes --existing FILE",
        )
    change = partial(_add_jobs, context, scraper, readings, known)
    edit_config(context, scraper.config, change, READS)
    return None


def _movable(job: ObservedJob, scraper: Scraper) -> bool:
    """Return whether a plan can change a scrape job, because it is text in a ConfigMap or a monitor."""
    return job.ref == scraper.config or job.ref.kind in ENDPOINTS


def _read_already(context: Context, scraper: Scraper) -> frozenset[Ref]:
    """Return the targets whose secure port is read over mutual TLS by a job that meshscrape did not make.

    The state after all pods have restarted counts. Another job would scrape each of these pods twice.
    """
    read: set[Ref] = set()
    for job in context.unmoved:
        if job.scraper != scraper.ref or job.over != "mtls" or _is_ours(context, job):
            continue
        read |= {
            target.ref
            for target in context.targets
            if secure_port_of(context, target) in job.ports_after.get(target.ref, ())
        }
    return frozenset(read)


def _is_ours(context: Context, job: ObservedJob) -> bool:
    """Return whether a plan makes and updates this secure job."""
    if job.ref.kind in ENDPOINTS:
        field = ENDPOINTS[job.ref.kind]
        endpoints = as_list(dig(context.object_of(job.ref), "spec", field))
        return any(is_derived(dig(endpoint, "relabelings")) for endpoint in endpoints)
    return job.job.partition("/")[0] in (MERGED_JOB, ENVOY_JOB)


def _add_jobs(
    context: Context,
    scraper: Scraper,
    readings: list[PlaintextReading],
    known: frozenset[Ref],
    config: Mutable,
) -> None:
    jobs: list[Any] = as_list(config.get("scrape_configs"))
    present = {str(dig(job, "job_name")): job for job in jobs if isinstance(job, dict)}
    options = _options(context, scraper)
    standard = {job["job_name"]: job for job in kubernetes_sd.secure_jobs(options)}
    if not context.intent.envoy_port and not context.split:
        standard.pop(ENVOY_JOB, None)
    if options.proxy:
        # The alert on a scrape proxy that is down needs the proxy's own metrics.
        standard[PROXY_JOB] = plain_job(PROXY_JOB, scrape_proxy_pod.DISCOVERY, options.proxy.token_file)
    merged = present.get(MERGED_JOB)
    targets = {target.ref for target in context.targets}
    derived: dict[str, Any] = {}
    if merged is not None and not is_derived(merged.get("relabel_configs")):
        # This is Istio's sample or a job of an earlier plan. Update it and keep its labels.
        pass
    elif chosen := _chosen(readings, known, present):
        standard.pop(MERGED_JOB)
        for reading in chosen:
            derived |= _derived(context, scraper, present, reading, [*derived])
        if not context.intent.envoy_port and _split(context) <= _read_apart(chosen):
            # A derived job reads Envoy's statistics of these pods already.
            standard.pop(ENVOY_JOB, None)
    elif targets <= known or any(reading.refs & targets for reading in readings):
        standard.pop(MERGED_JOB)
        if known:
            note_known(context, scraper)
    for job in (*derived.values(), *standard.values()):
        present_job = present.get(job["job_name"])
        if present_job is None:
            jobs.append(job)
            continue
        own = present_job.get("tls_config")
        if is_derived(present_job.get("relabel_configs")):
            present_job.clear()
        if options.proxy:
            # The job is in plain HTTP to the scrape proxy, which has its own certificate.
            present_job.pop("tls_config", None)
        present_job.update(job)
        if own and scraper.certs_mount and not options.proxy:
            # The Prometheus already has certificates, and this job has their paths.
            present_job["tls_config"] = own
    config["scrape_configs"] = jobs


def _split(context: Context) -> set[Ref]:
    """Return the targets whose merged metrics lack Envoy's statistics."""
    return {target.ref for target in context.targets if not merges_envoy(target.workload)}


def _read_apart(readings: list[PlaintextReading]) -> set[Ref]:
    """Return the workloads whose statistics of Envoy alone these jobs read."""
    return {ref for reading in readings if not reading.merged for ref in reading.refs}


def _chosen(readings: list[PlaintextReading], known: frozenset[Ref], present: Any) -> list[PlaintextReading]:
    """Return the plaintext jobs to derive secure jobs from, including those that already have one."""
    uncovered = frozenset().union(*(reading.refs for reading in readings)) - known
    derived = [
        reading.job.job
        for reading in readings
        if (job := present.get(reading.job.job)) and _pool_of(job, present) is not None
    ]
    return cover(readings, uncovered, derived)


def _pool_of(job: Any, present: Any) -> str | None:
    """Return the name of the secure job that was already derived from this plaintext job, if any."""
    own = without_drop(dig(job, "relabel_configs"))
    for name, other in present.items():
        rules = as_list(dig(other, "relabel_configs"))
        if name.partition("/")[0] == MERGED_JOB and is_derived(rules) and _begins_with(rules, own):
            return str(name)
    return None


def _begins_with(rules: list[Any], own: list[Any]) -> bool:
    return rules[: len(own)] == own or rules[1 : len(own) + 1] == own


def _derived(
    context: Context, scraper: Scraper, present: Any, reading: PlaintextReading, taken: list[str]
) -> dict[str, Any]:
    job = present[reading.job.job]
    pool = _pool_of(job, present)
    if pool is None or pool in taken:
        used = MERGED_JOB in taken or MERGED_JOB in present
        pool = f"{MERGED_JOB}/{reading.job.job}" if used else MERGED_JOB
    options = _options(context, scraper)
    made = {pool: _derived_job(context, options, job, pool, SECURE_PORT_META)}
    if context.split and not reading.merged:
        name = f"{ENVOY_JOB}/{reading.job.job}"
        made[name] = _derived_job(context, options, job, name, SECURE_ENVOY_PORT_META)
    return made


def _derived_job(
    context: Context, options: kubernetes_sd.ClusterJobs, job: dict[str, Any], name: str, annotation: str
) -> dict[str, Any]:
    return derived_job(
        job,
        name,
        options.certificates,
        proxy=options.proxy,
        annotation=annotation,
        new_job=context.intent.new_job,
        keep_own_series=context.intent.keep_own_series,
    )


def _options(context: Context, scraper: Scraper) -> kubernetes_sd.ClusterJobs:
    # Discover all namespaces, not only the planned ones: the job keeps only pods that announce a secure port.
    directory = scraper.certs_mount or scraper.output_certs or scraper_pod.CERTIFICATES
    applications = application_ports(context)
    return kubernetes_sd.ClusterJobs(
        directory,
        (),
        applications,
        keep_own_series=context.intent.keep_own_series,
        proxy=access_for(context, scraper),
    )


def edit_config(context: Context, ref: Ref, change: Callable[[Mutable], None], reason: str) -> bool:
    """Change the Prometheus configuration in a ConfigMap; return False if it contains none."""
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


def _leave(context: Context, scrapers: list[Ref] | None) -> set[str]:
    """Let the plaintext jobs of these scrapers (None: of all) drop the secured pods."""
    targets = {target.ref for target in context.targets}
    return {
        job.name
        for job in context.unmoved
        if (scrapers is None or job.scraper in scrapers) and concerns(job, targets) and _left(context, job)
    }


def _left(context: Context, job: ObservedJob) -> bool:
    """Let one plaintext job drop secured pods; return whether it does now (or already did)."""
    if job.ref.kind in ENDPOINTS:
        return leave_monitor(context, job.ref, LEAVES)
    if job.ref.kind != "ConfigMap":
        return False
    dropped = False

    def drop(config: Mutable) -> None:
        nonlocal dropped
        for declared in as_list(config.get("scrape_configs")):
            if isinstance(declared, dict) and declared.get("job_name") == job.job:
                declared["relabel_configs"] = with_drop(declared.get("relabel_configs"))
                dropped = True

    try:
        edit_config(context, job.ref, drop, LEAVES)
    except InputError as error:
        context.draft.refuse(job.ref, Refused("unreadable", error.what, error.remedy or "correct it"))
        return False
    return dropped
