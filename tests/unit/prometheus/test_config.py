"""The Prometheus configuration as text."""

from __future__ import annotations

import pytest
import yaml

from meshscrape.errors import InputError
from meshscrape.prometheus.config import DirectScrapes, ScrapeOptions, ScrapeProxyAccess, render
from meshscrape.prometheus.targets import JOBS


def test_each_job_scrapes_over_mutual_tls_with_the_workloads_credentials() -> None:
    """All three jobs: https, the three files of OUTPUT_CERTS, targets from a file of its own."""
    document = yaml.safe_load(render(ScrapeOptions(DirectScrapes("/certs/", "/targets"))))
    assert [job["job_name"] for job in document["scrape_configs"]] == list(JOBS)
    for job in document["scrape_configs"]:
        assert (job["scheme"], job["metrics_path"]) == ("https", "/stats/prometheus")
        assert job["follow_redirects"] is False
        assert job["tls_config"] == {
            "ca_file": "/certs/root-cert.pem",
            "cert_file": "/certs/cert-chain.pem",
            "key_file": "/certs/key.pem",
            "insecure_skip_verify": True,
        }
        assert job["file_sd_configs"][0]["files"] == [f"/targets/{job['job_name']}.json"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (0.25, "250ms"), (90, "90s"), (1.5, "1500ms")])
def test_intervals_are_written_as_prometheus_reads_them(seconds: float, text: str) -> None:
    """Whole seconds or milliseconds; the timeout is the interval unless it is given."""
    document = yaml.safe_load(render(ScrapeOptions(DirectScrapes("/c", "/t"), seconds)))
    assert document["global"] == {"scrape_interval": text, "scrape_timeout": text}


@pytest.mark.parametrize(("interval", "timeout"), [(0, None), (-1, None), (5, 6), (5, 0), (1e9, None)])
def test_impossible_intervals_are_refused(interval: float, timeout: float | None) -> None:
    """Prometheus would refuse a timeout longer than the interval; so does this, with the reason."""
    with pytest.raises(InputError):
        render(ScrapeOptions(DirectScrapes("/c", "/t"), interval, timeout))


def test_through_the_proxy_no_job_leaves_the_server_unverified() -> None:
    """Plain http to the proxy with its token; no TLS settings that could skip a check; targets by HTTP SD."""
    address = "127.0.0.1:15094"
    proxy = ScrapeProxyAccess(address, "127.0.0.1:15095", "/run/token")
    text = render(ScrapeOptions(proxy))
    assert "insecure_skip_verify" not in text
    # An alias would be read as an empty setting by some of Prometheus's own decoders.
    assert "&id" not in text
    *jobs, own = yaml.safe_load(text)["scrape_configs"]
    assert [job["job_name"] for job in jobs] == list(JOBS)
    token = {"type": "Bearer", "credentials_file": "/run/token"}
    for job in jobs:
        assert (job["scheme"], job["proxy_url"], job["authorization"]) == ("http", f"http://{address}", token)
        (discovery,) = job["http_sd_configs"]
        assert discovery["url"] == f"http://127.0.0.1:15095/targets/{job['job_name']}"
        assert discovery["authorization"] == token
    assert own["authorization"] == token and "proxy_url" not in own
