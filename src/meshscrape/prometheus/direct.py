"""Scraping without a scrape proxy: the one place where the server's identity stays unchecked."""

from __future__ import annotations

from typing import Any


def direct_tls(directory: str) -> dict[str, Any]:
    """Prometheus' `tls_config` with the workload certificate that OUTPUT_CERTS puts into `directory`.

    Prometheus compares DNS names and addresses only, and a workload certificate has neither: it cannot check
    a SPIFFE ID. So a direct scrape does not verify the server at all; the servers verify the scraper. The
    scrape proxy is the way to verify both, and this is the only place that does without.
    """
    base = directory.rstrip("/")
    return {
        "ca_file": f"{base}/root-cert.pem",
        "cert_file": f"{base}/cert-chain.pem",
        "key_file": f"{base}/key.pem",
        "insecure_skip_verify": True,
    }
