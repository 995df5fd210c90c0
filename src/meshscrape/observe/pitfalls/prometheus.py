"""Pitfalls of the scrapers: Prometheus with a mesh certificate, its jobs and their relabeling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio import names
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.proxy import config_annotation
from meshscrape.observe.declared_jobs import DeclaredJob
from meshscrape.observe.discovery import META, Labels, pod_targets
from meshscrape.observe.model import Pitfall, Scraper
from meshscrape.observe.mounts import certs_volume, doubled_mounts
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.relabel import relabel
from meshscrape.observe.scraper_images import scraping_container
from meshscrape.observe.scrapers import OPERATED, operated_template
from meshscrape.observe.volumes import named_items

_SECURE = (names.SECURE_PORT_META, names.SECURE_ENVOY_PORT_META)


def prometheus_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of scrapers and of their jobs for the mesh."""
    for scraper in facts.scrapers:
        template = scraper_template(scraper, facts)
        if template is not None:
            yield from _injection(scraper, template, facts)
            if scraper.ref.kind in OPERATED:
                for path in doubled_mounts(template, objects.annotations(template)):
                    yield mounted_twice(scraper.ref, path)
            yield from _interception(scraper, template)
            yield from _clients(scraper, template)
            yield from _certificates(scraper, template, facts)
            yield from _late(scraper, template, facts)
    for job in facts.jobs:
        yield from _files(job, facts)
        yield from _relabeling(job)
    for unreadable in facts.unreadable:
        yield Pitfall(
            "scrape-configuration-unreadable",
            "warning",
            unreadable.ref,
            f"Scrape jobs in it cannot be read ({unreadable.reason}): what they scrape is not known here.",
            "Correct it, or add the object that it needs to the dump.",
        )


def scraper_template(scraper: Scraper, facts: Facts) -> Mapping[str, Any] | None:
    """Return the pod template of a scraper: its own, or the one that the Operator makes."""
    if scraper.ref.kind in OPERATED:
        manifest = facts.cluster.inventory.get(scraper.ref)
        return operated_template(manifest) if manifest else None
    workload = facts.workload_of(scraper.ref)
    return workload.template if workload else None


def _injection(scraper: Scraper, template: Mapping[str, Any], facts: Facts) -> Iterator[Pitfall]:
    if not scraper.output_certs or scraper.injected:
        return
    space = facts.cluster.namespace_labels(scraper.namespace).get(names.NAMESPACE_INJECTION)
    remedy = f'Set the pod label {names.INJECT}: "true" (a label; the annotation is not enough).'
    if space is not None and space != "enabled":
        remedy = (
            f"Remove the label {names.NAMESPACE_INJECTION}={space} from namespace {scraper.namespace}: it "
            "wins over "
            "the pod's label."
        )
    yield Pitfall(
        "output-certs-not-injected",
        "error",
        scraper.ref,
        "OUTPUT_CERTS asks the proxy for certificates, but no proxy is injected: the files never appear.",
        remedy,
    )


def mounted_twice(ref: Ref, path: str) -> Pitfall:
    """Return the pitfall of two volumes at one path of a container."""
    return Pitfall(
        "volume-mounted-twice",
        "error",
        ref,
        f"Two volumes are mounted at {path} of one container: the API server refuses such pods.",
        f"Keep one mount at {path}: in the pod template or in the annotation "
        "sidecar.istio.io/userVolumeMount.",
    )


def _interception(scraper: Scraper, template: Mapping[str, Any]) -> Iterator[Pitfall]:
    annotations = objects.annotations(template)
    config = objects.as_mapping(config_annotation(annotations)[0].get("proxyMetadata"))
    if scraper.injected and names.INBOUND_CAPTURE_PORTS in config:
        yield Pitfall(
            "inbound-capture-ports-ignored",
            "warning",
            scraper.ref,
            f"{names.INBOUND_CAPTURE_PORTS} is in proxyMetadata, as in Istio's sample, but no version of "
            "Istio reads it: inbound traffic of this scraper is intercepted all the same.",
            f'Use the pod annotation {names.INCLUDE_INBOUND}: "".',
        )
    intercepted = {
        names.INCLUDE_INBOUND: scraper.intercepts_inbound,
        names.INCLUDE_OUTBOUND: scraper.intercepts_outbound,
    }
    missing = [name for name, intercepts in intercepted.items() if intercepts]
    if missing and (scraper.output_certs or scraper.intercepts_outbound):
        yield Pitfall(
            "prometheus-intercepted",
            "warning",
            scraper.ref,
            "Its sidecar intercepts its traffic: scrapes by pod address go through one more proxy, which "
            "adds no mutual TLS to them, and the scraper's own port is the mesh's.",
            f"Set the pod annotations {' and '.join(missing)} to the empty string.",
        )


