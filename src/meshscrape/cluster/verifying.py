"""Verify the mesh of a live cluster through its API server: visit pods as a stranger, ask Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from meshscrape.cluster.api import Api
from meshscrape.cluster.dump import read_cluster
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.needs import NeededRight
from meshscrape.cluster.permissions import MissingRightsError, check_rights
from meshscrape.cluster.proof import targets_of
from meshscrape.cluster.scraped import prometheus_pods
from meshscrape.cluster.stopping import StoppedError
from meshscrape.errors import InputError, UnavailableError
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.system.clock import utcnow
from meshscrape.verify.explain.explanation import Explanation
from meshscrape.verify.explain.pod import explain_pod, find_pod
from meshscrape.verify.findings import CheckResult, Report
from meshscrape.verify.kubernetes import (
    AskedTarget,
    PodAnswer,
    PodVisit,
    asked_targets,
    judge_pods,
    judge_targets,
    unmade,
    visits_of,
)

# How many pods are visited at the same time: each visit is a connection of the API server.
_AT_ONCE = 8
# The API server's own answers, about a pod that it could not reach.
_UNREACHED = ("ServiceUnavailable", "InternalError", "BadGateway", "Timeout")


async def verify_cluster(access: Access, namespaces: Sequence[str], told: Callable[[str], None]) -> Report:
    """Read the cluster, visit its pods and ask every Prometheus; return what was found.

    `namespaces` limits the workloads. Raises InputError if the cluster cannot be read, or has no workload
    with a secure port among them.
    """
    started, began = utcnow(), monotonic()
    inventory = Inventory(await read_cluster(access, told))
    observation = observe(inventory)
    chosen = tuple(
        workload for workload in observation.workloads if not namespaces or workload.namespace in namespaces
    )
    limited = replace(observation, workloads=chosen)
    if not any(workload.metrics.listening for workload in chosen):
        raise InputError(
            "no workload has a secure metrics port",
            where=access.place,
            remedy="see meshscrape observe; meshscrape plan opens the ports",
            code="nothing-to-verify",
        )
    done, asked = await _results(Api(access), inventory, observation, limited, told)
    return Report((*done, *unmade(done)), f"the API server and {asked}", started, monotonic() - began)


async def explain_in_cluster(
    access: Access, target: str, told: Callable[[str], None]
) -> tuple[Explanation, ...]:
    """Read the cluster, visit one pod (`NAMESPACE/POD`) and ask every Prometheus; explain its targets."""
    inventory = Inventory(await read_cluster(access, told))
    observation = observe(inventory)
    workload, pod = find_pod(observation, target)
    limited = replace(observation, workloads=(replace(workload, running=(pod,)),))
    done, _ = await _results(Api(access), inventory, observation, limited, told)
    return explain_pod(observation, workload, pod, done)


async def _results(
    api: Api,
    inventory: Inventory,
    observation: Observation,
    limited: Observation,
    told: Callable[[str], None],
) -> tuple[list[CheckResult], str]:
    """Return the results about the workloads in `limited`, and the Prometheus pods that were asked."""
    answers = await _visits(api, list(visits_of(limited)), told)
    pods, others = prometheus_pods(observation, inventory)
    targets: dict[Ref, dict[str, AskedTarget]] = {}
    unasked = [(ref, "no ready pod with Prometheus' API") for ref in others]
    for pod in pods:
        try:
            targets[pod] = asked_targets(await targets_of(api, pod))
        except StoppedError as error:
            unasked.append((pod, error.what))
    done = [*judge_pods(limited, answers), *judge_targets(limited, targets, unasked)]
    return done, ", ".join(map(str, pods)) or "no scraper"


async def _visits(api: Api, visits: list[PodVisit], told: Callable[[str], None]) -> dict[PodVisit, PodAnswer]:
    """Make the visits. Without the right, make none and give that as the answer of each."""
    spaces = sorted({visit.pod.namespace for visit in visits})
    try:
        await check_rights(
            api, [NeededRight("get", "", "pods", space, "proxy") for space in spaces], "verify"
        )
    except MissingRightsError as error:
        return {visit: PodAnswer(0, f"no right: {error.missing[0]}") for visit in visits}
    turns = asyncio.Semaphore(_AT_ONCE)

    async def visit(wanted: PodVisit) -> PodAnswer:
        async with turns:
            told(f"visiting {wanted.pod} {wanted.scheme} {wanted.port}")
            try:
                status, reason = await api.ask(wanted.request_path)
            except UnavailableError as error:
                return PodAnswer(0, f"no answer: {error.what}")
        if reason.startswith(_UNREACHED):
            return PodAnswer(0, "refused")
        return PodAnswer(status, reason)

    answers = await asyncio.gather(*map(visit, visits))
    return dict(zip(visits, answers, strict=True))
