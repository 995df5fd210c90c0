"""Decide whether a plan's scrape jobs go through a scrape proxy, and what that proxy is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from meshscrape.istio.names import CA_ADDR
from meshscrape.kube.objects import Inventory, Ref, as_list, dig
from meshscrape.kube.views.proxy import proxy_of
from meshscrape.observe.model import Scraper
from meshscrape.observe.observation import Observation
from meshscrape.plan.certificate_files import certificate_files
from meshscrape.plan.model import Refused
from meshscrape.plan.workloads import Context, default_control_plane
from meshscrape.prometheus.kubernetes_sd import ProxyInPod
from meshscrape.prometheus.operator import PROXY_SINCE
from meshscrape.prometheus.scrape_proxy_pod import (
    CSI_DRIVER,
    CSI_FILES,
    IN_POD,
    KUBERNETES_SINCE,
    ScrapeProxyPod,
)

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
        ca_address=ca_address(context.observation, context.inventory),
        trust_domain=mesh.trust_domain,
        aliases=mesh.trust_domain_aliases,
        files=CSI_FILES if intent.proxy_certificates == CSI_DRIVER else None,
    )


def proxy_in(context: Context, scraper: Scraper) -> ScrapeProxyPod | Refused | None:
    """Return the scrape proxy of an existing Prometheus, with the certificate files of its pod."""
    proxy = proxy_for(context, operated=scraper.kind == "operator")
    directory = context.intent.proxy_certificates
    if proxy is None or not directory.startswith("/"):
        return proxy
    files = certificate_files(context, scraper, directory)
    return files if isinstance(files, Refused) else replace(proxy, files=files)


def access_for(context: Context, scraper: Scraper) -> ProxyInPod | None:
    """Return how an existing Prometheus reaches its scrape proxy; None for direct jobs."""
    return IN_POD if proxy_for(context, operated=scraper.kind == "operator") else None


def note_transport(context: Context, ref: Ref | None, *, operated: bool) -> None:
    """Note why jobs are direct: no scrape proxy is wanted, or the plan lacks its image or another need.

    With direct jobs nothing verifies the SPIFFE IDs of the targets.
    """
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


def ca_address(observation: Observation, inventory: Inventory) -> str:
    """Return the address of the mesh's CA: istiod's Service, or for an external CA what proxies are told."""
    plane = default_control_plane(observation)
    if plane is not None and not plane.external:
        name = "istiod" if plane.revision in ("", "default") else f"istiod-{plane.revision}"
        return f"{name}.{plane.namespace}.svc:{_CA_PORT}"
    told = Counter(
        proxy.env[CA_ADDR]
        for pod in inventory.of_kind("Pod", "")
        if (proxy := proxy_of(pod.data)) is not None and proxy.env.get(CA_ADDR)
    )
    if told:
        return min(told, key=lambda address: (-told[address], address))
    return f"istiod.{observation.mesh.root_namespace}.svc:{_CA_PORT}"