def _clients(scraper: Scraper, template: Mapping[str, Any]) -> Iterator[Pitfall]:
    """Report clients that would use mTLS to Prometheus; istiod decides that by a label of its pod."""
    intercepts = objects.annotations(template).get(names.INCLUDE_INBOUND) != ""
    if scraper.injected and not intercepts and objects.labels(template).get(names.TLS_MODE) != "disabled":
        yield Pitfall(
            "scraper-unreachable-in-mesh",
            "warning",
            scraper.ref,
            "Its inbound traffic is not intercepted, but the injector labels the pod as one that takes mTLS: "
            "clients with a sidecar (Grafana, Kiali) speak mTLS to a port that does not, and fail.",
            f"Set the pod label {names.TLS_MODE}: disabled.",
        )


def _certificates(scraper: Scraper, template: Mapping[str, Any], facts: Facts) -> Iterator[Pitfall]:
    directory, annotations = scraper.output_certs, objects.annotations(template)
    if not directory:
        return
    mounted = certs_volume(template, annotations, directory)
    if mounted is None:
        yield Pitfall(
            "output-certs-not-mounted",
            "error",
            scraper.ref,
            f"The proxy writes certificates to {directory}, where it has no volume: no other container sees "
            "them, and on its read-only root file system it cannot write them at all.",
            "Mount a memory-backed emptyDir there: annotation sidecar.istio.io/userVolumeMount.",
        )
        return
    name, read_only = mounted
    if read_only:
        yield Pitfall(
            "output-certs-read-only",
            "error",
            scraper.ref,
            f"The proxy's mount of {directory} is read-only: it cannot write the certificates.",
            "Remove readOnly from the proxy's mount; the scraper's own may keep it.",
        )
    yield from _volume(scraper, template, annotations, name)
    # A scrape proxy in the pod shows the certificate instead of the scraper itself.
    if not scraper.certs_mount and not scraper.scrape_proxy.address:
        yield Pitfall(
            "certificates-not-in-scraper",
            "error",
            scraper.ref,
            f"The volume {name} with the certificates is not mounted in the container that scrapes.",
            f"Mount {name} there too, read-only.",
        )


def _volume(
    scraper: Scraper, template: Mapping[str, Any], annotations: Mapping[str, str], name: str
) -> Iterator[Pitfall]:
    volumes = {
        str(objects.dig(volume, "name")): volume
        for volume in objects.as_list(objects.dig(template, "spec", "volumes"))
    }
    volumes |= dict(named_items(str(annotations.get(names.USER_VOLUME, ""))).items)
    volume = volumes.get(name)
    if volume is None or "emptyDir" not in volume:
        kind = "not declared" if volume is None else "no emptyDir"
        yield Pitfall(
            "output-certs-volume",
            "error",
            scraper.ref,
            f"The volume {name} for the certificates is {kind}: the proxy (user 1337) cannot write them, or "
            "they would outlive the pod.",
            "Declare it as emptyDir with medium Memory.",
        )
    elif objects.dig(volume, "emptyDir", "medium") != "Memory":
        yield Pitfall(
            "output-certs-on-disk",
            "info",
            scraper.ref,
            f"The volume {name} is an emptyDir on the node's disk: the private key is written to disk, "
            "readable by every container of the pod that mounts it.",
            "Set emptyDir.medium: Memory.",
        )


def _late(scraper: Scraper, template: Mapping[str, Any], facts: Facts) -> Iterator[Pitfall]:
    if not scraper.injected or not scraper.output_certs:
        return
    workload = facts.workload_of(scraper.ref)
    native = workload.versions.native_sidecar if workload else None
    mesh = facts.control.mesh.default_config.get("holdApplicationUntilProxyStarts")
    config = config_annotation(objects.annotations(template))[0]
    if native is True or config.get("holdApplicationUntilProxyStarts", mesh) is True:
        return
    yield Pitfall(
        "certificates-late",
        "warning",
        scraper.ref,
        "The scraper may start before its proxy. If the certificate files are missing when it loads "
        "its configuration, the scrape pool is not created: the targets are absent, not down, until the next "
        "update of its service discovery.",
        "Set holdApplicationUntilProxyStarts: true in proxy.istio.io/config, or use native sidecars; alert "
        "on prometheus_target_scrape_pools_failed_total.",
    )


