"""Read the volume mounts of proxies and scrapers, and find paths that are mounted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio import names
from meshscrape.kube import objects
from meshscrape.observe.volumes import named_items


def proxy_mounts(template: Any, annotations: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return the volume mounts of the proxy: its container's, and those of the annotation userVolumeMount."""
    for container in objects.containers(template):
        if container.get("name") == names.PROXY_CONTAINER:
            for mount in objects.as_list(container.get("volumeMounts")):
                yield str(objects.dig(mount, "name")), objects.as_mapping(mount)
    yield from named_items(annotations.get(names.USER_VOLUME_MOUNT, "")).items


def certs_volume(template: Any, annotations: Mapping[str, str], directory: str) -> tuple[str, bool] | None:
    """Return the volume that the proxy has at `directory`, and whether it is mounted read-only."""
    for name, mount in proxy_mounts(template, annotations):
        if directory and _path(mount) == directory.rstrip("/"):
            return name, mount.get("readOnly") is True
    return None


def doubled_mounts(template: Any, annotations: Mapping[str, str]) -> list[str]:
    """Return paths at which a container of the pod would have two mounts; the API server refuses that."""
    doubled = []
    for container in objects.containers(template):
        if container.get("name") != names.PROXY_CONTAINER:
            mounts = [objects.as_mapping(mount) for mount in objects.as_list(container.get("volumeMounts"))]
            doubled += _twice(_path(mount) for mount in mounts)
    return sorted({*doubled, *_twice(_path(mount) for _, mount in proxy_mounts(template, annotations))})


def _twice(paths: Iterator[str]) -> list[str]:
    return [path for path, count in Counter(paths).items() if path and count > 1]


def _path(mount: Mapping[str, Any]) -> str:
    return str(mount.get("mountPath", "")).rstrip("/")
