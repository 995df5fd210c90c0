"""Find the certificate files in a Prometheus's pod that its scrape proxy is to use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio.names import PROXY_CONTAINER
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, as_list, dig
from meshscrape.observe.model import Scraper
from meshscrape.observe.mounts import proxy_mounts
from meshscrape.observe.scraper_images import scraping_container
from meshscrape.observe.scrapers import operated_template
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import clone
from meshscrape.plan.model import Refused
from meshscrape.plan.workloads import Context, default_control_plane
from meshscrape.prometheus.scrape_proxy_pod import CONTAINERS, CertificateFiles

# A volume of another type (csi, secret, projected) is filled before the first container starts.
_FILLED_BY_CONTAINERS = ("emptyDir", "hostPath")


def certificate_files(context: Context, scraper: Scraper, directory: str) -> CertificateFiles | Refused:
    """Return how to mount the files that a container of the scraper's pod has in `directory`."""
    template = _template(context, scraper)
    found = sorted(_mounts_of(template, directory), key=lambda each: (-len(_path(each[1])), each[0]))
    if not found:
        return Refused(
            "certificates-not-mounted",
            f"no container of its pod mounts a volume at {directory}, where its scrape proxy is to find "
            "certificate files",
            "correct --proxy-certificates, or let an istio-proxy (OUTPUT_CERTS) or spiffe-helper write there",
        )
    _, mount = found[0]
    wanted = {key: mount[key] for key in ("name", "mountPath", "subPath") if key in mount}
    reader = _reader(scraper, template)
    writers = {
        container
        for container, each in found
        if each.get("name") == mount.get("name") and each.get("readOnly") is not True and container != reader
    }
    return CertificateFiles(
        directory,
        {**wanted, "readOnly": True},
        first=_is_filled(template, str(mount.get("name")))
        or _start_first(context, scraper, template, writers),
    )


def _reader(scraper: Scraper, template: Any) -> str:
    """Return the name of the container that scrapes, which reads the files."""
    if scraper.kind == "operator":
        return "prometheus"
    scraping = scraping_container(template)
    return str(scraping.container.get("name")) if scraping else ""


def _template(context: Context, scraper: Scraper) -> Any:
    data = context.object_of(scraper.ref)
    if scraper.kind == "operator":
        return operated_template(Manifest(scraper.ref, data))
    return templates.template_of(clone(data))


def _mounts_of(template: Any, directory: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return the mounts at `directory` or above it, each with its container."""
    for container in objects.containers(template):
        name = str(container.get("name"))
        for mount in as_list(container.get("volumeMounts")) if name not in CONTAINERS else ():
            if _holds(mount, directory):
                yield name, mount
    for volume, mount in proxy_mounts(template, objects.annotations(template)):
        if _holds(mount, directory):
            yield PROXY_CONTAINER, {"name": volume, **mount}


def _holds(mount: Mapping[str, Any], directory: str) -> bool:
    path = _path(mount)
    return bool(path) and (directory == path or directory.startswith(f"{path}/"))


def _path(mount: Mapping[str, Any]) -> str:
    return str(dig(mount, "mountPath", default="")).rstrip("/")


def _is_filled(template: Any, volume: str) -> bool:
    return any(
        dig(each, "name") == volume and not any(key in each for key in _FILLED_BY_CONTAINERS)
        for each in as_list(dig(template, "spec", "volumes"))
    )


def _start_first(context: Context, scraper: Scraper, template: Any, writers: set[str]) -> bool:
    """Return whether all containers that may write the files start before the proxy's.

    Which of them writes the certificate is not known. The proxy must not wait for one that starts later: none
    of those starts before the proxy is ready.
    """
    init = {str(dig(each, "name")) for each in as_list(dig(template, "spec", "initContainers"))}
    later = writers - init
    if later != {PROXY_CONTAINER}:
        return bool(writers) and not later
    # The injector puts a native sidecar in front of all other init containers.
    workload = context.observation.workload(scraper.ref)
    if workload is not None and workload.versions.native_sidecar is not None:
        return workload.versions.native_sidecar
    plane = default_control_plane(context.observation)
    return plane is not None and plane.native_sidecars is True
