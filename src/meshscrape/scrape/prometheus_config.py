"""Prometheus' configuration: one job per kind of secure port, targets from files.

Only fields that Prometheus 2.42 and 3, vmagent and the OpenTelemetry Collector all know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from meshscrape.errors import InputError
from meshscrape.scrape.direct import direct_tls
from meshscrape.scrape.targets import JOBS, STATS_PATH


@dataclass(frozen=True, slots=True)
class ScrapeOptions:
    """What the jobs are made of; directories as Prometheus sees them.

    `credentials_directory` holds cert-chain.pem, key.pem and root-cert.pem (OUTPUT_CERTS);
    `targets_directory` one `JOB.json` per job. Intervals in seconds.
    """

    credentials_directory: str
    targets_directory: str
    interval: float = 5.0
    timeout: float | None = None


def targets_file(directory: str, job: str) -> str:
    """Where a job's targets are."""
    return f"{directory.rstrip('/')}/{job}.json"


def scrape_configs(options: ScrapeOptions) -> list[dict[str, Any]]:
    """The list for Prometheus' `scrape_configs`."""
    return [
        {
            "job_name": job,
            "scheme": "https",
            "metrics_path": STATS_PATH,
            # A target answers itself or not at all: it does not send the scraper, with its key, elsewhere.
            "follow_redirects": False,
            "tls_config": direct_tls(options.credentials_directory),
            "file_sd_configs": [
                {"files": [targets_file(options.targets_directory, job)], "refresh_interval": "5s"}
            ],
        }
        for job in JOBS
    ]


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
        "global": {"scrape_interval": _duration(interval), "scrape_timeout": _duration(timeout)},
        "scrape_configs": scrape_configs(options),
    }
    head = "# Made by meshscrape. Servers are not verified yet: see insecure_skip_verify.\n"
    return head + yaml.safe_dump(document, sort_keys=False, width=200)


def _duration(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
