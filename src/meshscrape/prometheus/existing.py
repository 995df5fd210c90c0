"""Change the jobs and the pod of an existing Prometheus.

The functions are pure: they get the configuration as data and return the new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from meshscrape.kube.yaml_text import dump
from meshscrape.prometheus import scraper_pod
from meshscrape.prometheus.derived import derived_job, is_derived
from meshscrape.prometheus.kubernetes_sd import SECURE_JOBS, ClusterJobs, drop_secured, secure_jobs
from meshscrape.prometheus.targets import MERGED_JOB


@dataclass(frozen=True, slots=True)
class Advice:
    """One step: where (as text), why, and the data to add, change or remove."""

    action: Literal["add", "change", "remove"]
    where: str
    reason: str
    data: Any

    @property
    def text(self) -> str:
        """Return the data as YAML."""
        return dump(self.data)


def with_secure_jobs(
    config: Mapping[str, Any], jobs: ClusterJobs, plaintext_jobs: Collection[str] = ()
) -> dict[str, Any]:
    """Return `config` (prometheus.yml as data) with secure jobs, whose pods leave the plaintext jobs.

    Jobs of the same name are corrected in place and keep their certificate files; new jobs are appended.
    `plaintext_jobs` names the jobs that scrape proxies in plaintext: they get a last rule that drops pods
    with a secure port.
    """
    wanted = {job["job_name"]: job for job in wanted_jobs(config, jobs, plaintext_jobs)}
    present = []
    for job in config.get("scrape_configs") or ():
        name = job.get("job_name")
        if name in wanted:
            present.append(_corrected(job, wanted.pop(name)))
        else:
            present.append(_moved(job) if name in plaintext_jobs else dict(job))
    return {**config, "scrape_configs": [*present, *wanted.values()]}


def existing_advice(
    config: Mapping[str, Any], jobs: ClusterJobs, plaintext_jobs: Sequence[str] = (), revision: str = ""
) -> tuple[Advice, ...]:
    """Return the steps for an existing Prometheus without an operator, in the order to do them."""
    present = {job.get("job_name"): job for job in config.get("scrape_configs") or ()}
    advice = []
    if jobs.proxy is None:
        advice.append(
            Advice(
                "add",
                "the pod template of Prometheus: metadata, spec.volumes, volumeMounts of its own container",
                "a sidecar that only gets a workload certificate and writes it for Prometheus",
                pod_parts(revision),
            )
        )
    for job in wanted_jobs(config, jobs, plaintext_jobs):
        name = job["job_name"]
        if name not in present or present[name] != _corrected(present[name], job):
            action: Literal["add", "change"] = "change" if name in present else "add"
            reason = "only Running pods, one target each, also IPv6, the secure port's path, labels"
            advice.append(Advice(action, f"scrape_configs, job {name}", reason, job))
    for name in plaintext_jobs:
        if name in present and not _drops_secured(present[name]):
            advice.append(
                Advice(
                    "add",
                    f"relabel_configs of job {name}, as the last rule",
                    "a pod that announces a secure port is no longer also scraped in plaintext",
                    [drop_secured()],
                )
            )
    return tuple(advice)


def wanted_jobs(
    config: Mapping[str, Any], jobs: ClusterJobs, plaintext_jobs: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return the secure jobs for a configuration: derived from its plaintext job, if there is only one.

    A derived job yields what the plaintext job yielded, so alerts and dashboards keep working. With
    several plaintext jobs, the configuration alone does not show which job reads which pod.
    """
    standard = list(secure_jobs(jobs))
    declared = [
        job for job in config.get("scrape_configs") or () if str(job.get("job_name")) in plaintext_jobs
    ]
    theirs = [job for job in config.get("scrape_configs") or () if job.get("job_name") == MERGED_JOB]
    own = theirs and not is_derived(theirs[0].get("relabel_configs"))
    if len(declared) != 1 or own or jobs.namespaces or jobs.proxy is not None:
        return standard
    derived = derived_job(declared[0], MERGED_JOB, jobs.certificates, keep_own_series=jobs.keep_own_series)
    return [derived if job["job_name"] == MERGED_JOB else job for job in standard]


def plaintext_pod_jobs(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the jobs that discover pods and may scrape their proxies in plaintext.

    A job too many in the list does no harm: the rule against scraping twice only drops ports 15020 and 15090.
    """
    return tuple(
        str(job.get("job_name"))
        for job in config.get("scrape_configs") or ()
        if job.get("scheme", "http") == "http"
        and job.get("job_name") not in SECURE_JOBS
        and any(discovery.get("role") == "pod" for discovery in job.get("kubernetes_sd_configs") or ())
    )


def pod_parts(revision: str = "") -> dict[str, Any]:
    """Return the fields to add to the pod of an existing Prometheus."""
    return {
        "metadata": {
            "labels": scraper_pod.pod_labels(revision),
            "annotations": scraper_pod.pod_annotations(),
        },
        "volumes": [scraper_pod.volume()],
        "volumeMounts": [scraper_pod.volume_mount()],
    }


def _corrected(theirs: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """Return our job with the certificate paths and the intervals of the user's existing job."""
    if "proxy_url" in job:
        # The job is in plain HTTP to the scrape proxy, which has its own certificate.
        return {**{key: value for key, value in theirs.items() if key != "tls_config"}, **job}
    return {**job, **theirs, **{key: value for key, value in job.items() if key != "tls_config"}}


def _moved(job: Mapping[str, Any]) -> dict[str, Any]:
    if _drops_secured(job):
        return dict(job)
    return {**job, "relabel_configs": [*(job.get("relabel_configs") or ()), drop_secured()]}


def _drops_secured(job: Mapping[str, Any]) -> bool:
    return drop_secured() in (job.get("relabel_configs") or ())
