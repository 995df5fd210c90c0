"""Ask a running istiod for its version, where its image and the injector's values do not tell it."""

from __future__ import annotations

from meshscrape.cluster.api import Api, ApiError
from meshscrape.errors import UnavailableError
from meshscrape.istio.names import TOLD_VERSION
from meshscrape.istio.versions import parse_version
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest, as_mapping, dig, selects
from meshscrape.observe.control import istiods_of_unknown_version

# istiod's port for monitoring also answers /version (istio/istio pilot/pkg/bootstrap/monitoring.go).
_PORT = 15014


async def with_told_versions(api: Api, manifests: list[Manifest]) -> list[Manifest]:
    """Return the objects; an istiod of unknown version has what one of its pods tells, as an annotation.

    Without the right to pods/proxy, or without an answer, the version stays unknown.
    """
    told = {
        manifest.ref: version
        for manifest in istiods_of_unknown_version(Inventory(manifests))
        if (version := await _version(api, manifest, manifests))
    }
    if not told:
        return manifests
    return [
        Manifest(manifest.ref, _annotated(manifest, told[manifest.ref]), manifest.where)
        if manifest.ref in told
        else manifest
        for manifest in manifests
    ]


async def _version(api: Api, istiod: Manifest, manifests: list[Manifest]) -> str:
    selector = as_mapping(dig(istiod.data, "spec", "selector"))
    for pod in manifests:
        if pod.ref.kind != "Pod" or pod.ref.namespace != istiod.ref.namespace:
            continue
        if not selects(selector, objects.labels(pod.data)) or dig(pod.data, "status", "phase") != "Running":
            continue
        path = f"/api/v1/namespaces/{pod.ref.namespace}/pods/{pod.ref.name}:{_PORT}/proxy/version"
        try:
            text = await api.text(path)
        except (ApiError, UnavailableError):
            continue
        # It is `VERSION-REVISION-STATUS`, and the numbers are what counts.
        version = text.strip().partition("-")[0]
        if parse_version(version).known:
            return version
    return ""


def _annotated(manifest: Manifest, version: str) -> dict[str, object]:
    metadata = as_mapping(manifest.data.get("metadata"))
    notes = {**objects.annotations(manifest.data), TOLD_VERSION: version}
    return {**manifest.data, "metadata": {**metadata, "annotations": notes}}
