"""Scrape without a scrape proxy: the only place where the server's identity is not verified."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE


def direct_tls(directory: str) -> dict[str, Any]:
    """Return a `tls_config` with the workload certificate that OUTPUT_CERTS puts into `directory`.

    Prometheus only compares DNS names and addresses. A workload certificate has neither, and Prometheus
    cannot check a SPIFFE ID. So a direct scrape does not verify the server; only the server verifies the
    scraper. The scrape proxy verifies both.
    """
    base = directory.rstrip("/")
    return {
        "ca_file": f"{base}/{ROOTS_FILE}",
        "cert_file": f"{base}/{CERTIFICATE_CHAIN_FILE}",
        "key_file": f"{base}/{PRIVATE_KEY_FILE}",
        "insecure_skip_verify": True,
    }
