"""Find scrapers: programs in pod templates, and the objects from which operators make scrapers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.names import MONITORING_GROUP, OUTPUT_CERTS
from meshscrape.istio.versions import split_image
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.proxy import annotation_metadata, proxy_of
from meshscrape.observe.cluster import OPENTELEMETRY, VICTORIA, Cluster, owners
from meshscrape.observe.control import Control
from meshscrape.observe.injection import injection_of
from meshscrape.observe.kinds import is_ambient
from meshscrape.observe.model import OperatorVersion, Scraper, ScraperKind
from meshscrape.observe.mounts import certs_volume
from meshscrape.observe.scrape_proxies import scrape_proxy_of
from meshscrape.observe.scraper_images import scraping_container
from meshscrape.observe.workload import ResolvedWorkload

_RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_OPERATOR_IMAGES = ("prometheus-operator", "mirrored-prometheus-operator-prometheus-operator")
# Objects from which an operator makes a scraper: API group, the scraper's kind, its display name, and the
# names of the objects that the operator makes.
OPERATED: Mapping[str, tuple[str, ScraperKind, str, str]] = {
    "Prometheus": (MONITORING_GROUP, "operator", "Prometheus", "prometheus-{}"),
    "PrometheusAgent": (MONITORING_GROUP, "operator", "Prometheus agent", "prom-agent-{}"),
    "VMAgent": (VICTORIA, "vm-operator", "vmagent", "vmagent-{}"),
    "VMSingle": (VICTORIA, "vm-operator", "VictoriaMetrics single", "vmsingle-{}"),
    "OpenTelemetryCollector": (OPENTELEMETRY, "otel", "OpenTelemetry Collector", "{}-collector"),
}


def find_scrapers(
    cluster: Cluster, control: Control, workloads: Iterable[ResolvedWorkload]
) -> tuple[Scraper, ...]:
    """Return all scrapers, in the order of their references."""
    scrapers = []
    made = set()
    for kind, (group, scraper_kind, product, name) in OPERATED.items():
        for manifest in cluster.inventory.of_kind(kind, group):
            made.add((manifest.ref.namespace, name.format(manifest.ref.name)))
            if kind != "VMSingle" or _scrapes(manifest):
                scrapers.append(_operated(manifest, scraper_kind, product, cluster, control))
    for workload in workloads:
        if (workload.namespace, workload.name) in made or _is_operated(workload.manifest, cluster):
            continue
        if scraper := _deployed(workload, cluster):
            scrapers.append(scraper)
    return tuple(sorted(scrapers, key=lambda scraper: scraper.ref))


def operator_version(cluster: Cluster) -> OperatorVersion | None:
    """Return the version of the Prometheus Operator that runs, by its image; the lowest of several."""
    versions = []
    for deployment in cluster.inventory.of_kind("Deployment"):
        for container in objects.containers(objects.pod_template(deployment.data)):
            repository, tag = split_image(str(container.get("image", "")))
            release = _RELEASE.match(tag)
            if repository.rpartition("/")[2] in _OPERATOR_IMAGES and release:
                versions.append((int(release[1]), int(release[2]), int(release[3])))
    return min(versions, default=None)


def _is_operated(manifest: Manifest | None, cluster: Cluster) -> bool:
    """Return whether an operator made it from an object in the dump; then that object stands for it."""
    return manifest is not None and any(
        owner.kind in OPERATED and owner in cluster.inventory for owner in owners(manifest)
    )


def _scrapes(single: Manifest) -> bool:
    """Return whether a VMSingle selects anything to scrape; with older operators it only stores."""
    spec = objects.as_mapping(single.data.get("spec"))
    return spec.get("selectAllByDefault") is True or any(
        key.endswith("Selector") and "Scrape" in key for key in spec
    )


def _deployed(workload: ResolvedWorkload, cluster: Cluster) -> Scraper | None:
    scraping = scraping_container(workload.template)
    if scraping is None:
        return None
    directory = workload.env.get(OUTPUT_CERTS) or workload.proxy_metadata.get(OUTPUT_CERTS, "")
    inbound, outbound = _interception(workload.annotations)
    return Scraper(
        ref=workload.ref,
        kind=scraping.kind,
        namespace=workload.namespace,
        name=workload.name,
        service_account=workload.service_account,
        spiffe_id=workload.spiffe_id,
        injected=workload.in_mesh,
        config=_config_of(workload, scraping.kind, cluster),
        output_certs=directory,
        certs_mount=_certs_mount(workload.template, scraping.container, workload.annotations, directory),
        version=split_image(str(scraping.container.get("image", "")))[1],
        product=scraping.product,
        intercepts_inbound=workload.in_mesh and inbound,
        intercepts_outbound=workload.in_mesh and outbound,
        ambient=workload.kind == "ambient",
        scrape_proxy=scrape_proxy_of(workload.template),
        stopped=workload.manifest is not None and _stopped(workload.manifest),
    )


def _stopped(manifest: Manifest) -> bool:
    """Return whether an object asks for 0 replicas."""
    replicas = objects.dig(manifest.data, "spec", "replicas")
    return replicas == 0 and not isinstance(replicas, bool)


def _interception(annotations: Mapping[str, str]) -> tuple[bool, bool]:
    """Return whether a sidecar with these annotations intercepts inbound and outbound traffic."""
    if annotations.get(names.INTERCEPTION_MODE) == "NONE":
        return False, False
    inbound = annotations.get(names.INCLUDE_INBOUND) != ""
    excluded = annotations.get(names.EXCLUDE_OUTBOUND, "")
    everything = "0.0.0.0/0" in [part.strip() for part in excluded.split(",")]
    return inbound, annotations.get(names.INCLUDE_OUTBOUND) != "" and not everything


def _config_of(workload: ResolvedWorkload, kind: ScraperKind, cluster: Cluster) -> Ref | None:
    """Return the ConfigMap with the scrape jobs; for Prometheus also one that is not in the dump."""
    mounted = [
        Ref("", "ConfigMap", workload.namespace, str(name))
        for volume in objects.as_list(objects.dig(workload.template, "spec", "volumes"))
        if (name := objects.dig(volume, "configMap", "name"))
    ]
    for ref in mounted:
        manifest = cluster.inventory.get(ref)
        data = objects.as_mapping(manifest.data.get("data")) if manifest else {}
        if any("scrape_configs" in str(text) for text in data.values()):
            return ref
    absent = [ref for ref in mounted if ref not in cluster.inventory]
    if kind not in ("prometheus", "vmagent") or not absent:
        return None
    return min(absent, key=lambda ref: "rule" in ref.name)


def operated_template(manifest: Manifest) -> dict[str, Any]:
    """Return the pod template that an operator makes of its object, as far as it concerns the mesh."""
    spec = objects.as_mapping(manifest.data.get("spec"))
    kind = manifest.ref.kind
    scraping = kind.lower().removesuffix("agent") if kind.startswith("Prometheus") else kind.lower()
    accounts = {"VMAgent": "vmagent-{}", "VMSingle": "vmsingle-{}", "OpenTelemetryCollector": "{}-collector"}
    default = accounts[kind].format(manifest.ref.name) if kind in accounts else "default"
    metadata = dict(objects.as_mapping(spec.get("podMetadata")))
    if kind == "OpenTelemetryCollector":
        metadata = {"labels": objects.labels(manifest.data), "annotations": spec.get("podAnnotations") or {}}
    mounts = objects.as_list(spec.get("volumeMounts"))
    others = [
        container
        for container in objects.as_list(spec.get("containers"))
        if objects.dig(container, "name") != scraping
    ]
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    return {
        "metadata": metadata,
        "spec": {
            "serviceAccountName": account or default,
            "volumes": objects.as_list(spec.get("volumes")),
            "hostNetwork": spec.get("hostNetwork"),
            "securityContext": spec.get("securityContext"),
            "initContainers": objects.as_list(spec.get("initContainers")),
            "containers": [{"name": scraping, "image": scraping, "volumeMounts": mounts}, *others],
        },
    }


def _operated(
    manifest: Manifest, kind: ScraperKind, product: str, cluster: Cluster, control: Control
) -> Scraper:
    template = operated_template(manifest)
    namespace = manifest.ref.namespace
    space = cluster.namespace_labels(namespace)
    account = str(template["spec"]["serviceAccountName"])
    annotations = objects.annotations(template)
    proxy = proxy_of(template)
    metadata = {
        **control.mesh.default_metadata,
        **annotation_metadata(annotations),
        **(proxy.env if proxy else {}),
    }
    directory = metadata.get(OUTPUT_CERTS, "")
    injected = injection_of(namespace, space, template, proxy).injected
    inbound, outbound = _interception(annotations)
    allocator = objects.dig(manifest.data, "spec", "targetAllocator")
    return Scraper(
        ref=manifest.ref,
        kind=kind,
        namespace=namespace,
        name=manifest.ref.name,
        service_account=account,
        spiffe_id=f"spiffe://{control.mesh.trust_domain}/ns/{namespace}/sa/{account}",
        injected=injected,
        output_certs=directory,
        certs_mount=_certs_mount(template, template["spec"]["containers"][0], annotations, directory),
        version=str(objects.dig(manifest.data, "spec", "version", default="")),
        product=product,
        intercepts_inbound=injected and inbound,
        intercepts_outbound=injected and outbound,
        ambient=not injected and is_ambient(space, objects.labels(template)),
        scrape_proxy=scrape_proxy_of(template),
        takes_monitors=objects.dig(allocator, "enabled") is True
        and objects.dig(allocator, "prometheusCR", "enabled") is True,
        stopped=_stopped(manifest),
        paused=objects.dig(manifest.data, "spec", "paused") is True,
    )


def _certs_mount(
    template: Any, container: Mapping[str, Any], annotations: Mapping[str, str], directory: str
) -> str:
    """Return where the scraper's own container sees the certificates that its proxy writes."""
    volume = certs_volume(template, annotations, directory) if directory else None
    for mount in objects.as_list(container.get("volumeMounts")) if volume else ():
        if volume and objects.dig(mount, "name") == volume[0]:
            return str(objects.dig(mount, "mountPath", default=""))
    return ""
