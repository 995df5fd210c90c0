"""Write the observation as a document, `meshscrape.io/v1 Observation` (docs/observe.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.istio.versions import IstioVersion
from meshscrape.kube.objects import Ref
from meshscrape.observe.model import (
    ControlPlane,
    MeshSettings,
    ObservedJob,
    OperatorVersion,
    Pitfall,
    RunningPod,
    Scraper,
)
from meshscrape.observe.observation import Observation
from meshscrape.observe.reporting.results import PipelineResult
from meshscrape.observe.workload import ObservedWorkload


def observation_document(
    observation: Observation, suppressed: Iterable[PipelineResult] = ()
) -> dict[str, Any]:
    """Return the observation for `json.dumps`: plain data, the same for the same objects.

    `suppressed` are the results that were taken out of its pitfalls.
    """
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": "Observation",
        "controlPlanes": [_plane(plane) for plane in observation.control_planes],
        "mesh": _mesh(observation.mesh),
        "workloads": [
            _workload(workload) | {"next": observation.next_steps[workload.ref]}
            for workload in observation.workloads
        ],
        "scrapeJobs": [_scrape_job(job) for job in observation.scrape_jobs],
        "scrapers": [
            _scraper(scraper, scraper not in observation.unread_scrapers) for scraper in observation.scrapers
        ],
        "unknownPodListers": [ref_document(ref) for ref in observation.unknown_listers],
        "plaintextComponents": [
            {"object": ref_document(component.ref), "component": component.component, "port": component.port}
            for component in observation.plaintext_components
        ],
        "prometheusOperator": _operator(observation.operator_version),
        "pitfalls": [_pitfall(pitfall) for pitfall in observation.pitfalls],
        "suppressed": [
            {
                "code": result.code,
                "severity": result.severity,
                "object": ref_document(result.ref),
                "by": result.suppressed,
            }
            for result in suppressed
        ],
    }


def ref_document(ref: Ref | None) -> dict[str, str] | None:
    """Return a reference as data; the core API's group and a cluster-wide object's namespace are empty."""
    if ref is None:
        return None
    return {"group": ref.group, "kind": ref.kind, "namespace": ref.namespace, "name": ref.name}


def _operator(version: OperatorVersion | None) -> str | None:
    return ".".join(map(str, version)) if version else None


def _version(version: IstioVersion) -> str | None:
    return str(version) if version.known else None


def _plane(plane: ControlPlane) -> dict[str, Any]:
    return {
        "revision": plane.revision,
        "version": _version(plane.version),
        "versionSource": plane.version_source or None,
        "tags": list(plane.tags),
        "namespace": plane.namespace,
        "external": plane.external,
        "flavour": plane.flavour,
        "trustDomain": plane.mesh.trust_domain,
    }


def _mesh(mesh: MeshSettings) -> dict[str, Any]:
    return {
        "found": mesh.found,
        "trustDomain": mesh.trust_domain,
        "trustDomainAliases": list(mesh.trust_domain_aliases),
        "rootNamespace": mesh.root_namespace,
        "prometheusMerge": mesh.prometheus_merge,
        "proxyMetadata": dict(mesh.default_metadata),
    }


def _workload(workload: ObservedWorkload) -> dict[str, Any]:
    return {
        "object": ref_document(workload.ref),
        "gateway": ref_document(workload.gateway_ref),
        "kind": workload.kind,
        "flavour": workload.flavour,
        "spiffeId": workload.spiffe_id,
        "injection": {
            "by": workload.injection.by,
            "injected": workload.injection.injected,
            "reason": workload.injection.reason,
        },
        "revision": workload.revision or None,
        "proxy": {
            "now": [_version(version) for version in workload.versions.running],
            "afterRestart": _version(workload.versions.after),
            "nativeSidecar": workload.versions.native_sidecar,
        },
        "mode": workload.metrics.mode,
        "metrics": {
            "securePorts": list(workload.metrics.listening),
            "merged": workload.metrics.merged,
            "envoy": workload.metrics.envoy,
            "announced": workload.metrics.announced,
            "announcedEnvoy": workload.metrics.announced_envoy,
            "plaintextClosed": workload.metrics.hardened,
            "stillOpen": workload.metrics.half_hardened or None,
            "annotations": dict(sorted(workload.prometheus_annotations.items())),
        },
        "interception": {
            "captured": workload.interception.captured,
            "includeInboundPorts": None
            if workload.interception.include is None
            else list(workload.interception.include),
            "excludeInboundPorts": list(workload.interception.exclude),
        },
        "mtls": {
            "mode": workload.mtls.default,
            "ports": {str(port): mode for port, mode in sorted(workload.mtls.ports.items())},
        },
        "ports": [
            {"number": port.number, "name": port.name, "protocol": port.protocol}
            for port in workload.container_ports
        ],
        "bootstrapOverride": workload.bootstrap_override or None,
        "standalone": workload.standalone,
        "ownedBy": ref_document(workload.owned_by),
        "refused": workload.refusal or None,
        "noEnvoy": workload.envoy_missing or None,
        "statsMerged": workload.stats_merged,
        "scrapedBy": list(workload.scraped_by),
        "pods": [_pod(pod) for pod in workload.running],
    }


def _pod(pod: RunningPod) -> dict[str, Any]:
    return {
        "name": pod.ref.name,
        "phase": pod.phase,
        "version": _version(pod.version),
        "current": pod.current,
        "differs": list(pod.differs),
    }


def _scrape_job(job: ObservedJob) -> dict[str, Any]:
    return {
        "name": job.name,
        "object": ref_document(job.ref),
        "job": job.job,
        "over": job.over,
        "scraper": ref_document(job.scraper),
        "spiffeId": job.spiffe_id,
        "certain": job.certain,
        "static": job.static,
        "verified": job.verified,
        "matches": [
            {"object": ref_document(ref), "ports": list(ports)} for ref, ports in job.ports_of.items()
        ],
    }


def _scraper(scraper: Scraper, read: bool) -> dict[str, Any]:
    return {
        "object": ref_document(scraper.ref),
        "kind": scraper.kind,
        "spiffeId": scraper.spiffe_id,
        "injected": scraper.injected,
        "outputCerts": scraper.output_certs or None,
        "certificates": scraper.certs_mount or None,
        "configuration": ref_document(scraper.config),
        "version": scraper.version or None,
        "product": scraper.product or None,
        "jobsKnown": read,
        "interceptsInbound": scraper.intercepts_inbound,
        "interceptsOutbound": scraper.intercepts_outbound,
        "ambient": scraper.ambient,
        "scrapeProxy": scraper.scrape_proxy.address or None,
        "stopped": scraper.stopped,
    }


def _pitfall(pitfall: Pitfall) -> dict[str, Any]:
    return {
        "code": pitfall.code,
        "severity": pitfall.severity,
        "object": ref_document(pitfall.ref),
        "text": pitfall.text,
        "remedy": pitfall.remedy,
    }
