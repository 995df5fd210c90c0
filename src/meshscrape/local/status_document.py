"""The status document, `meshscrape.io/v1 MeshStatus`: see docs/status.md, which other programs rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.local.layout import WorkloadPlan
from meshscrape.local.prometheus import ScrapeProxyPlace, TargetHealth
from meshscrape.local.workload import RunningWorkload
from meshscrape.prometheus.targets import Target, targets_of
from meshscrape.system.proc import child_named

KIND = "MeshStatus"


def mesh_document(
    *,
    phase: str,
    message: str,
    pid: int,
    state: Path,
    trust_domain: str,
    ca: Mapping[str, Any],
    prometheus: Mapping[str, Any] | None,
    scrape_proxy: Mapping[str, Any] | None,
    workloads: Iterable[dict[str, Any]],
) -> dict[str, Any]:
    """Return the whole document; `message` describes the mesh's problems, empty without any."""
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": KIND,
        "phase": phase,
        "message": message,
        "pid": pid,
        "stateDirectory": str(state),
        "trustDomain": trust_domain,
        "ca": dict(ca),
        "prometheus": dict(prometheus) if prometheus else None,
        "scrapeProxy": dict(scrape_proxy) if scrape_proxy else None,
        "workloads": list(workloads),
    }


def workload_entry(
    running: RunningWorkload,
    health: Mapping[tuple[str, str], TargetHealth],
    failure: str,
    shown_url: Callable[[Target], str],
) -> dict[str, Any]:
    """Return one entry of `workloads`; `health` is Prometheus's report, by job and displayed URL."""
    plan, settings = running.plan, running.plan.settings
    certificate = running.certificate
    return {
        "name": plan.key[1],
        "namespace": plan.key[0],
        "pod": plan.pod,
        "kind": plan.kind,
        "spiffeId": str(plan.scraped.spiffe_id),
        "address": plan.addresses.pod,
        "addresses": list(settings.pod_addresses),
        "insideAddress": plan.addresses.inside,
        "ports": _ports(plan),
        "hardened": settings.localhost_only,
        "credentials": str(settings.state_dir / "credentials"),
        "outputCertificates": str(settings.output_certs) if settings.output_certs else None,
        "token": str(plan.token),
        "agentDirectory": str(settings.state_dir),
        "adminSocket": str(settings.state_dir / "admin.sock") if settings.envoy else None,
        "scrapers": [str(scraper) for scraper in settings.scrapers],
        "certificate": {"serial": certificate.serial, "notAfter": timestamp(certificate.not_after)}
        if certificate
        else None,
        "pids": {
            "agent": running.agent.pid,
            "envoy": running.envoy_pid,
            "application": [
                application.pid for application in running.applications if application.pid is not None
            ],
        },
        "targets": _targets(running, health, shown_url),
        "ready": running.ready,
        "restarts": running.restarts,
        "message": failure or running.message,
    }


def proxy_entry(place: ScrapeProxyPlace, guard: int | None) -> dict[str, Any]:
    """Return the entry `scrapeProxy`; `guard` is its parent's process ID, None if no parent runs."""
    proxy = child_named(guard) if guard else None
    return {
        "address": place.address,
        "discovery": place.discovery,
        "httpSd": f"http://{place.discovery}/targets",
        "tokenFile": str(place.token_file),
        "adminSocket": str(place.directory / "admin.sock"),
        "pids": {"proxy": proxy, "envoy": child_named(proxy, "envoy") if proxy else None},
    }


def timestamp(moment: datetime) -> str:
    """Return the time in RFC 3339, UTC, with seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _ports(plan: WorkloadPlan) -> dict[str, Any]:
    settings = plan.settings
    metrics = {source.port: source.path for source in plan.scraped.sources}
    if not settings.envoy:
        own = [
            port
            for application in plan.applications
            if not application.scrape_proxy
            for _, port in application.listens
        ]
        return {
            "secure": {},
            "plaintext": {},
            "application": [{"name": "", "port": port, "mtls": "DISABLE"} for port in own],
        }
    secure = {"envoy": settings.secure_stats_port, "merged": settings.secure_merged_port}
    application = []
    for inbound in settings.inbound:
        entry = {"name": inbound.name, "port": inbound.port, "mtls": inbound.mode}
        if inbound.port in metrics:
            entry["metrics"] = metrics[inbound.port]
        application.append(entry)
    return {
        "secure": {name: port for name, port in secure.items() if port},
        "plaintext": {
            "envoy": settings.stats_port,
            "merged": settings.merged_port,
            "health": settings.health_port,
        },
        "application": application,
    }


def _targets(
    running: RunningWorkload,
    health: Mapping[tuple[str, str], TargetHealth],
    shown_url: Callable[[Target], str],
) -> list[dict[str, Any]]:
    if not running.joined:
        return []
    entries = []
    for job, targets in targets_of(running.plan.scraped).items():
        for target in targets:
            url = shown_url(target)
            status = health.get((job, url))
            entries.append(
                {
                    "job": job,
                    "url": url,
                    "health": status.health if status else "unknown",
                    "lastScrape": (status.last_scrape or None) if status else None,
                    "lastError": status.last_error if status else "",
                }
            )
    return entries
