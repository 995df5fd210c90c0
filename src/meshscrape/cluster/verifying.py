"""Verify the mesh of a live cluster: through its API server, by its Prometheus, and by Jobs from inside."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from meshscrape.cluster.api import Api
from meshscrape.cluster.dump import read_cluster
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.needs import NeededRight
from meshscrape.cluster.permissions import MissingRightsError, check_rights
from meshscrape.cluster.proof import targets_of
from meshscrape.cluster.scraped import prometheus_pods
from meshscrape.cluster.stopping import StoppedError
from meshscrape.cluster.verifier_job import MOST_BYTES, VerifierJob, files, needed_rights, size_of
from meshscrape.cluster.verifier_run import reports_of
from meshscrape.errors import InputError, UnavailableError
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.plan.scrape_proxy import ca_address
from meshscrape.system.clock import utcnow
from meshscrape.verify.explain.explanation import Explanation
from meshscrape.verify.explain.pod import explain_pod, find_pod
from meshscrape.verify.findings import CheckResult, Report
from meshscrape.verify.inside import (
    SCRAPER_CHECKS,
    STRANGER_CHECKS,
    Verifier,
    join,
    mesh_document,
    ports_to_try,
    scraper_among,
    untried,
)
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
from meshscrape.verify.mesh_status import parse_mesh

# How many pods are visited at the same time: each visit is a connection of the API server.
_AT_ONCE = 8
# The API server's own answers, about a pod that it could not reach.
_UNREACHED = ("ServiceUnavailable", "InternalError", "BadGateway", "Timeout")


@dataclass(frozen=True, slots=True)
class InsideOptions:
    """How to verify from inside: the verifiers' image, the stranger's namespace, and seconds for each Job.

    `scraper` is NAMESPACE/NAME of the scraper to scrape as, by default the first that reads a secure port.
    `pull_secret` is the name of a Secret for the image, which each of the two namespaces has. `labels` are
    more labels of the scraper's pod.
    """

    image: str
    namespace: str = "default"
    seconds: float = 300.0
    scraper: str = ""
    pull_secret: str = ""
    labels: tuple[tuple[str, str], ...] = ()


async def verify_cluster(
    access: Access,
    namespaces: Sequence[str],
    told: Callable[[str], None],
    inside: InsideOptions | None = None,
) -> Report:
    """Read the cluster, visit its pods and ask every Prometheus; return what was found.

    `namespaces` limits the workloads. With `inside`, Jobs visit the pods instead of the API server. Raises
    InputError if the cluster cannot be read, or has no workload with a secure port among them.
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
    api = Api(access)
    if inside is None:
        done, asked = await _results(api, inventory, observation, limited, told)
        report = Report(
            (),
            f"the API server and {asked}",
            started,
            0.0,
            (),
            parse_mesh(mesh_document(limited, by_name=True)),
        )
    else:
        report = await _from_inside(api, inventory, observation, limited, inside, told)
        asked_results, _ = await _asked(api, inventory, observation, limited)
        done = [*report.checks, *asked_results]
    checks = (*done, *unmade(done, inside=inside is not None))
    return replace(report, checks=checks, started=started, seconds=monotonic() - began)


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
    results, asked = await _asked(api, inventory, observation, limited)
    return [*judge_pods(limited, answers), *results], asked


async def _asked(
    api: Api, inventory: Inventory, observation: Observation, limited: Observation
) -> tuple[list[CheckResult], str]:
    """Return what every Prometheus tells about the workloads in `limited`, and the pods that were asked."""
    pods, others = prometheus_pods(observation, inventory)
    targets: dict[Ref, dict[str, AskedTarget]] = {}
    unasked = [(ref, "no ready pod with Prometheus' API") for ref in others]
    for pod in pods:
        try:
            targets[pod] = asked_targets(await targets_of(api, pod))
        except StoppedError as error:
            unasked.append((pod, error.what))
    return [*judge_targets(limited, targets, unasked)], ", ".join(map(str, pods)) or "no scraper"


async def _from_inside(
    api: Api, inventory: Inventory, observation: Observation, limited: Observation, inside: InsideOptions,
    told: Callable[[str], None],
) -> Report:  # fmt: skip
    """Run a Job as the scraper and one as a stranger; return what both found.

    Raises MissingRightsError for rights that the user lacks, before anything is made.
    """
    jobs = _jobs(inventory, observation, limited, inside)
    await check_rights(api, list(needed_rights(jobs)), "verify-image")
    scraper, stranger = await reports_of(api, jobs, told)
    checks = (*join(limited, scraper, stranger, inside.namespace), *untried(limited))
    proxy = scraper_among(observation, inside.scraper).scrape_proxy.address
    shown = mesh_document(limited, jobs[0].verifier, by_name=True, scrape_proxy=proxy)
    return replace(scraper, checks=checks, mesh=parse_mesh(shown))


def _jobs(
    inventory: Inventory, observation: Observation, limited: Observation, inside: InsideOptions
) -> tuple[VerifierJob, VerifierJob]:
    name = f"meshscrape-verify-{secrets.token_hex(3)}"
    scraper = scraper_among(observation, inside.scraper)
    place = files(ca_address(observation, inventory))

    def job(kind: str, verifier: Verifier) -> VerifierJob:
        made = VerifierJob(
            f"{name}-{kind}", verifier, inside.image, mesh_document(limited, verifier, place), inside.seconds,
            pull_secret=inside.pull_secret,
        )  # fmt: skip
        if size_of(made) > MOST_BYTES:
            raise InputError(
                "too many pods for one run", where="verify --image", remedy="limit it with --namespace NAME"
            )
        return made

    as_scraper = Verifier(scraper.namespace, scraper.service_account, SCRAPER_CHECKS)
    as_stranger = Verifier(inside.namespace, f"{name}-stranger", STRANGER_CHECKS)
    return replace(job("scraper", as_scraper), labels=inside.labels), replace(
        job("stranger", as_stranger), own_account=True, ports=ports_to_try(limited)
    )


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
