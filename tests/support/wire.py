"""HTTP byte by byte: requests that no client library would send."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, ResponseReceived, StreamReset

TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class Wire:
    """A connection, kept open between requests; `context` None is plain TCP."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext | None = None) -> None:
        raw = socket.create_connection((address, port), TIMEOUT)
        try:
            self.socket = context.wrap_socket(raw) if context else raw
        except BaseException:
            raw.close()
            raise

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, request: bytes, *, head: bool = False) -> Answer:
        """Send these bytes and read one answer."""
        self.socket.sendall(request)
        response = http.client.HTTPResponse(self.socket, method="HEAD" if head else "GET")
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def get(self, target: str, method: str = "GET", **headers: str) -> Answer:
        """A request with this target, spelled exactly so."""
        return self.send(request_bytes(target, method, **headers), head=method == "HEAD")


def request_bytes(target: str, method: str = "GET", **headers: str) -> bytes:
    """The bytes of a request without a body; underscores in header names become dashes."""
    lines = [f"{method} {target} HTTP/1.1", "host: pod"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def ask(
    address: str, port: int, target: str, context: ssl.SSLContext | None = None, method: str = "GET"
) -> Answer:
    """One request on a connection of its own."""
    with Wire(address, port, context) as wire:
        return wire.get(target, method)


def alert(address: str, port: int, context: ssl.SSLContext, within: float = TIMEOUT) -> str:
    """The TLS alert with which the server refuses this client, or "" when none comes `within` seconds.

    With TLS 1.3 the refusal comes after the client's side of the handshake is done, so this reads once. It
    sends nothing, because an answer to that (a reset) could overtake the alert.
    """
    try:
        with Wire(address, port, context) as wire:
            wire.socket.settimeout(within)
            wire.socket.recv(1)
    except ssl.SSLError as error:
        return error.reason or str(error)
    except TimeoutError:
        return ""
    return ""


def ask_http2(
    address: str,
    port: int,
    context: ssl.SSLContext,
    pseudo: dict[str, str],
    repeated: Sequence[tuple[str, str]] = (),
    **headers: str,
) -> int | str:
    """Make one HTTP/2 stream with exactly these pseudo-headers; return its status, or how it was refused.

    `context` must offer `h2` alone. `repeated` headers may have equal names. Nothing of what is sent is
    checked here: hostile requests are the point.
    """
    config = H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    with Wire(address, port, context) as wire:
        protocol = H2Connection(config)
        protocol.initiate_connection()
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        protocol.send_headers(1, [*pseudo.items(), *fields, *repeated], end_stream=True)
        wire.socket.sendall(protocol.data_to_send())
        while data := wire.socket.recv(65536):
            for event in protocol.receive_data(data):
                if isinstance(event, ResponseReceived):
                    return int(dict(event.headers or [])[b":status"])
                if isinstance(event, StreamReset | ConnectionTerminated):
                    return type(event).__name__
    return "closed"
