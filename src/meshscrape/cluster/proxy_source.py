"""The scrape proxy's source of targets in a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from meshscrape.cluster.api import Api
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.pod_cache import Pod, PodTargets
from meshscrape.cluster.pod_source import PodScope, PodSource
from meshscrape.cluster.targets import proxied_targets
from meshscrape.kube.pod_targets import TargetMesh
from meshscrape.kube.views.peer_authentication import PeerAuthentications
from meshscrape.prometheus.targets import JOBS
from meshscrape.proxy.options import await_credentials
from meshscrape.spiffe.templates import IdTemplate


def pod_source(
    access: Access,
    scope: PodScope,
    *,
    trust_domain: str,
    applications: bool,
    template: IdTemplate | None,
    credentials: Sequence[tuple[str, Path]],
    patience: float,
) -> PodSource:
    """Return the source that follows the pods of a cluster.

    Without `trust_domain`, targets are of the trust domain of the first credentials, once they are there.
    Raises InputError when they are not within `patience` seconds. With `applications`, the applications' own
    ports are targets too. `template` is the shape of the pods' SPIFFE IDs where it is not Istio's.
    """

    # The policies of the mesh are not read here: the job that scrapes an application's port decides.
    policies = PeerAuthentications(()) if applications else None

    async def rule() -> Callable[[Pod], PodTargets]:
        domain = trust_domain or next(iter(await await_credentials(credentials, patience)))
        return partial(proxied_targets, mesh=TargetMesh(domain, policies=policies, template=template))

    return PodSource(Api(access), scope, JOBS, rule)
