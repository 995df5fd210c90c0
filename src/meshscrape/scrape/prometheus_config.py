"""Prometheus' configuration: one job per kind of secure port, through the scrape proxy or direct.

Only fields that Prometheus 2.42 and 3, vmagent and the OpenTelemetry Collector all know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from meshscrape.errors import InputError
from meshscrape.scrape.direct import direct_tls
from meshscrape.scrape.targets import JOBS, STATS_PATH

PROXY_PORT = 15094
PROXY_DISCOVERY_PORT = 15095
PROXY_JOB = "meshscrape-scrape-proxy"


@dataclass(frozen=True, slots=True)
class ScrapeProxy:
    """A scrape proxy as Prometheus sees it: `host:port` for scrapes, and for HTTP SD and its own metrics.

    `token_file` holds the bearer token that both want. `jobs` are those whose targets it tells.
    """

    address: str
    discovery: str
    token_file: str
    jobs: Sequence[str] = JOBS


@dataclass(frozen=True, slots=True)
class DirectScrapes:
    """Scraping without a proxy, which leaves the servers' identity unchecked.

    `credentials_directory` holds cert-chain.pem, key.pem and root-cert.pem (OUTPUT_CERTS);
    `targets_directory` one `JOB.json` per job.
    """

    credentials_directory: str
    targets_directory: str


@dataclass(frozen=True, slots=True)
class ScrapeOptions:
    """What the jobs are made of; files as Prometheus sees them. Intervals in seconds."""

    through: ScrapeProxy | DirectScrapes
    interval: float = 5.0
    timeout: float | None = None


def targets_file(directory: str, job: str) -> str:
    """Where a job's targets are."""
    return f"{directory.rstrip('/')}/{job}.json"


def scrape_configs(options: ScrapeOptions) -> list[dict[str, Any]]:
    """The list for Prometheus' `scrape_configs`."""
    through = options.through
    if isinstance(through, ScrapeProxy):
        return [*(_proxied_job(through, job) for job in through.jobs), _own_job(through)]
    return [_direct_job(through, job) for job in JOBS]


def render(options: ScrapeOptions) -> str:
    """A whole prometheus.yml. InputError when an interval is not one."""
    interval, timeout = options.interval, options.timeout if options.timeout is not None else options.interval
    if not 0.1 <= interval <= 86400:
        raise InputError(f"{interval:g} s is not a scrape interval", remedy="use 0.1 s to 24 h")
    if not 0 < timeout <= interval:
        raise InputError(
            f"the scrape timeout {timeout:g} s does not fit into the interval {interval:g} s",
            remedy="make it positive and no longer than the interval",
        )
    document = {
        "global": {"scrape_interval": duration(interval), "scrape_timeout": duration(timeout)},
        "scrape_configs": scrape_configs(options),
    }
    return _HEADS[type(options.through)] + yaml.safe_dump(document, sort_keys=False, width=200)


def duration(seconds: float) -> str:
    """Seconds as Prometheus spells a duration: `5s`, `250ms`."""
    milliseconds = round(seconds * 1000)
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
