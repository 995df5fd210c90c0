"""Prometheus's configuration: one job per kind of secure port, through the scrape proxy or direct.

It uses only fields that Prometheus 2.42 and 3, vmagent and the OpenTelemetry Collector all know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MERGED_PATH
from meshscrape.kube.yaml_text import dump
from meshscrape.prometheus.direct import direct_tls
from meshscrape.prometheus.kubernetes_sd import drop_own_series
from meshscrape.prometheus.limits import BODY_SIZE_LIMIT, SAMPLE_LIMIT
from meshscrape.prometheus.targets import JOBS, PROXY_JOB

PROXY_PORT = 15094
PROXY_DISCOVERY_PORT = 15095
CA_JOB = "meshscrape-ca"


@dataclass(frozen=True, slots=True)
class ScrapeProxyAccess:
    """How Prometheus reaches a scrape proxy: `host:port` for scrapes, and for HTTP SD and metrics.

    `token_file` contains the bearer token for both. `jobs` are the jobs that the proxy has targets for.
    """

    address: str
    discovery: str
    token_file: str
    jobs: Sequence[str] = JOBS


@dataclass(frozen=True, slots=True)
class DirectScrapes:
    """Scraping without a proxy. Prometheus does not verify the servers' identities then.

    `credentials_directory` contains cert-chain.pem, key.pem and root-cert.pem (OUTPUT_CERTS);
    `targets_directory` contains one `JOB.json` per job.
    """

    credentials_directory: str
    targets_directory: str


@dataclass(frozen=True, slots=True)
class CaMetrics:
    """The metrics of a CA on this machine: `host:port`, and the file of the bearer token that they need."""

    address: str
    token_file: str


@dataclass(frozen=True, slots=True)
class ScrapeOptions:
    """The options of the jobs. Paths are as seen by Prometheus, intervals are in seconds.

    `limits`: limit each scrape (`limits.py`), for a Prometheus of our own. `keep_own_series`: keep `up` and
    `scrape_*` that an application exposes, for federation. `ca`: also scrape the CA's own metrics.
    """

    through: ScrapeProxyAccess | DirectScrapes
    interval: float = 5.0
    timeout: float | None = None
    limits: bool = False
    keep_own_series: bool = False
    ca: CaMetrics | None = None


def targets_file(directory: str, job: str) -> str:
    """Return the path of a job's target file."""
    return f"{directory.rstrip('/')}/{job}.json"


def scrape_configs(options: ScrapeOptions) -> list[dict[str, Any]]:
    """Return the list for Prometheus' `scrape_configs`."""
    through = options.through
    limits = {"sample_limit": SAMPLE_LIMIT, "body_size_limit": BODY_SIZE_LIMIT} if options.limits else {}
    own = [plain_job(CA_JOB, options.ca.address, options.ca.token_file)] if options.ca else []
    samples = {} if options.keep_own_series else {"metric_relabel_configs": [drop_own_series()]}
    if isinstance(through, ScrapeProxyAccess):
        refresh = duration(min(5.0, max(1.0, options.interval)))
        jobs = [_proxied_job(through, job, refresh) for job in through.jobs]
        own.insert(0, plain_job(PROXY_JOB, through.discovery, through.token_file))
        return [*({**job, **limits, **samples} for job in jobs), *own]
    return [*({**_direct_job(through, job), **limits, **samples} for job in JOBS), *own]


def render(options: ScrapeOptions) -> str:
    """Return a whole prometheus.yml. Raise InputError for an invalid interval."""
    document = {
        "global": global_settings(options.interval, options.timeout),
        "scrape_configs": scrape_configs(options),
    }
    return _HEADS[type(options.through)] + dump(document)


def global_settings(interval: float, timeout: float | None = None) -> dict[str, Any]:
    """Return the section `global`, from seconds. Raise InputError if the timeout exceeds the interval.

    The default timeout is the interval.
    """
    timeout = interval if timeout is None else timeout
    if not 0.1 <= interval <= 86400:
        raise InputError(f"{interval:g} s is not a scrape interval", remedy="use 0.1 s to 24 h")
    if not 0 < timeout <= interval:
        raise InputError(
            f"the scrape timeout {timeout:g} s must be positive and at most the interval {interval:g} s",
            remedy="change the timeout or the interval",
        )
    return {"scrape_interval": duration(interval), "scrape_timeout": duration(timeout)}


def _proxied_job(proxy: ScrapeProxyAccess, job: str, refresh: str) -> dict[str, Any]:
    """Return a job in plain HTTP to the proxy on this machine, which uses mutual TLS to the targets."""
    return {
        "job_name": job,
        "scheme": "http",
        "proxy_url": f"http://{proxy.address}",
        "metrics_path": MERGED_PATH,
        "follow_redirects": False,
        "authorization": _bearer(proxy.token_file),
        "http_sd_configs": [
            {
                "url": f"http://{proxy.discovery}/targets/{job}",
                "refresh_interval": refresh,
                "follow_redirects": False,
                "authorization": _bearer(proxy.token_file),
            }
        ],
    }


def plain_job(name: str, address: str, token_file: str) -> dict[str, Any]:
    """Return the job for a process next to Prometheus: plaintext on loopback, with a bearer token."""
    return {
        "job_name": name,
        "scheme": "http",
        "metrics_path": "/metrics",
        "follow_redirects": False,
        "authorization": _bearer(token_file),
        "static_configs": [{"targets": [address]}],
    }


def _bearer(token_file: str) -> dict[str, Any]:
    return {"type": "Bearer", "credentials_file": token_file}


def _direct_job(direct: DirectScrapes, job: str) -> dict[str, Any]:
    return {
        "job_name": job,
        "scheme": "https",
        "metrics_path": MERGED_PATH,
        # A hostile target must not redirect the scraper, which holds a key, to another server.
        "follow_redirects": False,
        "tls_config": direct_tls(direct.credentials_directory),
        "file_sd_configs": [
            {"files": [targets_file(direct.targets_directory, job)], "refresh_interval": "5s"}
        ],
    }


_HEADS = {
    ScrapeProxyAccess: "# Made by meshscrape. Targets read http:// because Prometheus asks the scrape proxy "
    "on this machine.\n# The proxy speaks mutual TLS with each target and verifies its SPIFFE ID.\n",
    DirectScrapes: "# Made by meshscrape. Prometheus does not verify targets: see insecure_skip_verify.\n",
}


def duration(seconds: float) -> str:
    """Return seconds as Prometheus spells a duration: `5s`, `250ms`."""
    milliseconds = round(seconds * 1000)
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
