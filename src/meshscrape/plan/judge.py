"""Judge a plan by its predicted result: does every workload stay scraped by each job that reads it now?

The planner applies its draft to the objects in memory and observes again. `judge` compares the two
observations. It is pure and does not depend on how the changes were made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meshscrape.istio.names import INCLUDE_OUTBOUND
from meshscrape.istio.ports import MERGED, STATS
from meshscrape.kube.objects import Ref
from meshscrape.observe.model import ObservedJob, Pitfall, Scraper
from meshscrape.observe.observation import Observation
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.model import Missing
from meshscrape.plan.selectors import LabelChange

Answer = Literal["shown", "refuted", "unknown"]
SEVERE = ("critical", "error")
_Key = tuple[Ref, str, str, Ref | None]
_PLAINTEXT = frozenset({MERGED, STATS})
# Errors about an application's own port. They do not affect the secure ports.
_OF_APPLICATIONS = frozenset(
    {"application-port-permissive", "application-port-not-http", "plaintext-under-strict"}
)


@dataclass(frozen=True, slots=True)
class ScrapeVerdict:
    """The effect of a plan on the scrapes of one workload by one scrape job.

    `shown`: the workload is read as before, or exactly once over mutual TLS on its secure port by a scraper
    with access. `refuted`: it is not. `unknown`: the objects do not show it. `missing` gives the reasons, and
    `blamed` is the object whose changes cause them: the workload or the scraper. `leaves`: the job no longer
    reads it in plaintext. `labels` are the labels that its metrics lose or get with another value.
    """

    workload: Ref
    job: str
    scraper: Ref | None
    answer: Answer
    leaves: bool
    missing: tuple[Missing, ...] = ()
    blamed: Ref | None = None
    labels: tuple[LabelChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The observations before and after a plan. `vouched`: the user has named the scrapers.

    `replaced`: a new Prometheus replaces the existing ones.
    """

    before: Observation
    after: Observation
    vouched: bool = False
    replaced: bool = False

    def scraper(self, ref: Ref | None) -> Scraper | None:
        """Return the scraper as observed after the plan."""
        return next((scraper for scraper in self.after.scrapers if scraper.ref == ref), None)


def judge(result: Result) -> tuple[ScrapeVerdict, ...]:
    """Return a verdict for every workload and every scrape job that reads its plaintext ports now."""
    after = {workload.ref: workload for workload in result.after.workloads}
    view = _view(result)
    return tuple(
        _verdict(_Case(view, job, after[ref]))
        for job in result.before.scrape_jobs
        if job.over == "plaintext"
        for ref in _read_in_plaintext(job)
        if ref in after
    )


def unread(result: Result, refs: Collection[Ref]) -> dict[Ref, tuple[Missing, ...]]:
    """Return the workloads among `refs` whose secure port no scraper is shown to read, and what is missing.

    Whether a plaintext job read them before does not matter: a port that nothing reads is not secured
    scraping. With a vouched scraper, a port that no job among the objects reads is that scraper's to read.
    """
    view = _view(result)
    unread_workloads: dict[Ref, tuple[Missing, ...]] = {}
    for workload in result.after.workloads:
        if workload.ref not in refs:
            continue
        readers = view.secure.get(workload.ref, ())
        if not readers:
            if not result.vouched:
                unread_workloads[workload.ref] = (_nobody(workload),)
            continue
        wrong = [_wrong_with_reading(view, workload, reader) for reader in readers]
        if result.vouched and all(any(_stopped(view, reader)) for reader in readers):
            continue
        if all(wrong):
            unread_workloads[workload.ref] = wrong[0]
    return unread_workloads


def new_errors(before: Observation, after: Observation) -> tuple[Pitfall, ...]:
    """Return the pitfalls of severity error that the plan would add."""
    known = {(pitfall.code, pitfall.ref) for pitfall in before.pitfalls if pitfall.severity in SEVERE}
    return tuple(
        pitfall
        for pitfall in after.pitfalls
        if pitfall.severity in SEVERE and (pitfall.code, pitfall.ref) not in known
    )


