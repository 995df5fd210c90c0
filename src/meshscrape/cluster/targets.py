"""Convert a pod to the targets of the scrape proxy. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshscrape.kube.pod_targets import Metrics, TargetMesh, is_coming, targets_of
from meshscrape.prometheus.targets import APPLICATION_JOB, ENVOY_JOB, MERGED_JOB, Target

JOB_OF: Mapping[Metrics, str] = {"merged": MERGED_JOB, "envoy": ENVOY_JOB, "application": APPLICATION_JOB}


def proxied_targets(pod: Any, mesh: TargetMesh) -> Mapping[str, tuple[Target, ...]]:
    """Return the targets of a pod by scrape job, at each address; none while it must not be scraped.

    A pod that is coming has targets that are not ready: Envoy gets their routes before anything scrapes them.
    Raises InputError for a pod whose namespace or ServiceAccount can have no SPIFFE ID.
    """
    by_job: dict[str, list[Target]] = {}
    ready = not is_coming(pod)
    for target in targets_of(pod, mesh, coming=True):
        by_job.setdefault(JOB_OF[target.metrics], []).extend(
            Target(
                address,
                target.port,
                target.identity,
                target.labels,
                target.path,
                main=not number,
                ready=ready,
            )
            for number, address in enumerate(target.addresses)
        )
    return {job: tuple(targets) for job, targets in by_job.items()}
