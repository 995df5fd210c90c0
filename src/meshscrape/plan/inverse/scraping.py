"""Take back scrape jobs over mutual TLS, and the certificates of scrapers that have none left."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MANAGED_BY, MONITORING_GROUP
from meshscrape.kube.objects import Ref, as_mapping, dig, template_path
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe.model import Scraper
from meshscrape.observe.observation import Observation
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.inverse import traces
from meshscrape.plan.inverse.edits import take_fields
from meshscrape.plan.inverse.evidence import Evidence, wrote
from meshscrape.plan.inverse.owned import is_owned
from meshscrape.plan.model import MANAGER, Refused
from meshscrape.plan.readings import ENDPOINTS
from meshscrape.plan.workloads import Context, restarts_of

_BACK = "its plaintext jobs read the pods again"


def take_scraping(context: Context, evidence: Evidence) -> None:
    """Plan the way back of every scrape job that a plan has moved or added."""
    for scraper in context.observation.scrapers:
        config = context.draft.get(scraper.config) if scraper.config else None
        if scraper.config is not None and config is not None and not is_owned(config):
            _config(context, scraper.config, evidence)
        if scraper.kind == "operator":
            _selector(context, scraper.ref)
    for kind, field in ENDPOINTS.items():
        for monitor in context.inventory.of_kind(kind, MONITORING_GROUP):
            if not is_owned(monitor.data):
                context.draft.edit(monitor.ref, partial(traces.take_rules, field=field), _BACK)


def _selector(context: Context, ref: Ref) -> None:
    """Take back the selector of a Prometheus object that selected nothing before."""
    ours = {"matchLabels": {MANAGED_BY: MANAGER}}

    def change(data: Mutable) -> None:
        if dig(data, "spec", "podMonitorSelector") == ours:
            del data["spec"]["podMonitorSelector"]

    context.draft.edit(ref, change, "it selected no PodMonitor before")


def _config(context: Context, ref: Ref, evidence: Evidence) -> None:
    for key, text in as_mapping(dig(context.object_of(ref), "data")).items():
        if "scrape_configs" not in str(text):
            continue
        before = as_mapping(dig(evidence.original(ref), "data")).get(key)
        try:
            config = load_text(str(text), f"{ref}: {key}")
            original = load_text(str(before), f"{ref}: {key}") if before else None
        except InputError as error:
            context.draft.refuse(ref, Refused("unreadable", error.what, error.remedy or "correct it"))
            continue
        if not isinstance(config, dict) or "scrape_configs" not in config:
            continue
        manifest = context.inventory.get(ref)
        written = wrote(manifest.data, ("data", key)) if manifest else None
        kept = traces.take_jobs(config, original, written=written)
        result = str(before) if original == config else rewrite(str(text), config)

        def put(data: Mutable, key: str = key, result: Any = result) -> None:
            data["data"][key] = result

        context.draft.edit(ref, put, _BACK)
        if kept:
            context.draft.note(
                ref,
                "job-kept",
                f"it is not shown that meshscrape wrote the jobs {', '.join(kept)}, so they stay",
                "give the recorded objects (--originals DIR, the directory `originals` of render), or remove "
                "them by hand",
            )


def take_certificates(context: Context, evidence: Evidence, observed: Callable[[], Observation]) -> None:
    """Plan that scrapers without a job over mutual TLS lose their certificate."""
    after = observed()
    using = {job.scraper for job in after.scrape_jobs if job.over == "mtls"}
    for scraper in context.observation.scrapers:
        data = context.draft.get(scraper.ref)
        if data is None or is_owned(data):
            continue
        if scraper.ref in using:
            if scraper.output_certs:
                context.draft.note(
                    scraper.ref,
                    "certificate-kept",
                    "it keeps its certificate, because a job of its own still scrapes over mutual TLS",
                    "remove that job first if it is not needed",
                )
            continue
        _certificate(context, scraper, evidence)


def _certificate(context: Context, scraper: Scraper, evidence: Evidence) -> None:
    reason = "loses its workload certificate, which no job uses any more"
    path = template_path(scraper.ref.kind)
    if scraper.kind == "operator":
        restarts: tuple[str, ...] = (f"the pods of {scraper.ref}, by the Operator",)
        take_fields(context, scraper.ref, evidence, traces.take_operated_certificate, reason, restarts)
    elif path is not None:
        workload = context.observation.workload(scraper.ref)
        restarts = restarts_of(context, workload) if workload else ()
        take_fields(
            context, scraper.ref, evidence, partial(traces.take_certificate, path=path), reason, restarts
        )
