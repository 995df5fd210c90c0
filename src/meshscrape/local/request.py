"""Send one HTTP request with a workload's certificate, and verify the server's SPIFFE ID."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
from cryptography import x509

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.spiffe.certificates import identity_of

_CHUNK = 64 * 1024
_ESCAPE = "write only ASCII, without spaces: %20 for a space, %C3%A9 for é"


class RefusedError(MeshscrapeError):
    """TLS failed: the server refused the client, or the client refuses the server."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect, and the server's expected SPIFFE ID (empty for plain HTTP)."""

    address: str
    port: int
    identity: str


@dataclass(frozen=True, slots=True)
class WorkloadHttpRequest:
    """The request to send. `target` is path and query; `headers` replace the default headers."""

    method: str
    authority: str
    target: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """The response's head, and its body as it arrives."""

    status: int
    reason: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: Iterator[bytes]


def endpoint_of(url: str, document: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint of `url`, whose host is an address or a workload's NAME or NAME.NAMESPACE.

    For https, the mesh's status document gives the expected SPIFFE ID of the address. InputError if no
    workload of the mesh is there, because no identity could be verified.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"this is not a URL ({error})", where=url) from error
    try:
        port = parts.port
    except ValueError as error:
        raise InputError("this is not a port number", where=url, remedy="use 1 to 65535") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("this is not an http:// or https:// URL with a host", where=url)
    secure, host = parts.scheme == "https", parts.hostname
    port = port or (443 if secure else 80)
    for workload in document["workloads"]:
        names = (workload["name"], f"{workload['name']}.{workload['namespace']}")
        address = workload["address"] if host in names else host
        if host in names or host in workload["addresses"]:
            return Endpoint(address, port, workload["spiffeId"] if secure else "")
    if not secure:
        return Endpoint(host, port, "")
    known = ", ".join(f"{w['address']} ({w['name']}.{w['namespace']})" for w in document["workloads"])
    raise InputError(
        f"no workload of the mesh is at {host}", where=url, remedy=f"the workloads are: {known or 'none'}"
    )


def send(
    endpoint: Endpoint,
    request: WorkloadHttpRequest,
    credentials: Path,
    *,
    timeout: float,
    tell: Callable[[str], None],
) -> tuple[Answer, socket.socket]:
    """Connect, verify the server and send the request. The caller reads the body and closes the socket.

    The server's certificate must chain to the trust bundle in `credentials` and contain exactly the expected
    SPIFFE ID; only then the request is sent. `timeout` limits each wait (seconds). RefusedError if TLS
    fails, UnavailableError without an answer.
    """
    where = f"{endpoint.address}:{endpoint.port}"
    stream = _connected(endpoint, credentials, timeout, tell)
    try:
        return _exchange(stream, request, where, tell), stream
    except UnavailableError as error:
        if endpoint.identity and isinstance(error.__cause__, ConnectionError | ssl.SSLEOFError):
            _raise_alert(endpoint, credentials, timeout)
        raise
    except BaseException:
        stream.close()
        raise


def _connected(
    endpoint: Endpoint, credentials: Path, timeout: float, tell: Callable[[str], None]
) -> socket.socket:
    try:
        stream = socket.create_connection((endpoint.address, endpoint.port), timeout)
    except OSError as error:
        where = f"{endpoint.address}:{endpoint.port}"
        raise UnavailableError(f"cannot connect: {error.strerror or error}", where=where) from error
    try:
        return _secured(stream, endpoint, credentials, tell) if endpoint.identity else stream
    except BaseException:
        stream.close()
        raise


def _raise_alert(endpoint: Endpoint, credentials: Path, timeout: float) -> None:
    """Connect again to a server that reset the connection, to learn its reason; RefusedError with a reason.

    In TLS 1.3 a server refuses after the client's handshake. If the request crosses the refusal, the server
    answers with a reset, which can overtake the alert. A client that sends nothing always receives the alert.
    """
    with _connected(endpoint, credentials, min(timeout, 2.0), lambda line: None) as stream:
        try:
            stream.recv(1)
        except TimeoutError:
            return
        except OSError as error:
            refusal = _refusal(error, f"{endpoint.address}:{endpoint.port}")
            if isinstance(refusal, RefusedError):
                raise refusal from error


