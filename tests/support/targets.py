"""Scrape targets for tests: small servers over TLS, and over what only pretends to be."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.forgery import Pair
from support.serving import serving

PORT = 15092
STATS = "/stats/prometheus"


@dataclass(slots=True)
class Seen:
    """A request as the target saw it: its head, and the URI SAN of the client's certificate."""

    path: str
    headers: dict[str, str]
    client: str
    serial: str


@dataclass(slots=True)
class Target:
    """A server at `address`:`port` that answers every GET with `body`."""

    address: str
    body: bytes = b"shown 1\n"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    # Answers wait for this event, if there is one.
    released: threading.Event | None = None
    port: int = PORT

    @property
    def authority(self) -> str:
        return f"{self.address}:{self.port}"


@contextlib.contextmanager
def tls_target(
    target: Target, pair: Pair, roots: bytes, directory: Path, version: ssl.TLSVersion | None = None
) -> Iterator[Target]:
    """Serve `target` over mutual TLS with `pair`, for clients below `roots`; HTTP/1.1 with keep-alive.

    With `version` it speaks only this version of TLS. The length of its key is not its concern.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if version is not None:
        context.minimum_version = context.maximum_version = version
    file = directory / f"{target.address}.pem"
    file.write_bytes(pair.chain + pair.key)
    context.load_cert_chain(file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=roots.decode())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            # The handshake is made here, in the connection's own thread.
            self.request.settimeout(10)
            self.request = context.wrap_socket(self.request, server_side=True)
            target.connections += 1
            super().setup()

        def do_GET(self) -> None:
            names: Any = self.request.getpeercert()
            uris = [value for kind, value in names["subjectAltName"] if kind == "URI"]
            headers = {name.lower(): value for name, value in self.headers.items()}
            target.seen.append(Seen(self.path, headers, ",".join(uris), names["serialNumber"]))
            if target.released is not None:
                target.released.wait(60)
            self.send_response(target.status)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(target.body)))
            for name, value in target.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(target.body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with serving(_Server((target.address, target.port), Handler)):
        yield target


@contextlib.contextmanager
def raw_target(address: str, answer: bytes | None) -> Iterator[str]:
    """A TCP server at `address`:15092 that answers whatever comes with `answer`; None: with silence."""
    listening = socket.create_server((address, PORT))
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            if answer is None:
                kept.append(client)
                continue
            with client, contextlib.suppress(OSError):
                client.recv(1 << 16)
                client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield address
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for client in kept:
            client.close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A handshake that fails is what most tests are about."""
