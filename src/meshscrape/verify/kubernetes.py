"""Check a mesh of a cluster by what its API server can reach and what its Prometheus says (pure).

The API server opens connections to pods on behalf of its users (`pods/proxy`). It is a stranger to the mesh:
a client without a certificate, in another network position than the scraper. Where it cannot reach a pod at
all, its failures prove nothing, so a port that must answer is asked first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from meshscrape.istio.host_port import host_port
from meshscrape.istio.names import MERGED_PATH
from meshscrape.istio.ports import HEALTH, MERGED, STATS
from meshscrape.kube.objects import Ref, as_list, dig
from meshscrape.observe.observation import Observation
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.verify.findings import CheckResult, Outcome
from meshscrape.verify.registry import CHECKS

Scheme = Literal["http", "https"]
_CONTROL = "/healthz/ready"
_AUTHORITY = re.compile(r"[a-z]+://([^/?#]+)")


@dataclass(frozen=True, slots=True, order=True)
class PodVisit:
    """One request that the API server makes to a port of a pod."""

    pod: Ref
    scheme: Scheme
    port: int
    path: str

    @property
    def request_path(self) -> str:
        """Return the path of the request to the API server."""
        name = f"{self.scheme}:{self.pod.name}:{self.port}"
        return f"/api/v1/namespaces/{self.pod.namespace}/pods/{name}/proxy{self.path}"


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What the API server got: the pod's status; 0 if the pod did not answer, and then `text` says why."""

    status: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class AskedTarget:
    """A target in the words of one Prometheus' API: its health and last error."""

    health: str
    url: str
    error: str = ""


def visits_of(observation: Observation) -> Iterator[PodVisit]:
    """Yield the requests that the checks need: to every running pod with a secure port."""
    for workload in secured(observation):
        for pod in workload.running:
            yield PodVisit(pod.ref, "http", HEALTH, _CONTROL)
            for port in workload.metrics.listening:
                yield PodVisit(pod.ref, "http", port, MERGED_PATH)
                yield PodVisit(pod.ref, "https", port, MERGED_PATH)
            for port in (MERGED, STATS):
                yield PodVisit(pod.ref, "http", port, MERGED_PATH)


def judge_pods(observation: Observation, answers: Mapping[PodVisit, PodAnswer]) -> Iterator[CheckResult]:
    """Yield the results of the checks as a stranger."""
    for workload in secured(observation):
        for pod in workload.running:
            control = answers.get(PodVisit(pod.ref, "http", HEALTH, _CONTROL), PodAnswer(0, "not asked"))
            yield from _of_pod(workload, pod.ref, control, answers)


def secured(observation: Observation) -> list[ObservedWorkload]:
    """Return the workloads with a secure port."""
    return [workload for workload in observation.workloads if workload.metrics.listening]


def title_of(workload: ObservedWorkload) -> str:
    """Return NAMESPACE/NAME, as reports spell a workload."""
    return f"{workload.namespace}/{workload.name}"


def _of_pod(
    workload: ObservedWorkload, pod: Ref, control: PodAnswer, answers: Mapping[PodVisit, PodAnswer]
) -> Iterator[CheckResult]:
    def result(
        check: str, port: int, outcome: Outcome, seen: str, expected: str, remedy: str = ""
    ) -> CheckResult:
        return CheckResult(check, title_of(workload), f"{pod.name}:{port}", outcome, seen, expected, remedy)

    def unreached(check: str, port: int, expected: str) -> CheckResult:
        reason = f"not checked: the API server cannot reach the pod ({control.text or control.status})"
        return result(check, port, "skipped", reason, expected, "check from a client inside the cluster")

    reached = control.status == 200
    questions: tuple[tuple[str, Scheme, str], ...] = (
        ("plain-http", "http", "no answer to plain HTTP"),
        ("no-certificate", "https", "no answer to a client without a certificate"),
    )
    for check, scheme, expected in questions:
        for port in workload.metrics.listening:
            answer = answers.get(PodVisit(pod, scheme, port, MERGED_PATH), PodAnswer(0, "not asked"))
            if answer.status:
                remedy = f"the port must speak mutual TLS only: see meshscrape explain --code {check}"
                yield result(check, port, "failed", f"HTTP {answer.status}", expected, remedy)
            elif reached:
                yield result(check, port, "passed", answer.text or "refused", expected)
            else:
                yield unreached(check, port, expected)
    for port in (MERGED, STATS):
        answer = answers.get(PodVisit(pod, "http", port, MERGED_PATH), PodAnswer(0, "not asked"))
        expected = "no metrics in plaintext"
        if answer.status == 200 and workload.metrics.hardened:
            yield result(
                "plaintext-closed", port, "failed", "HTTP 200", expected,
                "restart the pod if it is older than its template; see meshscrape observe",
            )  # fmt: skip
        elif answer.status == 200:
            open_to_all = "anyone can read it without TLS: HTTP 200"
            yield result(
                "plaintext-open", port, "noted", open_to_all, expected, CHECKS["plaintext-open"].remedy
            )
        elif reached:
            answered = f"HTTP {answer.status}" if answer.status else answer.text or "refused"
            yield result("plaintext-closed", port, "passed", answered, expected)
        else:
            yield unreached("plaintext-closed", port, expected)


