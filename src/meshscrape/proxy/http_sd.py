"""Serve targets for Prometheus's HTTP SD, and the proxy's metrics. Every request needs the bearer token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from meshscrape.exposition.negotiate import Format, content_type
from meshscrape.prometheus.target_files import http_sd
from meshscrape.prometheus.targets import Target
from meshscrape.system.bearer import carries
from meshscrape.system.http.server import Handler, Request, Response

INDEX = "/targets"
TARGETS = "/targets/"
CHANGES = "/changes"
METRICS = "/metrics"
READY = "/healthz/ready"
ETAG = "ETag"


class HttpDiscovery:
    """The answers of HTTP SD: the whole list of a job, made at the first request after a change."""

    def __init__(self, jobs: Sequence[str]) -> None:
        self._jobs = tuple(jobs)
        self._targets: Callable[[str], Sequence[Target]] | None = None
        self._bodies: dict[str, tuple[bytes, str]] = {}

    def publish(self, targets: Callable[[str], Sequence[Target]]) -> None:
        """Answer with the targets of each job from now on; a request calls `targets` with its job."""
        self._targets = targets
        self._bodies.clear()

    async def answer(self, request: Request) -> Response:
        """Return the answer to `/targets/JOB`: JSON, or 404 for an unknown job.

        Before the first targets it is 503, because an empty list would take all targets away from the reader.
        A reader that knows the list by its tag gets 304.
        """
        job = request.path.removeprefix(TARGETS)
        if job not in self._jobs:
            return Response(404, b"no such job\n")
        if self._targets is None:
            return Response(503, b"not ready: the targets are not known yet\n")
        known = self._bodies.get(job)
        if known is None:
            body = json.dumps(http_sd(self._targets(job))).encode()
            known = self._bodies[job] = body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {ETAG: known[1]}
        if request.headers.get("if-none-match") == known[1]:
            return Response(304, headers=headers)
        return Response(200, known[0], content_type="application/json", headers=headers)


@dataclass(frozen=True, slots=True)
class Index:
    """The content of `/targets`: jobs, problems by source, contested addresses, whether Envoy is current."""

    jobs: Sequence[str]
    problems: Mapping[str, str]
    contested: Sequence[str]
    current: bool

    def body(self) -> bytes:
        """Return the index as JSON."""
        return json.dumps(asdict(self)).encode()


def handler(
    token: str,
    discovery: HttpDiscovery,
    changes: Handler,
    metrics: Callable[[], bytes],
    why_not_ready: Callable[[], str],
    index: Callable[[], Index],
) -> Handler:
    """Serve `GET`/`HEAD` of `/targets`, `/targets/JOB`, `/changes`, `/metrics` and `/healthz/ready`.

    Requests without the token get 401.
    """

    async def handle(request: Request) -> Response:
        if not carries(request, token):
            return Response(
                401, b"bad-token: the request does not carry the proxy's bearer token\n",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"GET and HEAD only\n", headers={"Allow": "GET, HEAD"})
        if request.path == INDEX:
            return Response(200, index().body(), content_type="application/json")
        if request.path.startswith(TARGETS):
            return await discovery.answer(request)
        if request.path == CHANGES:
            return await changes(request)
        if request.path == METRICS:
            return Response(200, metrics(), content_type=content_type(Format.TEXT))
        if request.path == READY:
            reason = why_not_ready()
            return Response(503, f"{reason}\n".encode()) if reason else Response(200, b"ready\n")
        return Response(404, b"not found\n")

    return handle
