"""A small API server that keeps objects by their path, and fails where a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from meshscrape.cluster.kubeconfig import Access
from support.addresses import loopback
from support.serving import serving

LISTS = ("pods", "events", "jobs", "configmaps", "serviceaccounts")
# A status to answer with, an event to wait for before the answer, or None to end the connection without one.
Disturbance = int | threading.Event | None


def serve_well(method: str, path: str) -> Disturbance:
    """Disturb no request."""
    return 200


@dataclass
class ObjectsApi:
    """The objects by path, the requests so far, and what disturbs a request."""

    url: str
    objects: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    disturb: Callable[[str, str], Disturbance] = serve_well

    @property
    def access(self) -> Access:
        """The access of a user without credentials."""
        return Access(server=self.url, place="context test")

    def count(self, method: str, end: str = "") -> int:
        """How many requests of a method there were whose path ends so."""
        return sum(asked == method and path.endswith(end) for asked, path in list(self.requests))

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Answer a request, and change the objects."""
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
        if method in ("POST", "PUT"):
            metadata = {**body["metadata"], "uid": path, "resourceVersion": str(len(self.requests))}
            self.objects[path] = {**body, "metadata": metadata}
        if method == "DELETE":
            return (200, {}) if self.objects.pop(path, None) else (404, {"message": "not found"})
        if path in self.objects:
            return 200, self.objects[path]
        if path.rpartition("/")[2] in LISTS:
            items = [value for place, value in self.objects.items() if place.rpartition("/")[0] == path]
            return 200, {"metadata": {}, "items": items}
        return 404, {"message": f"{path} not found"}


@contextlib.contextmanager
def objects_api(objects: dict[str, Any] | None = None) -> Iterator[ObjectsApi]:
    """Run one on an address of its own."""

    class Handler(BaseHTTPRequestHandler):
        """Answers one request."""

        def handle_one_request(self) -> None:
            """Answer any method alike."""
            self.raw_requestline = self.rfile.readline(65537)
            self.close_connection = True
            if not self.raw_requestline or not self.parse_request():
                return
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = urlsplit(self.path).path
            found.requests.append((self.command, path))
            disturbance = found.disturb(self.command, path)
            if disturbance is None:
                return
            if isinstance(disturbance, threading.Event):
                disturbance.wait(30)
                disturbance = 200
            status, told = disturbance, {"message": f"disturbed {disturbance}"}
            if disturbance == 200:
                status, told = found.answer(self.command, path, body)
            text = json.dumps(told).encode()
            with contextlib.suppress(OSError):
                self.wfile.write(
                    f"HTTP/1.1 {status} Status\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text
                )

    server = ThreadingHTTPServer((loopback(), 0), Handler)
    server.daemon_threads = True
    found = ObjectsApi("http://{}:{}".format(*server.server_address), dict(objects or {}))
    with serving(server):
        yield found
