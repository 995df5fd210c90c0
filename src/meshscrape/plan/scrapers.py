"""Find the scrapers that a plan changes: existing ones or a new Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meshscrape.istio.names import MONITORING_GROUP, OPERATED_BY, REVISION
from meshscrape.kube.objects import Object, Ref, as_mapping, dig
from meshscrape.observe.model import ObservedJob, Scraper
from meshscrape.plan.applications import application_ports
from meshscrape.plan.injection import injection_labels
from meshscrape.plan.model import Refused
from meshscrape.plan.scrape_proxy import proxy_for
from meshscrape.plan.workloads import ABLE, PLAINTEXT_PORTS, Context, default_control_plane
from meshscrape.prometheus.new_prometheus import PrometheusOptions, prometheus_objects
from meshscrape.prometheus.rules import RuleOptions

RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


def new_prometheus(context: Context) -> PrometheusOptions:
    """Return the options of a new Prometheus."""
    plane = default_control_plane(context.observation)
    return PrometheusOptions(
        namespace=context.intent.prometheus_namespace,
        revision=injection_labels(plane).get(REVISION, ""),
        applications=application_ports(context),
        # A plaintext job for every proxy would also read the closed port of the new Prometheus's own proxy.
        harden=context.intent.harden and new_deployment(context) not in context.held.open,
        network_policy=context.intent.network_policy,
        keep_own_series=context.intent.keep_own_series,
        proxy=proxy_for(context, operated=context.intent.prometheus == "operator"),
        rules=RuleOptions(runbook=context.intent.runbook),
    )


def new_prometheus_ref(context: Context) -> Ref:
    """Return the object that represents a new Prometheus."""
    return Ref("", "ServiceAccount", context.intent.prometheus_namespace, "meshscrape-prometheus")


def new_deployment(context: Context) -> Ref:
    """Return the Deployment of a new Prometheus without an operator."""
    return Ref("apps", "Deployment", context.intent.prometheus_namespace, "meshscrape-prometheus")


def new_objects(context: Context) -> tuple[dict[str, Any], ...]:
    """Return the objects of a new Prometheus, in the order to apply them."""
    kind = context.intent.prometheus
    assert kind in ("addon", "operator")  # noqa: S101 - the callers checked
    new = prometheus_objects("addon" if kind == "addon" else "operator", new_prometheus(context))
    unseen = [made for made in new if _of_unseen_kind(context, made)]
    if unseen:
        kinds = ", ".join(dict.fromkeys(f"{made['kind']}s" for made in unseen))
        context.draft.note(
            None,
            "kinds-unseen",
            f"the objects have no {kinds}: the plan assumes that those of the new Prometheus are applied",
            "give them too, if you are not sure",
        )
    return tuple(made for made in new if made not in unseen)


def _of_unseen_kind(context: Context, wanted: Object) -> bool:
    """Return whether a dump has the new Prometheus but no object of this kind, so the kind was left out.

    It is then unknown whether the object exists. The plan must not create it again and again.
    """
    kind = str(wanted["kind"])
    if kind in ("Deployment", "Prometheus") or context.inventory.of_kind(kind):
        return False
    there = Ref(MONITORING_GROUP, "Prometheus", context.intent.prometheus_namespace, "meshscrape-prometheus")
    return new_deployment(context) in context.inventory or there in context.inventory


def secured_scrapers(context: Context) -> list[Scraper]:
    """Return the scrapers to move to mutual TLS: those that read the targets, else all possible ones."""
    able = [scraper for scraper in context.observation.scrapers if scraper.kind in ABLE]
    targets = {target.ref for target in context.targets}
    jobs = (job for job in (context.unmoved or context.observation.scrape_jobs) if job.certain)
    used = {job.scraper for job in jobs if concerns(job, targets) or _reads_securely(job, targets)}
    return [scraper for scraper in able if scraper.ref in used] or able


def _reads_securely(job: ObservedJob, targets: set[Ref]) -> bool:
    return job.over == "mtls" and any(ref in targets for ref in job.ports_after)


def blocks_hardening(job: ObservedJob, workload: Ref) -> bool:
    """Return whether a scrape job reads this workload's plaintext ports, now or after a restart."""
    if job.over != "plaintext":
        return False
    if not job.certain and not job.matches:
        return True
    ports = (*job.ports_of.get(workload, ()), *job.ports_after.get(workload, ()))
    return not PLAINTEXT_PORTS.isdisjoint(ports)


def concerns(job: ObservedJob, targets: set[Ref]) -> bool:
    """Return whether a scrape job reads the plaintext ports of any of these workloads."""
    return any(blocks_hardening(job, ref) for ref in targets)


def scraper_pods(context: Context) -> Iterable[tuple[str, dict[str, str]]]:
    """Return namespace and pod labels of each allowed scraper, for NetworkPolicies."""
    if context.intent.prometheus in ("addon", "operator"):
        options = new_prometheus(context)
        own = options.selector
        if context.intent.prometheus == "operator":
            own = {OPERATED_BY: options.name}
        yield options.namespace, own
        return
    for scraper in secured_scrapers(context):
        workload = context.observation.workload(scraper.ref)
        if workload and workload.host_network:
            context.draft.note(
                scraper.ref,
                "host-network",
                "it uses the host's network: a NetworkPolicy cannot distinguish it from its node",
                "run it in the pod network, or omit --network-policy",
            )
            continue
        if scraper.kind == "operator":
            yield scraper.namespace, {OPERATED_BY: scraper.name}
            continue
        data = context.object_of(scraper.ref)
        own = dict(as_mapping(dig(data, "spec", "selector", "matchLabels")))
        if own:
            yield scraper.namespace, own


def guarded(context: Context, ref: Ref, act: Callable[[], Refused | None]) -> bool:
    """Make all changes of `act` for a scraper; if it refuses, add a note and return False."""
    if refused := context.draft.whole(act):
        context.draft.refuse(ref, refused)
    return refused is None
