"""Close the plaintext ports that no scrape job needs any more: the gate, and the change itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from meshscrape.istio.names import METRICS_LOCALHOST_ACCESS_ONLY
from meshscrape.kube.objects import Ref
from meshscrape.observe.model import ObservedJob
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan import native, templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.gateways import ProxyPatch, patch_gateway
from meshscrape.plan.injected_overrides import unproven
from meshscrape.plan.model import Gate, Missing, Refused
from meshscrape.plan.reads import unexplained
from meshscrape.plan.scope import close_wide, place_of, refresh, settled_places
from meshscrape.plan.scrapers import blocks_hardening
from meshscrape.plan.workloads import (
    LOCALHOST_ONLY_SINCE,
    PARAMETERS_SINCE,
    Context,
    PlannedWorkload,
    restarts_of,
)

_REASON = "closes the plaintext ports 15090 and 15020"
_NOBODY = Missing(
    "no-secure-scraper",
    "a scraper over mutual TLS: none is among the given objects, and none is planned",
    "give your Prometheus too, or name the scraper: --scraper spiffe:SPIFFE_ID",
)


def plan_hardening(context: Context, moved: set[str], scraped: bool) -> list[Gate]:
    """Close the ports of targets that no job reads in plaintext; return the gates of the others.

    `moved` are the scrape jobs that the secured pods leave; `scraped`: a scraper reads the secure ports.
    """
    unseen = tuple(_unseen(context))
    waits = partial(_waits, context, moved, scraped, unseen)
    targets = [
        target
        for target in context.targets
        if not target.workload.metrics.hardened and _possible(context, target)
    ]
    # The places first: what they close needs no change of its own.
    places = settled_places(context, waits)
    closed = {place for place, missing in places.items() if not missing and close_wide(context, place)}
    if closed:
        refresh(context)
    current = {target.ref: target for target in context.targets}
    planned: dict[tuple[Missing, ...], list[Ref]] = {}
    waiting: dict[tuple[Missing, ...], list[Ref]] = {}
    for before in targets:
        target, place = current[before.ref], place_of(context, before.workload)
        if unmet := waits(target.workload) or places.get(place, ()):
            waiting.setdefault(unmet, []).append(target.ref)
            continue
        # `before` was open. Where a default closes it, its own template needs no change.
        changed = _closed_by_default(context, target, place) or _hardened(context, target)
        jobs = _readers(context, target.ref)
        if changed and jobs:
            planned.setdefault(tuple(map(_moved, jobs)), []).append(target.ref)
    gates = [Gate("hardening", tuple(refs), missing, True) for missing, refs in planned.items()]
    return gates + [Gate("hardening", tuple(refs), missing, False) for missing, refs in waiting.items()]


def _closed_by_default(context: Context, target: PlannedWorkload, place: str) -> bool:
    return bool(place) and target.workload.metrics.hardened


def _waits(
    context: Context,
    moved: set[str],
    scraped: bool,
    unseen: tuple[Missing, ...],
    workload: ObservedWorkload,
) -> tuple[Missing, ...]:
    """Return what must happen before a workload's plaintext ports may close; empty if nothing must."""
    jobs = _readers(context, workload.ref)
    return (
        *(_left(context, job) for job in jobs if job.name not in moved),
        *_unmeasured(context, workload, unseen),
        *(() if scraped else (_NOBODY,)),
        *context.held.open.get(workload.ref, ()),
        *unproven(context, workload),
    )


def _readers(context: Context, ref: Ref) -> list[ObservedJob]:
    return [job for job in context.observation.scrape_jobs if blocks_hardening(job, ref)]


def _unmeasured(
    context: Context, workload: ObservedWorkload, unseen: tuple[Missing, ...]
) -> tuple[Missing, ...]:
    """Return the unknown readers that a workload waits for: by measurement, where there is one."""
    reads = context.intent.reads
    if reads is None:
        return unseen
    if text := unexplained(reads, workload, context.observed.scrape_jobs):
        remedy = "find who reads it, and give its objects too; give --reads of every Prometheus that scrapes"
        return (Missing("reads-unexplained", text, remedy),)
    return () if reads.covers(workload) else unseen


def _left(context: Context, job: ObservedJob) -> Missing:
    if job.scraper in context.held.scrapers:
        return Missing("scraper-held", f"{job.name}, whose scraper is held back", "see the gate of scraping")
    return Missing(
        "plaintext-reader",
        f"{job.name}, which a plan cannot change",
        "add the rule that drops pods with a secure port (see docs/prometheus.md) to it, and plan again",
    )


def _moved(job: ObservedJob) -> Missing:
    return Missing("moves", f"{job.name}, which the plan moves", "apply the earlier phases, then check")


def _unseen(context: Context) -> Iterator[Missing]:
    """Return the scrapers whose jobs are not among the objects, because they may read any plaintext port."""
    for scraper in context.observation.unread_scrapers:
        if str(scraper.ref) in context.intent.assumed_unread:
            continue
        product = f" ({scraper.product})" if scraper.product else ""
        yield Missing(
            "reader-unknown",
            f"{scraper.ref}{product}: the given objects do not show which ports it reads",
            "give its configuration too, measure (--reads FILE), or declare that it reads none: "
            "--assume-unread FILE",
        )


def _possible(context: Context, target: PlannedWorkload) -> bool:
    known = target.version.at_least(LOCALHOST_ONLY_SINCE)
    managed = target.workload.kind in ("gateway-api", "waypoint")
    if known and managed and not target.version.at_least(PARAMETERS_SINCE):
        context.draft.note(
            target.ref,
            "gateway-parameters-too-old",
            "its plaintext ports stay open: a Gateway's settings need parametersRef, "
            f"which needs {PARAMETERS_SINCE} or newer; this is {target.version}",
            f"upgrade Istio, or set {METRICS_LOCALHOST_ACCESS_ONLY} in a ProxyConfig object",
        )
        return False
    if known:
        return True
    reason = (
        f"its proxy ({target.version}) ignores {METRICS_LOCALHOST_ACCESS_ONLY}"
        if known is False
        else "its version is unknown"
    )
    context.draft.note(
        target.ref,
        "hardening-too-old" if known is False else "version-unknown",
        f"its plaintext ports cannot be closed: {reason}",
        f"upgrade to {LOCALHOST_ONLY_SINCE} or newer, or write a NetworkPolicy for 15090 and 15020"
        if known is False
        else "set the version: --istio-version VERSION",
    )
    return False


def _hardened(context: Context, target: PlannedWorkload) -> bool:
    """Close the plaintext ports of one workload; return whether that changes anything."""
    before = context.draft.edits
    if refused := context.draft.whole(partial(_harden, context, target)):
        reason = f"its plaintext ports stay open: {refused.reason}"
        context.draft.refuse(target.ref, Refused(refused.code, reason, refused.remedy))
        return False
    return context.draft.edits > before


def _harden(context: Context, target: PlannedWorkload) -> Refused | None:
    """Set the variable in both places: proxyMetadata acts on 15090, the process environment on 15020."""
    workload = target.workload
    value = {METRICS_LOCALHOST_ACCESS_ONLY: "true"}
    if workload.is_gateway and workload.kind != "gateway-injected":
        return patch_gateway(context, target, ProxyPatch(env=value, metadata=value), _REASON)
    if refused := native.overridden(context, workload, value):
        return refused

    def change(data: Mutable) -> None:
        native.set_variables(templates.template_of(data), value)

    context.draft.edit(target.ref, change, _REASON, restarts_of(context, workload))
    return None
