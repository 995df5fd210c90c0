"""Who scrapes: Prometheus, vmagent and other collectors, found by their images and the Operator's kinds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from meshscrape.istio.names import MONITORING_GROUP, OUTPUT_CERTS, PROXY_CONTAINER, USER_VOLUME_MOUNT
from meshscrape.istio.versions import split_image
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.proxy import annotation_metadata, proxy_of
from meshscrape.observe.cluster import Cluster, owners
from meshscrape.observe.control import Control
from meshscrape.observe.injection import injection_of
from meshscrape.observe.model import Scraper
from meshscrape.observe.volumes import named_items
from meshscrape.observe.workload import ResolvedWorkload

ScraperKind = Literal["prometheus", "operator", "vmagent", "otel", "arms", "other"]
_IMAGES: tuple[tuple[str, ScraperKind], ...] = (
    ("vmagent", "vmagent"),
    ("opentelemetry-collector", "otel"),
    ("otelcol", "otel"),
    ("arms-prom", "arms"),
    ("datadog", "other"),
    ("grafana-agent", "other"),
    ("alloy", "other"),
)
# The Operator's StatefulSets, and helpers beside a Prometheus.
_HELPERS = ("config-reloader", "operator", "adapter", "node-exporter", "pushgateway", "alertmanager")


def find_scrapers(
    cluster: Cluster, control: Control, workloads: Iterable[ResolvedWorkload]
) -> tuple[Scraper, ...]:
    """All scrapers, in the order of their references."""
    found = list(_operated(cluster, control))
    operated = {(each.namespace, f"prometheus-{each.name}") for each in found}
    operated |= {(each.namespace, f"prom-agent-{each.name}") for each in found}
    for workload in workloads:
        if (workload.namespace, workload.name) in operated or _made_by_operator(workload.manifest):
            continue
        if scraper := _deployed(workload):
            found.append(scraper)
    return tuple(sorted(found, key=lambda each: each.ref))


def _made_by_operator(manifest: Manifest | None) -> bool:
    return manifest is not None and any(
        owner.group == MONITORING_GROUP and owner.kind.startswith("Prometheus") for owner in owners(manifest)
    )


def scraping_container(template: Any) -> tuple[Mapping[str, Any], ScraperKind] | None:
    """The container of a pod template that scrapes, and what it is; by the last part of its image's name."""
    for container in objects.as_list(objects.dig(template, "spec", "containers")):
        repository, _ = split_image(str(objects.dig(container, "image", default="")))
        name = repository.rpartition("/")[2]
        for part, kind in _IMAGES:
            if part in name:
                return container, kind
        if name == "prometheus" or (name.startswith("prometheus") and not any(h in name for h in _HELPERS)):
            return container, "prometheus"
    return None


def _deployed(workload: ResolvedWorkload) -> Scraper | None:
    scraping = scraping_container(workload.template)
    if scraping is None:
        return None
    container, kind = scraping
    directory = workload.env.get(OUTPUT_CERTS) or workload.proxy_metadata.get(OUTPUT_CERTS, "")
    return Scraper(
        ref=workload.ref,
        kind=kind,
        namespace=workload.namespace,
        name=workload.name,
        service_account=workload.service_account,
        spiffe_id=workload.spiffe_id,
        injected=workload.in_mesh,
        config=_config_of(workload.template, workload.namespace),
        output_certs=directory,
        certs_mount=_certs_mount(workload.template, container, workload.annotations, directory),
        version=split_image(str(container.get("image", "")))[1],
    )


def _config_of(template: Any, namespace: str) -> Ref | None:
    names = [
        objects.dig(volume, "configMap", "name")
        for volume in objects.as_list(objects.dig(template, "spec", "volumes"))
    ]
    preferred = sorted((str(name) for name in names if name), key=lambda name: "rule" in name)
    return Ref("", "ConfigMap", namespace, preferred[0]) if preferred else None


def _operated(cluster: Cluster, control: Control) -> Iterator[Scraper]:
    for kind in ("Prometheus", "PrometheusAgent"):
        for manifest in cluster.inventory.of_kind(kind, MONITORING_GROUP):
            yield _operated_one(manifest, cluster, control)


def operated_template(manifest: Manifest) -> dict[str, Any]:
    """The pod template that the Operator makes of a Prometheus object, as far as it concerns the mesh."""
    spec = objects.as_mapping(manifest.data.get("spec"))
    mounts = objects.as_list(spec.get("volumeMounts"))
    own = [
        each for each in objects.as_list(spec.get("containers")) if objects.dig(each, "name") != "prometheus"
    ]
    return {
        "metadata": dict(objects.as_mapping(spec.get("podMetadata"))),
        "spec": {
            "serviceAccountName": spec.get("serviceAccountName") or "default",
            "volumes": objects.as_list(spec.get("volumes")),
            "hostNetwork": spec.get("hostNetwork"),
            "securityContext": spec.get("securityContext"),
            "containers": [{"name": "prometheus", "image": "prometheus", "volumeMounts": mounts}, *own],
        },
    }


def _operated_one(manifest: Manifest, cluster: Cluster, control: Control) -> Scraper:
    template = operated_template(manifest)
    namespace = manifest.ref.namespace
    account = str(template["spec"]["serviceAccountName"])
    annotations = objects.annotations(template)
    proxy = proxy_of(template)
    metadata = {
        **control.mesh.default_metadata,
        **annotation_metadata(annotations),
        **(proxy.env if proxy else {}),
    }
    directory = metadata.get(OUTPUT_CERTS, "")
    injection = injection_of(namespace, cluster.namespace_labels(namespace), template, proxy)
    return Scraper(
        ref=manifest.ref,
        kind="operator",
        namespace=namespace,
        name=manifest.ref.name,
        service_account=account,
        spiffe_id=f"spiffe://{control.mesh.trust_domain}/ns/{namespace}/sa/{account}",
        injected=injection.injected,
        output_certs=directory,
        certs_mount=_certs_mount(template, template["spec"]["containers"][0], annotations, directory),
        version=str(objects.dig(manifest.data, "spec", "version", default="")),
    )


def certs_volume(template: Any, annotations: Mapping[str, str], directory: str) -> tuple[str, bool] | None:
    """The volume that the proxy has at `directory`, and whether read-only; from mounts and annotations."""
    for name, mount in proxy_mounts(template, annotations):
        if str(mount.get("mountPath", "")).rstrip("/") == directory.rstrip("/") and directory:
            return name, mount.get("readOnly") is True
    return None


def proxy_mounts(template: Any, annotations: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The volume mounts of the proxy: its container's, and those of the annotation userVolumeMount."""
    for container in objects.containers(template):
        if container.get("name") == PROXY_CONTAINER:
            for mount in objects.as_list(container.get("volumeMounts")):
                yield str(objects.dig(mount, "name")), objects.as_mapping(mount)
    yield from named_items(annotations.get(USER_VOLUME_MOUNT, "")).items


def _certs_mount(
    template: Any, container: Mapping[str, Any], annotations: Mapping[str, str], directory: str
) -> str:
    """Where the scraper's own container sees the certificates that its proxy writes."""
    volume = certs_volume(template, annotations, directory) if directory else None
    for mount in objects.as_list(container.get("volumeMounts")) if volume else ():
        if volume and objects.dig(mount, "name") == volume[0]:
            return str(objects.dig(mount, "mountPath", default=""))
    return ""
