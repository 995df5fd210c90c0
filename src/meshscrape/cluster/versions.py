"""The versions of a live cluster: of Kubernetes, and of Istio's control planes. It changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.kinds import Resource, complete
from meshscrape.cluster.kubeconfig import Access
from meshscrape.istio.versions import UNKNOWN
from meshscrape.kube.objects import Inventory, dig, manifest_of
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.control import read_control

_DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
# The label that Istio's charts, istioctl and ASM's managed part give to istiod.
_ISTIOD = "app=istiod"
_FORBIDDEN = 403


@dataclass(frozen=True, slots=True)
class ControlPlaneVersion:
    """A control plane: its revision, its namespace, and its version (empty if its image does not tell)."""

    revision: str
    namespace: str
    version: str


@dataclass(frozen=True, slots=True)
class ClusterVersions:
    """What a cluster runs. `istio` is None if the user may not list Deployments."""

    place: str
    kubernetes: str
    istio: tuple[ControlPlaneVersion, ...] | None


async def cluster_versions(access: Access) -> ClusterVersions:
    """Return the versions of a cluster. Raise ApiError if it refuses, UnavailableError without an answer."""
    api = Api(access)
    kubernetes = str(dig(await api.get("/version"), "gitVersion", default=""))
    try:
        istio = await _istio(api)
    except ApiError as error:
        if error.status != _FORBIDDEN:
            raise
        return ClusterVersions(access.place, kubernetes, None)
    return ClusterVersions(access.place, kubernetes, istio)


async def _istio(api: Api) -> tuple[ControlPlaneVersion, ...]:
    manifests = [
        manifest_of(complete(item, _DEPLOYMENTS), api.access.place)
        async for page in api.pages(_DEPLOYMENTS.path, {"labelSelector": _ISTIOD})
        for item in page.items
    ]
    control = read_control(Cluster(Inventory(manifests)), UNKNOWN)
    return tuple(
        ControlPlaneVersion(
            plane.revision, plane.namespace, str(plane.version) if plane.version.known else ""
        )
        for plane in control.planes
    )