def _secured(
    stream: socket.socket, endpoint: Endpoint, credentials: Path, tell: Callable[[str], None]
) -> ssl.SSLSocket:
    where = f"{endpoint.address}:{endpoint.port}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A workload certificate has no host name. The SPIFFE ID is compared below instead.
    context.check_hostname = False
    try:
        context.load_verify_locations(str(credentials / ROOTS_FILE))
        context.load_cert_chain(
            str(credentials / CERTIFICATE_CHAIN_FILE), str(credentials / PRIVATE_KEY_FILE)
        )
    except OSError as error:
        raise InputError(
            f"the credentials are unusable: {error.strerror or error}", where=str(credentials)
        ) from error
    try:
        secured = context.wrap_socket(stream)
    except OSError as error:
        raise _refusal(error, where) from error
    seen = str(identity_of(x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")))
    tell(f"* {secured.version()}, server is {seen}")
    if seen != endpoint.identity:
        secured.close()
        raise RefusedError(
            f"the server is {seen}, expected {endpoint.identity}; nothing was sent",
            where=where,
            remedy="check which process listens there",
        )
    return secured


def _exchange(
    stream: socket.socket, request: WorkloadHttpRequest, where: str, tell: Callable[[str], None]
) -> Answer:
    connection = h11.Connection(h11.CLIENT)
    given = {name.lower() for name, _ in request.headers}
    added = [("Host", request.authority), ("Accept", "*/*"), ("Connection", "close")]
    if request.body:
        added.append(("Content-Length", str(len(request.body))))
    headers = [*(each for each in added if each[0].lower() not in given), *request.headers]
    try:
        data = (
            connection.send(h11.Request(method=request.method, target=request.target, headers=headers)) or b""
        )
        if request.body:
            data += connection.send(h11.Data(data=request.body)) or b""
        data += connection.send(h11.EndOfMessage()) or b""
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        raise InputError(f"the request is invalid: {error}", remedy=_ESCAPE) from error
    for line in (f"{request.method} {request.target} HTTP/1.1", *(f"{n}: {v}" for n, v in headers)):
        tell(f"> {line}")
    try:
        stream.sendall(data)
    except OSError as error:
        raise _refusal(error, where) from error
    head = _event(connection, stream, where)
    while isinstance(head, h11.InformationalResponse):
        head = _event(connection, stream, where)
    if not isinstance(head, h11.Response):
        raise UnavailableError("closed the connection without an answer", where=where)
    return Answer(
        head.status_code,
        head.reason.decode("latin-1"),
        head.http_version.decode("latin-1"),
        tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()),
        _body(connection, stream, where),
    )


def _body(connection: h11.Connection, stream: socket.socket, where: str) -> Iterator[bytes]:
    while isinstance(event := _event(connection, stream, where), h11.Data):
        yield bytes(event.data)


def _event(connection: h11.Connection, stream: socket.socket, where: str) -> Any:
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            data = stream.recv(_CHUNK)
            if not data and connection.their_state is h11.SEND_RESPONSE:
                raise UnavailableError("closed the connection without an answer", where=where)
            connection.receive_data(data)
    except h11.RemoteProtocolError as error:
        raise UnavailableError(f"did not answer in HTTP/1.1 ({error})", where=where) from error
    except OSError as error:
        # In TLS 1.3 a server refuses a client certificate after the handshake, instead of answering.
        raise _refusal(error, where) from error
    return event


def _refusal(error: OSError, where: str) -> MeshscrapeError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return RefusedError(f"the server's certificate is not trusted: {error.verify_message}", where=where)
    if isinstance(error, ssl.SSLEOFError):
        return UnavailableError("the connection was closed in the middle of TLS", where=where)
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower()
        if "_alert_" in reason:
            alert = reason.partition("_alert_")[2].replace("_", " ")
            return RefusedError(f"the server refuses with TLS alert {alert!r}", where=where)
        return RefusedError(f"TLS fails: {reason.replace('_', ' ')}", where=where)
    if isinstance(error, TimeoutError):
        return UnavailableError("no answer in time", where=where)
    return UnavailableError(f"the connection broke: {error.strerror or error}", where=where)
