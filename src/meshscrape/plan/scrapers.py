"""The scrapers that a plan is about: those that are there, or a new Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import OPERATED_BY, REVISION
from meshscrape.kube.objects import Ref, as_mapping, dig
from meshscrape.observe.model import ObservedJob, Scraper
from meshscrape.plan.applications import application_ports
from meshscrape.plan.injection import injection_labels
from meshscrape.plan.workloads import ABLE, PLAINTEXT_PORTS, Context, default_control_plane
from meshscrape.prometheus.new_prometheus import PrometheusOptions, prometheus_objects

RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


def new_prometheus(context: Context) -> PrometheusOptions:
    """The options of a new Prometheus."""
    plane = default_control_plane(context.observation)
    return PrometheusOptions(
        namespace=context.intent.prometheus_namespace,
        revision=injection_labels(plane).get(REVISION, ""),
        applications=application_ports(context),
        harden=context.intent.harden,
        network_policy=context.intent.network_policy,
    )


def new_objects(context: Context) -> tuple[dict[str, Any], ...]:
    kind = context.intent.prometheus
    assert kind in ("addon", "operator")  # noqa: S101 - the callers checked
    return prometheus_objects("addon" if kind == "addon" else "operator", new_prometheus(context))


def secured_scrapers(context: Context) -> list[Scraper]:
    """The scrapers that a plan moves to mutual TLS: those that scrape the targets, else all that could."""
    able = [each for each in context.observation.scrapers if each.kind in ABLE]
    targets = {target.ref for target in context.targets}
    consumers = (each for each in context.observation.scrape_jobs if each.certain)
    used = {each.scraper for each in consumers if concerns(each, targets)}
    return [each for each in able if each.ref in used] or able


def blocks_hardening(consumer: ObservedJob, workload: Ref) -> bool:
    """Whether a consumer reads this workload's plaintext ports, now or after a restart."""
    if consumer.over != "plaintext":
        return False
    if not consumer.certain and not consumer.matches:
        return True
    ports = (*consumer.ports_of.get(workload, ()), *consumer.ports_after.get(workload, ()))
    return not PLAINTEXT_PORTS.isdisjoint(ports)


def concerns(consumer: ObservedJob, targets: set[Ref]) -> bool:
    return any(blocks_hardening(consumer, ref) for ref in targets)


def scraper_pods(context: Context) -> Iterable[tuple[str, dict[str, str]]]:
    """Namespace and pod labels of each scraper that may scrape, for NetworkPolicies."""
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
                "it uses the host's network: a NetworkPolicy cannot tell it from its node",
                "let it run in the pod network, or leave --network-policy out",
            )
            continue
        if scraper.kind == "operator":
            yield scraper.namespace, {OPERATED_BY: scraper.name}
            continue
        data = context.object_of(scraper.ref)
        own = dict(as_mapping(dig(data, "spec", "selector", "matchLabels")))
        if own:
            yield scraper.namespace, own


def guarded(context: Context, ref: Ref, act: Callable[[], None]) -> None:
    try:
        with context.draft.whole():
            act()
    except InputError as error:
        context.draft.note(ref, str(error), "correct it, or see `--prometheus none`", refused=True)
