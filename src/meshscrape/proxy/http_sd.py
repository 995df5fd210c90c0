"""The proxy's own HTTP: targets for Prometheus's HTTP SD, and metrics. Everything needs the bearer token."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence

from meshscrape.exposition.negotiate import Format, content_type
from meshscrape.prometheus.target_files import http_sd
from meshscrape.prometheus.targets import Target
from meshscrape.system.http.server import Handler, Request, Response

TARGETS = "/targets/"
METRICS = "/metrics"
READY = "/healthz/ready"


class HttpDiscovery:
    """The answers of HTTP SD: always the whole list of a job, made once per change."""

    def __init__(self, jobs: Sequence[str]) -> None:
        self._bodies: dict[str, bytes] = dict.fromkeys(jobs, b"[]")

    def publish(self, targets: Mapping[str, Sequence[Target]]) -> None:
        """From now on these are the jobs' targets."""
        for job in self._bodies:
            self._bodies[job] = json.dumps(http_sd(targets.get(job, ()))).encode()

    async def answer(self, request: Request) -> Response:
        """`/targets/JOB` as JSON; 404 for a job that no source tells."""
        body = self._bodies.get(request.path.removeprefix(TARGETS))
        if body is None:
            return Response(404, b"no such job\n")
        return Response(200, body, content_type="application/json")


def handler(
    token: str, discovery: HttpDiscovery, metrics: Callable[[], bytes], why_not_ready: Callable[[], str]
) -> Handler:
    """GET and HEAD of `/targets/JOB`, `/metrics` and `/healthz/ready`, for who has the token; else 401."""
    wanted = f"Bearer {token}".encode()

    async def handle(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, wanted):
            return Response(
                401, b"bad-token: the request does not carry the proxy's bearer token\n",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"GET and HEAD only\n", headers={"Allow": "GET, HEAD"})
        if request.path.startswith(TARGETS):
            return await discovery.answer(request)
        if request.path == METRICS:
            return Response(200, metrics(), content_type=content_type(Format.TEXT))
        if request.path == READY:
            reason = why_not_ready()
            return Response(503, f"{reason}\n".encode()) if reason else Response(200, b"ready\n")
        return Response(404, b"not found\n")

    return handle
