"""Scraping without a scrape proxy: the one place where the server's identity stays unchecked."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE


def direct_tls(directory: str) -> dict[str, Any]:
    """Return Prometheus' `tls_config` with the workload certificate that OUTPUT_CERTS puts into `directory`.

    Prometheus compares DNS names and addresses only, and a workload certificate has neither: it cannot check
    a SPIFFE ID. So a direct scrape does not verify the server at all; the servers verify the scraper. The
    scrape proxy is the way to verify both, and this is the only place that does without.
    """
    base = directory.rstrip("/")
    return {
        "ca_file": f"{base}/{ROOTS_FILE}",
        "cert_file": f"{base}/{CERTIFICATE_CHAIN_FILE}",
        "key_file": f"{base}/{PRIVATE_KEY_FILE}",
        "insecure_skip_verify": True,
    }