def asked_targets(document: Mapping[str, Any]) -> dict[str, AskedTarget]:
    """Return the active targets of one Prometheus by `ADDRESS:PORT`."""
    targets: dict[str, AskedTarget] = {}
    for target in as_list(dig(document, "data", "activeTargets")):
        url = str(dig(target, "scrapeUrl", default=""))
        if found_place := _AUTHORITY.match(url):
            health = str(dig(target, "health", default="unknown"))
            targets[found_place[1]] = AskedTarget(health, url, str(dig(target, "lastError", default="")))
    return targets


def judge_targets(
    observation: Observation,
    targets: Mapping[Ref, Mapping[str, AskedTarget]],
    unasked: Iterable[tuple[Ref, str]],
) -> Iterator[CheckResult]:
    """Yield the results of the checks as the scraper: what each Prometheus pod says of every secured pod."""
    for scraper, reason in unasked:
        yield CheckResult(
            "prometheus-target", f"{scraper.namespace}/{scraper.name}", "its API", "skipped",
            f"not asked: {reason}", "an answer with its targets",
            "grant pods/proxy, or look at its page of targets",
        )  # fmt: skip
    for workload in secured(observation):
        for pod in workload.running:
            yield from _of_targets(workload, pod.ref, pod.ip, targets)


def _of_targets(
    workload: ObservedWorkload, pod: Ref, address: str, targets: Mapping[Ref, Mapping[str, AskedTarget]]
) -> Iterator[CheckResult]:
    expected = "up over https in every Prometheus that reads it"
    places = [host_port(address, port) for port in workload.metrics.listening] if address else []
    readers = [(scraper, own[place]) for scraper, own in targets.items() for place in places if place in own]
    if not targets:
        return
    if not readers:
        yield CheckResult(
            "prometheus-target", title_of(workload), pod.name, "failed", "no target on its secure ports",
            expected, "see meshscrape plan: no scrape job reads it", "broken",
        )  # fmt: skip
    for scraper, target in readers:
        up, secure = target.health == "up", target.url.startswith("https://")
        state = f"{target.health} in {scraper}" + (f": {target.error}" if target.error else "")
        remedy = "" if up else "see its error on Prometheus' page of targets"
        yield CheckResult(
            "prometheus-target", title_of(workload), target.url, "passed" if up else "failed", state,
            expected, remedy, "broken",
        )  # fmt: skip
        yield CheckResult(
            "prometheus-scheme", title_of(workload), target.url, "passed" if secure else "noted",
            "https" if secure else "http: through a scrape proxy, which speaks TLS", "https",
        )  # fmt: skip


def unmade(done: Iterable[CheckResult], *, inside: bool) -> Iterator[CheckResult]:
    """Yield a note with the checks of `verify` that were not made; `inside` if pods have made others."""
    made = {result.check for result in done}
    names = ", ".join(check for check in CHECKS if check not in made)
    reason = "they are made on a local mesh only" if inside else "they need a client inside the cluster"
    remedy = "" if inside else "add --image REF: short-lived Jobs make most of them"
    if names:
        yield CheckResult(
            "not-checked", "", "", "noted", f"{reason}: {names}", "", remedy, severity="skipped"
        )
