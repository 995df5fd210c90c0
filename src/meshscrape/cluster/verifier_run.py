"""Run the Jobs of verifiers: make them, wait for them, read their reports, and remove all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.verifier_job import (
    CONTAINER,
    JobState,
    VerifierJob,
    core_path,
    job_object,
    job_state,
    owned_objects,
)
from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.kube.objects import Object, dig
from meshscrape.system.life import first_failure
from meshscrape.verify.findings import Report
from meshscrape.verify.observations import printable
from meshscrape.verify.reports import parse_report

_POLL_SECONDS = 1.0
# How long removed pods may take to go: Kubernetes gives them 30 s to stop.
_GONE_SECONDS = 60.0
_NOT_FOUND = 404
_BACKGROUND = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
_MOST_LOG = 1 << 26


async def reports_of(api: Api, jobs: Sequence[VerifierJob], told: Callable[[str], None]) -> list[Report]:
    """Run the Jobs at the same time and return their reports. Everything that was made is removed.

    Raises UnavailableError if a Job cannot start, does not end in time, or could not run its checks.
    """
    made: list[tuple[VerifierJob, str]] = []
    try:
        for job in jobs:
            await _create(api, job, made)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_report(api, job, told)) for job in jobs]
        return [task.result() for task in tasks]
    except BaseExceptionGroup as failures:
        raise first_failure(failures) from None
    finally:
        await _whole(asyncio.create_task(_remove(api, made, told)))


async def _whole(removal: asyncio.Task[None]) -> None:
    """Wait until everything is removed, also when a signal cancels the wait."""
    try:
        await asyncio.shield(removal)
    except asyncio.CancelledError:
        await removal
        raise


async def _create(api: Api, job: VerifierJob, made: list[tuple[VerifierJob, str]]) -> None:
    # Each is noted before it is requested: a request that is interrupted may still be carried out.
    made.append((job, job.path))
    owner = await api.send("POST", job.path.rpartition("/")[0], job_object(job))
    for path, data in owned_objects(job, str(dig(owner, "metadata", "uid"))):
        made.append((job, f"{path}/{data['metadata']['name']}"))
        await api.send("POST", path, data)


async def _report(api: Api, job: VerifierJob, told: Callable[[str], None]) -> Report:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + job.seconds
    while True:
        state = await _state(api, job)
        if state.code is not None:
            return await _read(api, job, state)
        if state.stuck:
            raise _not_run(job, state.stuck, "look at its image and at its namespace's policies")
        if loop.time() > deadline:
            raise _not_run(
                job, f"it has not ended within {job.seconds:.0f} s: {state.waiting}", "raise --timeout"
            )
        told(f"verifier {job.verifier.title}: {state.waiting}")
        await asyncio.sleep(_POLL_SECONDS)


async def _state(api: Api, job: VerifierJob) -> JobState:
    space = job.verifier.namespace
    data = await api.get(job.path)
    pods = (await api.get(core_path(space, "pods"), labelSelector=job.selector)).get("items") or []
    events: list[Object] = []
    if not pods:
        about = f"involvedObject.kind=Job,involvedObject.name={job.name}"
        events = (await api.get(core_path(space, "events"), fieldSelector=about)).get("items") or []
    return job_state(data, pods, events)


async def _read(api: Api, job: VerifierJob, state: JobState) -> Report:
    """Return the report in the log of a pod that has ended."""
    path = f"{core_path(job.verifier.namespace, 'pods')}/{state.pod}/log"
    text = await api.text(path, limit=_MOST_LOG, container=CONTAINER)
    if state.code not in (0, 1):
        last = next(reversed(text.strip().splitlines()), "it wrote nothing")
        raise _not_run(job, f"it ended with {state.code}: {printable(last, 500)}", "check its image")
    try:
        return parse_report(text)
    except ValueError as error:
        raise _not_run(job, f"its log is not a report: {error}", "use an image of this version") from None


def _not_run(job: VerifierJob, what: str, remedy: str) -> UnavailableError:
    where = f"Job {job.verifier.namespace}/{job.name}"
    return UnavailableError(" ".join(what.split()), where=where, remedy=remedy, code="verifier-failed")


async def _remove(api: Api, made: Sequence[tuple[VerifierJob, str]], told: Callable[[str], None]) -> None:
    """Remove the objects, the last one first, and wait until their pods are gone. Raise for what remains."""
    left: list[str] = []
    for _, path in reversed(made):
        told(f"removing {path.rpartition('/')[2]}")
        try:
            await api.send("DELETE", path, _BACKGROUND)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                left.append(f"{path} ({error.what})")
        except MeshscrapeError as error:
            left.append(f"{path} ({error.what})")
    if left:
        raise UnavailableError(
            f"could not remove {', '.join(left)}",
            where=api.access.place,
            remedy="delete them; an ended Job goes by itself within some minutes",
            code="not-removed",
        )
    for job in {id(job): job for job, _ in made}.values():
        await _await_gone(api, job)


async def _await_gone(api: Api, job: VerifierJob) -> None:
    deadline = asyncio.get_running_loop().time() + _GONE_SECONDS
    path = core_path(job.verifier.namespace, "pods")
    while (await api.get(path, labelSelector=job.selector)).get("items"):
        if asyncio.get_running_loop().time() > deadline:
            raise UnavailableError(
                f"a pod is still there {_GONE_SECONDS:.0f} s after its Job was removed",
                where=f"Job {job.verifier.namespace}/{job.name}",
                remedy=f"see kubectl -n {job.verifier.namespace} get pods -l {job.selector}",
                code="not-removed",
            )
        await asyncio.sleep(_POLL_SECONDS / 4)
