"""The mesh's Prometheus: its configuration and target files, and what its own API says of the targets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshscrape.errors import UnavailableError
from meshscrape.scrape.prometheus_config import ScrapeOptions, render, targets_file
from meshscrape.scrape.targets import JOBS, ScrapedWorkload, Target, by_job, file_sd
from meshscrape.system.files import private_dir, write_atomic
from meshscrape.system.http_client import FetchLimits, fetch

_LIMITS = FetchLimits(connect=1.0, read=3.0, total=3.0, body_bytes=1 << 26)


@dataclass(frozen=True, slots=True)
class TargetHealth:
    """A target as Prometheus sees it: `health` is up, down or unknown; `last_scrape` RFC 3339 or empty."""

    job: str
    url: str
    health: str
    last_scrape: str
    last_error: str


class PrometheusFiles:
    """The files that Prometheus reads; target files are replaced only when they change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.targets: dict[str, list[Target]] = {job: [] for job in JOBS}
        self._written: dict[str, bytes] = {}

    @property
    def config(self) -> Path:
        """prometheus.yml."""
        return self.directory / "prometheus.yml"

    @property
    def targets_directory(self) -> Path:
        """One JSON file per job."""
        return self.directory / "targets"

    def write_config(self, credentials: Path, interval: float) -> None:
        """Write prometheus.yml and empty target files; `interval` in seconds."""
        for path in (self.directory, self.targets_directory, self.directory / "data"):
            private_dir(path)
        self.write_targets(())
        text = render(options(credentials, self.targets_directory, interval))
        write_atomic(self.config, text.encode())

    def write_targets(self, workloads: Iterable[ScrapedWorkload]) -> None:
        """Make the target files say exactly these workloads."""
        self.targets = by_job(workloads)
        for job, targets in self.targets.items():
            data = (json.dumps(file_sd(targets), indent=1) + "\n").encode()
            if self._written.get(job) != data:
                write_atomic(Path(targets_file(str(self.targets_directory), job)), data)
                self._written[job] = data


def options(credentials: Path, targets: Path, interval: float) -> ScrapeOptions:
    """The options of `prometheus_config` for directories of this machine."""
    return ScrapeOptions(str(credentials), str(targets), interval)


async def observe_targets(url: str) -> list[TargetHealth]:
    """What the Prometheus at `url` says of its active targets. UnavailableError when it does not answer."""
    status, body = await fetch(f"{url}/api/v1/targets?state=active", limits=_LIMITS)
    if status != 200:
        raise UnavailableError(f"Prometheus answers {status}", where=url)
    try:
        active = json.loads(body)["data"]["activeTargets"]
        return [_health(each) for each in active]
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError("Prometheus's answer cannot be read", where=url) from error


def _health(entry: dict[str, Any]) -> TargetHealth:
    last = entry.get("lastScrape", "")
    return TargetHealth(
        job=entry["labels"]["job"],
        url=entry["scrapeUrl"],
        health=entry["health"],
        # Go's zero time: not scraped yet.
        last_scrape="" if last.startswith("0001-") else last,
        last_error=entry.get("lastError", ""),
    )
