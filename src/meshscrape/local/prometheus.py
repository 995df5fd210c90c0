"""The mesh's Prometheus: write its configuration and target files, and read target health from its API."""

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
    """A target's state in Prometheus: `health` is up, down or unknown; `last_scrape` RFC 3339 or empty."""

    job: str
    url: str
    health: str
    last_scrape: str
    last_error: str


class PrometheusFiles:
    """The files that Prometheus or its scrape proxy reads. A file is replaced only when its text changes.

    With `direct`, Prometheus reads the target files itself. Otherwise the scrape proxy reads them, to know
    the expected SPIFFE ID of each address.
    """

    def __init__(self, directory: Path, *, direct: bool = False) -> None:
        self.directory = directory
        self.direct = direct
        self.targets: dict[str, list[Target]] = {job: [] for job in JOBS}
        self._written: dict[str, bytes] = {}

    @property
    def config(self) -> Path:
        """Return the path of prometheus.yml."""
        return self.directory / "prometheus.yml"

    @property
    def targets_directory(self) -> Path:
        """Return the directory with one JSON file per job."""
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
        """Write the target files for exactly these workloads."""
        self.targets = by_job(workloads)
        groups = file_sd if self.direct else target_file
        for job, targets in self.targets.items():
            content = (json.dumps(groups(targets), indent=1) + "\n").encode()
            if self._written.get(job) != content:
                write_atomic(Path(targets_file(str(self.targets_directory), job)), content)
                self._written[job] = content

    def shown_url(self, target: Target) -> str:
        """Return the target's URL as Prometheus shows it."""
        return target.url if self.direct else target.proxied_url


@dataclass(frozen=True, slots=True)
class ScrapeProxyPlace:
    """The addresses of the mesh's scrape proxy: it runs next to Prometheus, on its inside address."""

    inside: str
    directory: Path
    token_file: Path

    @property
    def address(self) -> str:
        """Return `host:port` for scrapes."""
        return f"{self.inside}:{PROXY_PORT}"

    @property
    def discovery(self) -> str:
        """Return `host:port` for HTTP SD and the proxy's own metrics."""
        return f"{self.inside}:{PROXY_DISCOVERY_PORT}"

    @property
    def listens(self) -> tuple[tuple[str, int], ...]:
        """Return both addresses."""
        return ((self.inside, PROXY_PORT), (self.inside, PROXY_DISCOVERY_PORT))

    @property
    def jobs(self) -> ScrapeProxyAccess:
        """Return the settings for Prometheus's scrape jobs."""
        return ScrapeProxyAccess(self.address, self.discovery, str(self.token_file))

    def arguments(self, credentials: Path, targets: Path) -> list[str]:
        """Return the arguments of `meshscrape proxy`."""
        files = [f"--targets={job}={targets_file(str(targets), job)}" for job in JOBS]
        return [
            "--listen", self.address, "--discovery", self.discovery, "--dir", str(self.directory),
            "--token-file", str(self.token_file), "--credentials", str(credentials), *files,
        ]  # fmt: skip


async def observe_targets(url: str) -> list[TargetHealth]:
    """Return the health of the active targets of the Prometheus at `url`.

    Raises UnavailableError when Prometheus does not answer.
    """
    status, body = await fetch(f"{url}/api/v1/targets?state=active", limits=_LIMITS)
    if status != 200:
        raise UnavailableError(f"Prometheus answers {status}", where=url)
    try:
        active = json.loads(body)["data"]["activeTargets"]
        return [_health(entry) for entry in active]
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError("Prometheus's answer is malformed", where=url) from error


def _health(entry: dict[str, Any]) -> TargetHealth:
    last = entry.get("lastScrape", "")
    return TargetHealth(
        job=entry["labels"]["job"],
        url=entry["scrapeUrl"],
        health=entry["health"],
        # Go's zero time means that the target was not scraped yet.
        last_scrape="" if last.startswith("0001-") else last,
        last_error=entry.get("lastError", ""),
    )
