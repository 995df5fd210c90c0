"""The mesh's Prometheus: its configuration and target files, and what its own API says of the targets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshscrape.errors import UnavailableError
from meshscrape.prometheus.config import (
    PROXY_DISCOVERY_PORT,
    PROXY_PORT,
    CaMetrics,
    DirectScrapes,
    ScrapeOptions,
    ScrapeProxyAccess,
    render,
    targets_file,
)
from meshscrape.prometheus.target_files import target_file
from meshscrape.prometheus.targets import JOBS, ScrapedWorkload, Target, by_job, file_sd
from meshscrape.system.files import private_dir, write_atomic
from meshscrape.system.http.client import FetchLimits, fetch

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
    """The files that Prometheus, or its scrape proxy, reads; they are replaced only when they change.

    With `direct` Prometheus reads the target files itself; else the scrape proxy does, which needs to know
    who is expected where.
    """

    def __init__(self, directory: Path, *, direct: bool = False) -> None:
        self.directory = directory
        self.direct = direct
        self.targets: dict[str, list[Target]] = {job: [] for job in JOBS}
        self._written: dict[str, bytes] = {}

    @property
    def config(self) -> Path:
        """prometheus.yml."""
        return self.directory / "prometheus.yml"

    @property
    def targets_directory(self) -> Path:
        """Return one JSON file per job."""
        return self.directory / "targets"

    def write_config(
        self, through: ScrapeProxyAccess | DirectScrapes, interval: float, ca: CaMetrics
    ) -> None:
        """Write prometheus.yml and empty target files; `interval` in seconds."""
        for path in (self.directory, self.targets_directory, self.directory / "data"):
            private_dir(path)
        self.write_targets(())
        write_atomic(self.config, render(ScrapeOptions(through, interval, limits=True, ca=ca)).encode())

    def write_targets(self, workloads: Iterable[ScrapedWorkload]) -> None:
        """Make the target files say exactly these workloads."""
        self.targets = by_job(workloads)
        groups = file_sd if self.direct else target_file
        for job, targets in self.targets.items():
            data = (json.dumps(groups(targets), indent=1) + "\n").encode()
            if self._written.get(job) != data:
                write_atomic(Path(targets_file(str(self.targets_directory), job)), data)
                self._written[job] = data

    def shown_url(self, target: Target) -> str:
        """Return the target's URL as Prometheus shows it."""
        return target.url if self.direct else target.proxied_url


@dataclass(frozen=True, slots=True)
class ScrapeProxyPlace:
    """Where the mesh's scrape proxy is: beside Prometheus, on its inside address."""

    inside: str
    directory: Path
    token_file: Path

    @property
    def address(self) -> str:
        """For scrapes, `host:port`."""
        return f"{self.inside}:{PROXY_PORT}"

    @property
    def discovery(self) -> str:
        """For HTTP SD and its metrics, `host:port`."""
        return f"{self.inside}:{PROXY_DISCOVERY_PORT}"

    @property
    def listens(self) -> tuple[tuple[str, int], ...]:
        """Both addresses."""
        return ((self.inside, PROXY_PORT), (self.inside, PROXY_DISCOVERY_PORT))

    @property
    def jobs(self) -> ScrapeProxyAccess:
        """Return what Prometheus needs to know."""
        return ScrapeProxyAccess(self.address, self.discovery, str(self.token_file))

    def arguments(self, credentials: Path, targets: Path) -> list[str]:
        """Return the arguments of `meshscrape proxy`."""
        files = [f"--targets={job}={targets_file(str(targets), job)}" for job in JOBS]
        return [
            "--listen", self.address, "--discovery", self.discovery, "--dir", str(self.directory),
            "--token-file", str(self.token_file), "--credentials", str(credentials), *files,
        ]  # fmt: skip


async def observe_targets(url: str) -> list[TargetHealth]:
    """Return what the Prometheus at `url` reports of its active targets, or raise UnavailableError."""
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
