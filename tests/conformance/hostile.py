"""Requests that must not reach anything but the metrics, even with a certificate that may read them."""

from __future__ import annotations

from conformance.kube import Object
from conformance.prober import secure

METRICS = "/stats/prometheus"
PATHS = (
    "/quitquitquit",
    "/debug/pprof/",
    "/config_dump",
    "/healthz/ready",
    f"{METRICS}/../../quitquitquit",
    f"{METRICS}/../../config_dump",
    f"{METRICS}/..%2f..%2fconfig_dump",
    f"{METRICS}/%2e%2e/%2e%2e/config_dump",
    f"//{METRICS}//..//..//certs",
)
EXPECTED = (400, 403, 404, 405, 301, 302, 307)  # anything but an answer with content


def attacks(host: str, port: int) -> list[Object]:
    """Return the requests, with the pod's own certificate."""
    reads = [secure(host, port, path=path) for path in PATHS]
    writes = [
        secure(host, port, path=path, method="POST") for path in ("/quitquitquit", "/logging?level=debug")
    ]
    return [*reads, *writes]
