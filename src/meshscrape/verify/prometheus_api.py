"""Query Prometheus's HTTP API for its targets and its stored series."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import yaml

from meshscrape.errors import UnavailableError
from meshscrape.system.http.client import FetchLimits, fetch_stream
from meshscrape.verify.check import CheckVerdict, result_of
from meshscrape.verify.findings import CheckResult
from meshscrape.verify.mesh_status import MeshStatus
from meshscrape.verify.prometheus_checks import (
    PrometheusCheck,
    PrometheusView,
    ScrapeJob,
    ScrapeTarget,
    Scraping,
    WantedSeries,
)

_LIMITS = FetchLimits(connect=3.0, read=10.0, total=20.0, body_bytes=1 << 26)
_REMEDY = "check that Prometheus runs"
_LOOK = 0.25


async def active_targets(url: str) -> tuple[ScrapeTarget, ...]:
    """Return the active targets of the Prometheus at `url`. Raise UnavailableError when its API fails."""
    data = await _api(url, "targets", {"state": "active"})
    try:
        return tuple(
            ScrapeTarget(
                target["scrapeUrl"],
                target["health"],
                target.get("lastError", ""),
                target["labels"],
                str(target.get("scrapePool") or target["labels"].get("job", "")),
            )
            for target in data["activeTargets"]
        )
    except (KeyError, TypeError):
        raise UnavailableError("this is not a list of targets", where=url, remedy=_REMEDY) from None


async def scrape_jobs(url: str) -> dict[str, ScrapeJob]:
    """Return the scrape jobs of the Prometheus at `url`, by name. Raise UnavailableError if its API fails."""
    data = await _api(url, "status/config", {})
    try:
        config = yaml.safe_load(data["yaml"])
        return {job["job_name"]: _job(job) for job in config.get("scrape_configs") or ()}
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise UnavailableError("this is not a configuration", where=url, remedy=_REMEDY) from None


async def scraping(mesh: MeshStatus) -> Scraping:
    """Return what the mesh's Prometheus scrapes, and how."""
    active = await active_targets(mesh.prometheus_url)
    return Scraping(active, await scrape_jobs(mesh.prometheus_url), mesh.scrape_proxy)


async def count_series(url: str, query: str) -> int:
    """Return how many series an instant query finds now. Raise UnavailableError when the API fails."""
    data = await _api(url, "query", {"query": query})
    try:
        return len(data["result"])
    except (KeyError, TypeError):
        raise UnavailableError("this is not the result of a query", where=url, remedy=_REMEDY) from None


async def check_prometheus(
    mesh: MeshStatus, checks: Sequence[PrometheusCheck], series: Iterable[WantedSeries], patience: float,
    waiting: Callable[[str], None],
) -> tuple[CheckResult, ...]:  # fmt: skip
    """Make these `checks`; ask again for up to `patience` seconds while something is still missing.

    Prometheus does not report a new target until its first scrape; that is not a finding yet.
    """
    wanted, deadline = tuple(series), monotonic() + patience
    while True:
        try:
            view = await _view(mesh, wanted)
        except UnavailableError as error:
            results = unchecked(mesh.prometheus_workload, checks, str(error))
        else:
            results = judge_view(view, checks)
        if all(result.outcome in ("passed", "noted") for result in results) or monotonic() >= deadline:
            return results
        waiting("waiting for Prometheus")
        await asyncio.sleep(_LOOK)


def judge_view(view: PrometheusView, checks: Sequence[PrometheusCheck]) -> tuple[CheckResult, ...]:
    """Return the results of `checks` for what Prometheus said."""
    return tuple(
        result_of(check, judged.workload, judged.target, judged.verdict)
        for check in checks
        for judged in check.judge(view)
    )


def unchecked(workload: str, checks: Sequence[PrometheusCheck], reason: str) -> tuple[CheckResult, ...]:
    """Return a result for each of the `checks` that says why it could not be made."""
    verdict = CheckVerdict("skipped", f"could not be checked: {reason}")
    return tuple(result_of(check, workload, "", verdict) for check in checks)


async def _view(mesh: MeshStatus, wanted: Sequence[WantedSeries]) -> PrometheusView:
    scraped = await scraping(mesh)
    counts = [(series, await count_series(mesh.prometheus_url, series.query)) for series in wanted]
    return PrometheusView(mesh, scraped, counts)


def _job(config: dict[str, Any]) -> ScrapeJob:
    proxy = str(config.get("proxy_url") or "").removeprefix("http://").rstrip("/")
    tls = config.get("tls_config") or {}
    return ScrapeJob(proxy, tls.get("insecure_skip_verify") is True)


async def _api(url: str, name: str, parameters: dict[str, str]) -> Any:
    full = f"{url.rstrip('/')}/api/v1/{name}?{urlencode(parameters)}"
    async with fetch_stream(full, limits=_LIMITS) as response:
        body = b"".join([chunk async for chunk in response.body])
    try:
        document = json.loads(body)
    except ValueError:
        raise UnavailableError(f"HTTP {response.status}, not JSON", where=full, remedy=_REMEDY) from None
    if not isinstance(document, dict) or document.get("status") != "success":
        raise UnavailableError(f"HTTP {response.status} without success", where=full, remedy=_REMEDY)
    return document.get("data")
