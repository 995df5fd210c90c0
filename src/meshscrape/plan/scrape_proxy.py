"""Decide whether a plan's scrape jobs go through a scrape proxy, and add the proxy to a Prometheus's pod."""

from __future__ import annotations

from collections import Counter

from meshscrape.istio.names import CA_ADDR
from meshscrape.kube.objects import Ref, as_list, dig
from meshscrape.kube.views.proxy import proxy_of
from meshscrape.observe.model import Scraper
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.workloads import Context, default_control_plane
from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.kubernetes_sd import ProxyInPod
from meshscrape.prometheus.operator import PROXY_SINCE, proxy_scrape_class
from meshscrape.prometheus.scrape_proxy_pod import IN_POD, KUBERNETES_SINCE, ScrapeProxyPod

_CA_PORT = 15012


def proxy_for(context: Context, *, operated: bool) -> ScrapeProxyPod | None:
    """Return the scrape proxy that a Prometheus of this plan scrapes through; None for direct jobs.

    `operated`: the Prometheus Operator makes its pod.
    """
    intent = context.intent
    if not intent.wants_scrape_proxy or not intent.proxy_image or (operated and _old_operator(context)):
        return None
    mesh = context.observation.mesh
    return ScrapeProxyPod(
        image=intent.proxy_image,
        ca_address=_ca_address(context),
        trust_domain=mesh.trust_domain,
        aliases=mesh.trust_domain_aliases,
    )


def access_for(context: Context, scraper: Scraper) -> ProxyInPod | None:
    """Return how an existing Prometheus reaches its scrape proxy; None for direct jobs."""
    return IN_POD if proxy_for(context, operated=scraper.kind == "operator") else None


def note_transport(context: Context, ref: Ref | None, *, operated: bool) -> None:
    """Note that jobs are direct, so that nothing verifies the targets, or what the scrape proxy needs."""
    intent = context.intent
    unverified = "Prometheus does not verify the SPIFFE IDs of its targets"
    if not intent.wants_scrape_proxy:
        context.draft.note(
            ref,
            "targets-unverified",
            f"{unverified}: its jobs are direct",
            "add --scrape-proxy --proxy-image REF",
        )
    elif not intent.proxy_image:
        context.draft.note(
            ref,
            "proxy-image-missing",
            f"{unverified}: its jobs are direct, because no image of the scrape proxy is given",
            "build the image and add --proxy-image REF",
        )
    elif operated and _old_operator(context):
        context.draft.note(
            ref,
            "scrape-proxy-operator",
            f"{unverified}: the token of a scrape proxy needs Prometheus Operator "
            f"{'.'.join(map(str, PROXY_SINCE))} or newer, so its jobs are direct",
            "upgrade the Operator and its CRDs",
        )
    elif not _native_sidecars(context):
        context.draft.note(
            ref,
            "native-sidecars-unknown",
            f"its scrape proxy runs as native sidecars, which need Kubernetes {KUBERNETES_SINCE} or newer",
            "check `kubectl version`; on an older cluster the pod would never start",
        )


def add_to_template(template: Mutable, container: Mutable, proxy: ScrapeProxyPod) -> None:
    """Add the scrape proxy to the pod template of a Prometheus, and its token to the scraping container."""
    _add(templates.child(template, "spec"), container, proxy)


def add_to_prometheus(spec: Mutable, proxy: ScrapeProxyPod) -> None:
    """Add the scrape proxy to the `spec` of a Prometheus object, with the scrape class of its token."""
    _add(spec, spec, proxy)
    templates.set_named(spec, "scrapeClasses", proxy_scrape_class())


def _add(spec: Mutable, scraping: Mutable, proxy: ScrapeProxyPod) -> None:
    for container in scrape_proxy_pod.init_containers(proxy):
        templates.set_named(spec, "initContainers", container)
    for volume in scrape_proxy_pod.volumes():
        templates.set_named(spec, "volumes", volume)
    templates.set_named(scraping, "volumeMounts", scrape_proxy_pod.token_mount())


def _old_operator(context: Context) -> bool:
    version = context.observation.operator_version
    return version is not None and version < PROXY_SINCE


def _native_sidecars(context: Context) -> bool:
    """Return whether a pod among the objects has a native sidecar, so that the cluster knows them."""
    return any(
        dig(container, "restartPolicy") == "Always"
        for pod in context.inventory.of_kind("Pod", "")
        for container in as_list(dig(pod.data, "spec", "initContainers"))
    )


def _ca_address(context: Context) -> str:
    """Return the address of the mesh's CA: istiod's Service, or for an external CA what proxies are told."""
    plane = default_control_plane(context.observation)
    if plane is not None and not plane.external:
        name = "istiod" if plane.revision in ("", "default") else f"istiod-{plane.revision}"
        return f"{name}.{plane.namespace}.svc:{_CA_PORT}"
    told = Counter(
        proxy.env[CA_ADDR]
        for pod in context.inventory.of_kind("Pod", "")
        if (proxy := proxy_of(pod.data)) is not None and proxy.env.get(CA_ADDR)
    )
    if told:
        return min(told, key=lambda address: (-told[address], address))
    return f"istiod.{context.observation.mesh.root_namespace}.svc:{_CA_PORT}"


def rights(scraper: Scraper) -> list[Mutable]:
    """Return the role to list and watch pods for an existing scraper's ServiceAccount, and its binding."""
    return scrape_proxy_pod.rights(
        f"{scraper.namespace}-{scraper.name}-scrape-proxy", scraper.namespace, scraper.service_account
    )
