"""The plaintext ports close, once nobody needs them: the gate, and the change itself."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.errors import InputError
from meshscrape.istio.names import METRICS_LOCALHOST_ACCESS_ONLY
from meshscrape.kube.objects import Ref
from meshscrape.plan import native, templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.gateways import ProxyPatch, patch_gateway
from meshscrape.plan.model import Gate
from meshscrape.plan.scrapers import blocks_hardening
from meshscrape.plan.workloads import (
    LOCALHOST_ONLY_SINCE,
    PARAMETERS_SINCE,
    Context,
    PlannedWorkload,
    restarts_of,
)

_NOBODY = "a scraper over mutual TLS: none was found among the objects, and none is planned"
_REASON = "closes the plaintext ports 15090 and 15020"


def plan_hardening(context: Context, moved: set[str], scraped: bool) -> list[Gate]:
    """Close the ports of targets that nobody reads in the clear; the gates say what others wait for.

    `moved` are the consumers that the secured pods leave, `scraped` whether anybody reads the secure ports.
    """
    unseen = tuple(_unseen(context))
    planned: dict[tuple[str, ...], list[Ref]] = {}
    waiting: dict[tuple[str, ...], list[Ref]] = {}
    for target in context.targets:
        workload = target.workload
        if workload.metrics.hardened or not _possible(context, target):
            continue
        consumers = [each for each in context.observation.scrape_jobs if blocks_hardening(each, target.ref)]
        left = tuple(each.name for each in consumers if each.name not in moved)
        left = (*left, *unseen, *(() if scraped else (_NOBODY,)))
        if left:
            waiting.setdefault(left, []).append(target.ref)
            continue
        if _hardened(context, target) and consumers:
            names = tuple(f"{each.name}, which the plan moves" for each in consumers)
            planned.setdefault(names, []).append(target.ref)
    gates = [Gate("hardening", tuple(refs), names, True) for names, refs in planned.items()]
    return gates + [Gate("hardening", tuple(refs), names, False) for names, refs in waiting.items()]


def _unseen(context: Context) -> Iterator[str]:
    """Scrapers whose jobs are not among the objects: what they read in the clear cannot be told."""
    known = {each.scraper for each in context.observation.scrape_jobs}
    for scraper in context.observation.scrapers:
        elsewhere = scraper.config is None or context.draft.get(scraper.config) is None
        if scraper.ref not in known and scraper.kind != "operator" and elsewhere:
            yield f"{scraper.ref}: what it scrapes cannot be told from the objects"


def _possible(context: Context, target: PlannedWorkload) -> bool:
    known = target.version.at_least(LOCALHOST_ONLY_SINCE)
    managed = target.workload.kind in ("gateway-api", "waypoint")
    if known and managed and not target.version.at_least(PARAMETERS_SINCE):
        context.draft.note(
            target.ref,
            "its plaintext ports stay open: a Gateway's settings need parametersRef, "
            f"from {PARAMETERS_SINCE} on; this is {target.version}",
            f"upgrade Istio, or set {METRICS_LOCALHOST_ACCESS_ONLY} by a ProxyConfig object",
        )
        return False
    if known:
        return True
    what = (
        f"its proxy ({target.version}) ignores {METRICS_LOCALHOST_ACCESS_ONLY}"
        if known is False
        else "its version is unknown"
    )
    context.draft.note(
        target.ref,
        f"its plaintext ports cannot be closed: {what}",
        f"upgrade to {LOCALHOST_ONLY_SINCE} or newer, or write a NetworkPolicy for 15090 and 15020"
        if known is False
        else "say the version: --istio-version VERSION",
    )
    return False


def _hardened(context: Context, target: PlannedWorkload) -> bool:
    try:
        with context.draft.whole():
            return _harden(context, target)
    except InputError as error:
        context.draft.note(
            target.ref, f"its plaintext ports stay open: {error}", "correct it first", refused=True
        )
        return False


def _harden(context: Context, target: PlannedWorkload) -> bool:
    """Both places: 15090 is bound by proxyMetadata, 15020 checks the process environment."""
    workload = target.workload
    value = {METRICS_LOCALHOST_ACCESS_ONLY: "true"}
    if workload.is_gateway and workload.kind != "gateway-injected":
        return patch_gateway(context, target, ProxyPatch(env=value, metadata=value), _REASON)

    native.refuse_overridden(context, workload, value)

    def change(data: Mutable) -> None:
        native.set_variables(templates.template_of(data), value)

    return context.draft.edit(target.ref, change, _REASON, restarts_of(context, workload))
