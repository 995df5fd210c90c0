"""Explain the targets of a pod of a cluster: from its objects to what every Prometheus says of it (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshscrape.errors import InputError
from meshscrape.istio.names import MERGED_PATH
from meshscrape.kube.objects import Ref
from meshscrape.observe.model import RunningPod
from meshscrape.observe.observation import Observation
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.verify.explain.explanation import Explanation
from meshscrape.verify.explain.scraper import Step, StepOutcome
from meshscrape.verify.explain.target import ExplainTarget
from meshscrape.verify.findings import CheckResult, Outcome
from meshscrape.verify.kubernetes import title_of

_OUTCOMES: dict[Outcome, StepOutcome] = {
    "passed": "ok", "failed": "broken", "skipped": "skipped", "blocked": "skipped", "noted": "note",
}  # fmt: skip


def find_pod(observation: Observation, text: str) -> tuple[ObservedWorkload, RunningPod]:
    """Return the running pod that `NAMESPACE/POD` names, and its workload.

    Raises InputError if there is none.
    """
    namespace, slash, name = text.partition("/")
    if not slash or not name:
        raise InputError(f"{text!a} is not a pod", where="TARGET", remedy="write it as NAMESPACE/POD")
    for workload in observation.workloads:
        for pod in workload.running:
            if (pod.ref.namespace, pod.ref.name) == (namespace, name):
                return workload, pod
    raise InputError(
        f"no running pod {text!a} of a workload",
        where="TARGET",
        remedy=f"see kubectl -n {namespace} get pods",
        code="unknown-pod",
    )


def explain_pod(
    observation: Observation, workload: ObservedWorkload, pod: RunningPod, results: Iterable[CheckResult]
) -> tuple[Explanation, ...]:
    """Return an explanation for each secure port of a pod, or one that says why it has none."""
    known = list(results)
    ports = workload.metrics.listening
    if not ports:
        return (Explanation(_target(workload, pod, 0), tuple(_without_port(observation, workload, pod))),)
    return tuple(
        Explanation(
            _target(workload, pod, port),
            tuple(_first_broken(_steps(observation, workload, pod, port, known))),
        )
        for port in ports
    )


def _target(workload: ObservedWorkload, pod: RunningPod, port: int) -> ExplainTarget:
    identity = SpiffeId.parse(workload.spiffe_id) if workload.spiffe_id else None
    return ExplainTarget(
        pod.ip, port, MERGED_PATH, "https", "metrics", None, identity=identity, name=str(pod.ref)
    )


def _first_broken(steps: Iterator[Step]) -> Iterator[Step]:
    """Yield the steps up to the first broken one: later ones cannot work."""
    for step in steps:
        yield step
        if step.outcome == "broken":
            return


def _proxy(workload: ObservedWorkload, pod: RunningPod) -> Step:
    if not pod.injected:
        return Step(
            "proxy", "broken", "the pod has no proxy of the mesh", "restart it, or see meshscrape observe"
        )
    return Step("proxy", "ok", f"Istio {pod.version}, {workload.kind}")


def _without_port(observation: Observation, workload: ObservedWorkload, pod: RunningPod) -> Iterator[Step]:
    yield _proxy(workload, pod)
    yield Step(
        "secure port",
        "broken",
        "none is configured: its metrics are served in plaintext only",
        "meshscrape plan opens one",
    )


def _steps(
    observation: Observation,
    workload: ObservedWorkload,
    pod: RunningPod,
    port: int,
    results: list[CheckResult],
) -> Iterator[Step]:
    yield _proxy(workload, pod)
    yield Step("secure port", "ok", f"{port}, mode {workload.metrics.mode}")
    if pod.current:
        yield Step("pod", "ok", "as its template says")
    else:
        yield Step(
            "pod",
            "broken",
            f"older than its template ({', '.join(pod.differs) or 'its configuration'})",
            f"kubectl -n {workload.namespace} rollout restart {workload.ref.kind.lower()}/{workload.name}",
        )
    for pitfall in observation.pitfalls:
        if pitfall.ref == workload.ref and pitfall.severity in ("critical", "error"):
            yield Step(pitfall.code, "broken", pitfall.text, pitfall.remedy)
    yield _jobs(observation, workload.ref, port)
    for result in results:
        if _about(result, title_of(workload), pod, port):
            yield Step(result.check, _OUTCOMES[result.outcome], result.seen, result.remedy)


def _jobs(observation: Observation, ref: Ref, port: int) -> Step:
    jobs = [job for job in observation.scrape_jobs if port in job.ports_of.get(ref, ())]
    if not jobs:
        return Step("scrape job", "note", "no job among the objects reads this port: see meshscrape plan")
    return Step("scrape job", "ok", ", ".join(f"{job.name} over {job.over}" for job in jobs))


def _about(result: CheckResult, title: str, pod: RunningPod, port: int) -> bool:
    own = result.workload == title
    return own and (
        result.target == f"{pod.ref.name}:{port}"
        or result.target == pod.ref.name
        or (bool(pod.ip) and f"{pod.ip}]:{port}/" in result.target)
        or (bool(pod.ip) and f"{pod.ip}:{port}/" in result.target)
    )