@dataclass(frozen=True, slots=True)
class _View:
    """The result, indexed: secure readers of each workload, jobs, errors, numbers of plaintext scrapes."""

    result: Result
    secure_before: Mapping[Ref, Sequence[ObservedJob]]
    secure: Mapping[Ref, Sequence[ObservedJob]]
    jobs: Mapping[_Key, ObservedJob]
    errors: Mapping[Ref | None, Sequence[Pitfall]]
    plaintext_before: Mapping[tuple[Ref | None, Ref], int]
    plaintext: Mapping[tuple[Ref | None, Ref], int]


def _view(result: Result) -> _View:
    return _View(
        result,
        _secure_readers(result.before),
        _secure_readers(result.after),
        {_key(job): job for job in result.after.scrape_jobs},
        _errors(result.after.pitfalls),
        _plaintext_counts(result.before.scrape_jobs),
        _plaintext_counts(result.after.scrape_jobs),
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """One workload and one plaintext job."""

    view: _View
    job: ObservedJob
    workload: ObservedWorkload

    @property
    def readers(self) -> list[ObservedJob]:
        """Return the jobs that would read the workload over mutual TLS in this job's place."""
        readers = self.view.secure.get(self.workload.ref, ())
        own = [job for job in readers if job.scraper == self.job.scraper]
        if own or not self.view.result.replaced:
            return own
        first = readers[0].scraper if readers else None
        return [job for job in readers if job.scraper == first]

    def verdict(self, answer: Answer, leaves: bool, blamed: Ref | None, *missing: Missing) -> ScrapeVerdict:
        """Return a verdict on this case."""
        labels = _label_changes(self) if leaves and answer == "shown" else ()
        return ScrapeVerdict(
            self.workload.ref, self.job.name, self.job.scraper, answer, leaves, missing, blamed, labels
        )


def _verdict(case: _Case) -> ScrapeVerdict:
    same = case.view.jobs.get(_key(case.job))
    stays = same is not None and bool(_PLAINTEXT & set(same.ports_after.get(case.workload.ref, ())))
    return _stays(case) if stays else _leaves(case)


def _stays(case: _Case) -> ScrapeVerdict:
    ref, scraper = case.workload.ref, case.job.scraper
    if case.workload.metrics.hardened:
        missing = Missing("closed", f"{case.job.name} still reads its plaintext ports", "move that job first")
        return case.verdict("refuted", False, ref, missing)
    before = case.view.plaintext_before.get((scraper, ref), 0)
    after = case.view.plaintext.get((scraper, ref), 0)
    own = [job for job in case.view.secure.get(ref, ()) if job.scraper == scraper]
    known = [job for job in case.view.secure_before.get(ref, ()) if job.scraper == scraper]
    if len(own) > len(known) and after + len(own) > max(1, before):
        missing = Missing(
            "twice",
            f"{case.job.name} would read it in addition to {own[0].name}",
            "add the rule that drops pods with a secure port to that job (see docs/prometheus.md)",
        )
        return case.verdict("refuted", False, scraper or ref, missing)
    return case.verdict("shown", False, None)


def _leaves(case: _Case) -> ScrapeVerdict:
    ref, readers = case.workload.ref, case.readers
    if not readers:
        return case.verdict("refuted", True, _blamed(case), _unread(case))
    reader = readers[0]
    before = case.view.plaintext_before.get((case.job.scraper, ref), 0)
    if len(several := _same_port(case, readers)) > max(1, before):
        names = ", ".join(job.name for job in several)
        missing = Missing("twice", f"{names} would all read it over mutual TLS", "keep only one of them")
        return case.verdict("refuted", True, reader.scraper or ref, missing)
    if wrong := tuple(_wrong_with_scraper(case.view, reader)):
        return case.verdict("refuted", True, reader.scraper, *wrong)
    if wrong := tuple(_wrong_with_workload(case.view, case.workload, reader)):
        return case.verdict("refuted", True, ref, *wrong)
    if wrong := tuple(_unknown_certificate(case.view, reader)):
        return case.verdict("unknown", True, reader.scraper or ref, *wrong)
    return case.verdict("shown", True, None)


def _same_port(case: _Case, readers: Sequence[ObservedJob]) -> list[ObservedJob]:
    """Return the jobs that read the same secure port: the port that most of them read."""
    by_port = [
        [job for job in readers if port in job.ports_after.get(case.workload.ref, ())]
        for port in case.workload.metrics.listening
    ]
    return max(by_port, key=len, default=[])


def _blamed(case: _Case) -> Ref:
    """Return the object to hold back: the scraper if it would read nothing at all, else the workload."""
    scraper = case.job.scraper
    reads_any = any(job.scraper == scraper for jobs in case.view.secure.values() for job in jobs)
    return case.workload.ref if reads_any or scraper is None else scraper


def _unread(case: _Case) -> Missing:
    listening = ", ".join(map(str, case.workload.metrics.listening)) or "none"
    return Missing(
        "unread",
        f"{case.job.name} would no longer read it, and no other job would over mutual TLS (secure ports: "
        f"{listening})",
        "see `meshscrape observe` for the workload and for its scraper",
    )


def _nobody(workload: ObservedWorkload) -> Missing:
    ports = ", ".join(map(str, workload.metrics.listening))
    return Missing(
        "no-secure-scraper",
        f"a scraper over mutual TLS: no job among the given objects would read its secure port ({ports})"
        if ports
        else "a secure port: none would be open",
        "give your Prometheus too, add a job for it (meshscrape prometheus-config --kubernetes), or name who "
        "scrapes: --scraper spiffe:SPIFFE_ID",
    )


def _wrong_with_reading(view: _View, workload: ObservedWorkload, reader: ObservedJob) -> tuple[Missing, ...]:
    """Return why a job that reads a secure port is not shown to get an answer; empty when it is."""
    wrong = (
        *_stopped(view, reader),
        *_wrong_with_scraper(view, reader),
        *_wrong_with_workload(view, workload, reader),
        *_unknown_certificate(view, reader),
    )
    return tuple(dict.fromkeys(wrong))


def _stopped(view: _View, reader: ObservedJob) -> Iterator[Missing]:
    scraper = view.result.scraper(reader.scraper)
    if scraper is not None and scraper.stopped:
        yield Missing(
            "scraper-stopped",
            f"{scraper.ref}, which has 0 replicas: nothing reads the secure port",
            "scale it up, or name who scrapes instead: --scraper spiffe:SPIFFE_ID",
        )


def _unknown_certificate(view: _View, reader: ObservedJob) -> Iterator[Missing]:
    scraper = view.result.scraper(reader.scraper)
    if scraper is None or not (scraper.output_certs or reader.verified or view.result.vouched):
        yield Missing(
            "certificate-unknown",
            f"the given objects do not show whether the mesh accepts the certificate of {reader.name}",
            "name the scraper: --scraper spiffe:SPIFFE_ID or dns:NAME",
        )


def _wrong_with_scraper(view: _View, reader: ObservedJob) -> Iterator[Missing]:
    """Return the reasons why the scraper could not read anything over mutual TLS."""
    scraper = view.result.scraper(reader.scraper)
    known = view.result.before.scrape_jobs
    if scraper and scraper.paused and not any(_key(job) == _key(reader) for job in known):
        yield Missing(
            "operator-paused",
            f"{scraper.ref} is paused: its Operator applies no change of it or of its monitors",
            "set spec.paused to false, and plan again",
        )
    # A scrape proxy runs as a user whose traffic Istio does not intercept.
    if scraper and scraper.injected and scraper.intercepts_outbound and not reader.verified:
        yield Missing(
            "intercepted",
            f"the sidecar of {scraper.ref} intercepts its scrapes",
            f'set the pod annotation {INCLUDE_OUTBOUND}: ""',
        )
    for ref in dict.fromkeys((reader.scraper, reader.ref)):
        for pitfall in view.errors.get(ref, ()):
            yield _as_missing(pitfall)


def _wrong_with_workload(view: _View, workload: ObservedWorkload, reader: ObservedJob) -> Iterator[Missing]:
    """Return the reasons why the workload could not be read on its secure port, or not by this scraper."""
    for pitfall in view.errors.get(workload.ref, ()):
        if pitfall.code not in _OF_APPLICATIONS:
            yield _as_missing(pitfall)
    override, scraper = workload.override, view.result.scraper(reader.scraper)
    if override is None or scraper is None or not (scraper.output_certs or reader.verified):
        return
    own = {listener.port for listener in override.listeners}
    if own & set(reader.ports_after.get(workload.ref, ())) and override.refuses(scraper.spiffe_id):
        yield Missing(
            "not-allowed",
            f"{override.config_map} does not list {scraper.spiffe_id}, the identity of {scraper.ref}",
            f"list it: --scraper spiffe:{scraper.spiffe_id}",
        )


def _label_changes(case: _Case) -> tuple[LabelChange, ...]:
    """Return the label changes of the workload's metrics in this scraper, over all of its jobs."""
    ref, result = case.workload.ref, case.view.result
    replaced = result.replaced and not any(
        job.scraper == case.job.scraper for job in case.view.secure.get(ref, ())
    )
    before = _yielded(result.before, ref, case.job.scraper)
    after = _yielded(result.after, ref, case.readers[0].scraper if replaced else case.job.scraper)
    gained = [labels for labels in after if labels not in before]
    changes: set[LabelChange] = set()
    for lost in (labels for labels in before if labels not in after):
        nearest = min(gained, key=lambda labels: len(lost.items() ^ labels.items()), default={})
        for label, value in lost.items():
            if nearest.get(label, "") != value:
                changes.add(LabelChange(label, value, nearest.get(label, "")))
    return tuple(sorted(changes))


def _yielded(observation: Observation, ref: Ref, scraper: Ref | None) -> list[dict[str, str]]:
    """Return the label sets of a workload's targets by one scraper, without the port of `instance`."""
    label_sets = []
    for job in observation.scrape_jobs:
        for labels in job.labels_after.get(ref, ()) if job.scraper == scraper else ():
            host, colon, port = labels.get("instance", "").rpartition(":")
            form = {"instance": f"{host}:PORT"} if colon and port.isdigit() else {}
            label_sets.append({**labels, **form})
    return label_sets


def _as_missing(pitfall: Pitfall) -> Missing:
    return Missing(pitfall.code, pitfall.text.rstrip("."), pitfall.remedy.rstrip("."))


def _key(job: ObservedJob) -> _Key:
    return job.ref, job.job, job.over, job.scraper


def _read_in_plaintext(job: ObservedJob) -> list[Ref]:
    refs = {
        ref
        for ports_by_workload in (job.ports_of, job.ports_after)
        for ref, ports in ports_by_workload.items()
        if not _PLAINTEXT.isdisjoint(ports)
    }
    return sorted(refs)


def _plaintext_counts(jobs: Collection[ObservedJob]) -> dict[tuple[Ref | None, Ref], int]:
    """Return how many plaintext jobs of each scraper read each workload, once all pods have restarted."""
    counts: dict[tuple[Ref | None, Ref], int] = {}
    for job in jobs:
        if job.over == "plaintext":
            for ref, ports in job.ports_after.items():
                if not _PLAINTEXT.isdisjoint(ports):
                    counts[job.scraper, ref] = counts.get((job.scraper, ref), 0) + 1
    return counts


def _secure_readers(observation: Observation) -> dict[Ref, list[ObservedJob]]:
    """Return the jobs that read each workload on an open secure port over mutual TLS."""
    listening = {workload.ref: set(workload.metrics.listening) for workload in observation.workloads}
    readers: dict[Ref, list[ObservedJob]] = {}
    for job in observation.scrape_jobs:
        if job.over == "mtls":
            for ref, ports in job.ports_after.items():
                if not listening.get(ref, set()).isdisjoint(ports):
                    readers.setdefault(ref, []).append(job)
    return readers


def _errors(pitfalls: Collection[Pitfall]) -> dict[Ref | None, list[Pitfall]]:
    errors: dict[Ref | None, list[Pitfall]] = {}
    for pitfall in pitfalls:
        if pitfall.severity in SEVERE:
            errors.setdefault(pitfall.ref, []).append(pitfall)
    return errors