def _files(job: DeclaredJob, facts: Facts) -> Iterator[Pitfall]:
    """Report certificate files of a job that its scraper does not have."""
    scraper = job.scraper
    paths = sorted({str(job.tls[key]) for key in ("ca_file", "cert_file", "key_file") if job.tls.get(key)})
    template = scraper_template(scraper, facts) if scraper and job.tls.get("cert_file") else None
    if scraper is None or template is None:
        return
    scraping = scraping_container(template)
    mounts = [
        str(objects.dig(mount, "mountPath", default="")).rstrip("/") + "/"
        for mount in objects.as_list(scraping.container.get("volumeMounts") if scraping else None)
    ]
    missing = [
        path for path in paths if path.startswith("/") and not any(path.startswith(mount) for mount in mounts)
    ]
    missing = [path for path in missing if not path.startswith("/var/run/secrets/kubernetes.io/")]
    if missing:
        where = f"; its certificates are in {scraper.certs_mount}" if scraper.certs_mount else ""
        yield Pitfall(
            "tls-files-elsewhere",
            "error",
            job.ref,
            f"Job {job.name} reads {', '.join(missing)}, where {scraper.ref} has no volume{where}. Without "
            "the files the scrape pool is not created: its targets are absent, not down.",
            "Write the paths as the scraper's own container sees them.",
        )


def _relabeling(job: DeclaredJob) -> Iterator[Pitfall]:
    """Try the job on example pods and report those that it handles wrongly."""
    if not any(discovery.role == "pod" for discovery in job.discoveries) or job.pod_selector is not None:
        return
    wanted = f"{META}pod_annotation_"
    if not any(source.removeprefix(wanted) in _SECURE for rule in job.rules for source in rule.sources):
        return
    plain = _scraped(job, _example())
    if not plain:
        return
    for code, text, remedy in _verdicts(job, plain):
        yield Pitfall(code, "warning" if code != "relabel-duplicates" else "info", job.ref, text, remedy)


def _verdicts(job: DeclaredJob, plain: list[Labels]) -> Iterator[tuple[str, str, str]]:
    name = f"Job {job.name}"
    if _scraped(job, _example(phase="Pending")) or _scraped(job, _example(phase="Succeeded")):
        yield (
            "relabel-phase",
            f"{name} takes pods that do not run (Pending, Succeeded): they are targets that are down.",
            "keep __meta_kubernetes_pod_phase Running.",
        )
    if any(target["__metrics_path__"] != names.MERGED_PATH for target in plain):
        yield (
            "relabel-path",
            f"{name} scrapes {plain[0]['__metrics_path__']} where a pod has no prometheus.io/path: only "
            "Istio's own 15092 serves that; on 15091, and on listeners with exact paths, the target is down.",
            f"Set metrics_path: {names.MERGED_PATH} and let the annotation override it.",
        )
    broken = _scraped(job, _example(ip="2001:db8::1"))
    if any(not target["__address__"].startswith("[") for target in broken):
        yield (
            "relabel-ipv6",
            f"{name} writes IPv6 addresses without brackets: {broken[0]['__address__']} is not an address.",
            "Bracket addresses that contain a colon, in a rule of their own.",
        )
    if not _scraped(job, _example(native=True)):
        yield (
            "relabel-native-sidecars",
            f"{name} drops native sidecars, whose proxy is an init container.",
            "Do not drop __meta_kubernetes_pod_container_init true.",
        )
    labels = {key for target in plain for key in target if not key.startswith("__")}
    if not {"namespace", "pod"} <= labels:
        yield (
            "relabel-labels",
            f"{name} gives its samples no namespace and pod: they cannot be assigned to a workload.",
            "Copy __meta_kubernetes_namespace and __meta_kubernetes_pod_name to labels.",
        )
    if len(plain) > 1:
        yield (
            "relabel-duplicates",
            f"{name} makes {len(plain)} targets of one pod, one for each container port. Prometheus merges "
            "those that are equal; vmagent reports each as an error.",
            "keep container istio-proxy and port 15090: exactly one for each pod.",
        )


def _scraped(job: DeclaredJob, pod: Manifest) -> list[Labels]:
    targets = []
    for labels in pod_targets(pod):
        result = relabel(labels | {"__scheme__": job.scheme, "__metrics_path__": job.path}, job.rules)
        if result is not None:
            targets.append({key: value for key, value in result.items() if not key.startswith(META)})
    return targets


def _example(phase: str = "Running", ip: str = "192.0.2.7", native: bool = False) -> Manifest:
    proxy = {
        "name": names.PROXY_CONTAINER,
        "ports": [{"containerPort": 15090, "name": names.ENVOY_STATS_PORT_NAME}],
    }
    app = {"name": "app", "ports": [{"containerPort": 9080, "name": "http"}]}
    data = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "app-5d8f6c7b9-x2x4z",
            "namespace": "example",
            "labels": {"app": "app"},
            "annotations": {
                names.SECURE_PORT: "15092", names.SECURE_ENVOY_PORT: "15091",
                names.PROMETHEUS_SCRAPE: "true",
            },
        },
        "spec": {"containers": [app], "initContainers": [proxy]} if native else {"containers": [app, proxy]},
        "status": {"phase": phase, "podIP": ip},
    }  # fmt: skip
    return Manifest(Ref("", "Pod", "example", "app-5d8f6c7b9-x2x4z"), data)
