"""Add scrape proxies to the pods of existing scrapers, with the rights that their jobs need."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from meshscrape.istio.names import MANAGED_BY, PROXY_CONTAINER, RBAC_GROUP
from meshscrape.kube.objects import Object, as_list, dig, labels, ref_of
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.job_sources import read_jobs
from meshscrape.observe.model import Scraper
from meshscrape.observe.scrape_proxies import proxy_url
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import MANAGER, Plan
from meshscrape.plan.scrape_proxy import proxy_in
from meshscrape.plan.scrapers import secured_scrapers
from meshscrape.plan.workloads import Context, restarts_of
from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.operator import proxy_scrape_class
from meshscrape.prometheus.scrape_proxy_pod import IN_POD, ScrapeProxyPod

_REASON = "gets a scrape proxy, which verifies the SPIFFE ID of every target"


def plan_scrape_proxies(context: Context) -> None:
    """Add the scrape proxies of existing scrapers, whose scrape jobs are planned already.

    The jobs say which namespaces the proxy follows, and where it may list and watch pods.
    """
    if context.intent.prometheus != "existing":
        return
    for scraper in secured_scrapers(context):
        proxy = proxy_in(context, scraper)
        if scraper.ref in context.held.scrapers or not isinstance(proxy, ScrapeProxyPod):
            continue
        proxy = replace(proxy, namespaces=_namespaces(context, scraper))
        context.draft.phase = "credentials"
        wanted = _rights(scraper, proxy.namespaces)
        for role_or_binding in wanted:
            context.draft.ensure(role_or_binding, "the scrape proxy may list and watch pods")
        _add_proxy(context, scraper, proxy)
        context.draft.phase = "removal"
        _withdraw(context, wanted)
        _note_files(context, scraper, proxy)


def _add_proxy(context: Context, scraper: Scraper, proxy: ScrapeProxyPod) -> None:
    if scraper.kind == "operator":

        def operated(data: Mutable) -> None:
            spec = templates.child(data, "spec")
            _add(spec, spec, proxy)
            templates.set_named(spec, "scrapeClasses", proxy_scrape_class())

        context.draft.edit(scraper.ref, operated, _REASON, restarted_by_operator(scraper))
        return

    def deployed(data: Mutable) -> None:
        spec = templates.child(templates.template_of(data), "spec")
        if container := scraping_container(spec):
            _add(spec, container, proxy)

    workload = context.observation.workload(scraper.ref)
    restarts = restarts_of(context, workload) if workload else ()
    context.draft.edit(scraper.ref, deployed, _REASON, restarts)


def _namespaces(context: Context, scraper: Scraper) -> tuple[str, ...]:
    """Return the namespaces in which the jobs through the proxy find their targets; empty for all."""
    drafted = Cluster(Plan(context.draft.changes()).apply(context.inventory))
    jobs, _ = read_jobs(drafted, context.observation.scrapers)
    found: set[str] = set()
    for job in jobs:
        if (
            job.scraper is None
            or job.scraper.ref != scraper.ref
            or proxy_url(job) != f"http://{IN_POD.address}"
        ):
            continue
        if job.elsewhere or job.static or not all(each.namespaces for each in job.discoveries):
            return ()
        found |= {name for each in job.discoveries for name in each.namespaces}
    return tuple(sorted(found))


def _withdraw(context: Context, wanted: Sequence[Object]) -> None:
    """Delete the roles and bindings of an earlier plan in namespaces that the proxy no longer follows."""
    refs = {ref_of(each) for each in wanted}
    name = next(iter(refs)).name
    for kind in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"):
        for manifest in list(context.inventory.of_kind(kind, RBAC_GROUP)):
            ours = labels(manifest.data).get(MANAGED_BY) == MANAGER
            if manifest.ref.name == name and ours and manifest.ref not in refs:
                context.draft.delete(manifest.ref, "the scrape proxy no longer needs it")


def _note_files(context: Context, scraper: Scraper, proxy: ScrapeProxyPod) -> None:
    if proxy.files is None:
        return
    context.draft.note(
        scraper.ref,
        "certificates-from-files",
        f"its scrape proxy shows the certificate in {proxy.files.directory}, which must carry "
        f"{scraper.spiffe_id}, come from a CA that the targets trust, and be readable by user 1337",
        "check one such certificate; name another identity with --scraper",
    )
    if not proxy.files.first:
        context.draft.note(
            scraper.ref,
            "starts-before-certificates",
            "its scrape proxy has no startup probe, because a container that starts later writes the "
            "certificate: Prometheus starts before the proxy is ready, and its first scrapes fail",
            "let a native sidecar write the files, or use --proxy-certificates istiod",
        )


def _add(spec: Mutable, scraping: Mutable, proxy: ScrapeProxyPod) -> None:
    containers, volumes = scrape_proxy_pod.init_containers(proxy), scrape_proxy_pod.volumes(proxy)
    # An earlier plan may have had another source of certificates.
    _drop(spec, "initContainers", {*scrape_proxy_pod.CONTAINERS} - {each["name"] for each in containers})
    _drop(spec, "volumes", {*scrape_proxy_pod.VOLUMES} - {each["name"] for each in volumes})
    for container in containers:
        if "startupProbe" not in container:
            _without_probe(spec, container["name"])
        templates.set_named(spec, "initContainers", container)
    for volume in volumes:
        templates.set_named(spec, "volumes", volume)
    templates.set_named(scraping, "volumeMounts", scrape_proxy_pod.token_mount())


def _without_probe(spec: Mutable, name: str) -> None:
    """Remove the probe of an earlier plan: the pod would not start if it waits for files that come later."""
    for present in as_list(spec.get("initContainers")):
        if dig(present, "name") == name:
            present.pop("startupProbe", None)


def _drop(spec: Mutable, key: str, names: Collection[str]) -> None:
    if any(dig(each, "name") in names for each in as_list(spec.get(key))):
        spec[key] = [each for each in as_list(spec[key]) if dig(each, "name") not in names]


def scraping_container(spec: Mutable) -> Mutable | None:
    """Return the scraping container: by its image, else the first container that is not the proxy."""
    containers = [container for container in as_list(spec.get("containers")) if isinstance(container, dict)]
    others = [container for container in containers if container.get("name") != PROXY_CONTAINER]
    named = [
        container
        for container in others
        if "reload" not in str(container.get("name"))
        and any(word in str(container.get("image")) for word in ("prometheus:", "/prometheus", "vmagent"))
    ]
    return next(iter(named or others), None)


def restarted_by_operator(scraper: Scraper) -> tuple[str, ...]:
    """Return what the Operator restarts after a change of its object, as text."""
    if scraper.ref.kind == "PrometheusAgent":
        return (f"StatefulSet prom-agent-{scraper.name} of {scraper.namespace}, by the Operator",)
    return (f"StatefulSet prometheus-{scraper.name} of {scraper.namespace}, by the Operator",)


def _rights(scraper: Scraper, namespaces: Sequence[str]) -> list[Mutable]:
    """Return the roles to list and watch pods, and their bindings to an existing scraper's ServiceAccount."""
    return scrape_proxy_pod.rights(
        f"{scraper.namespace}-{scraper.name}-scrape-proxy",
        scraper.namespace,
        scraper.service_account,
        namespaces,
    )
