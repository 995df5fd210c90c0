"""Send one HTTP request with a workload's certificate, and verify the server's SPIFFE ID."""

from __future__ import annotations

import contextlib
import math
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.spiffe.certificates import identity_of
from meshscrape.system.http.client import (
    FetchedResponse,
    FetchLimits,
    fetch_stream,
    sent_headers,
    sent_target,
    unasked,
)
from meshscrape.system.mutual_tls import client_context

_WRITE_URL = "write it as https://NAME.NAMESPACE:PORT/PATH"


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
    """The request to send. The host of `url` is the Host header; `headers` replace the default headers."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


def check_url(url: str) -> tuple[bool, str, int]:
    """Return whether the URL is https, its host and its port. Raise InputError if it is not a usable URL."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"this is not a URL ({error})", where=url, remedy=_WRITE_URL) from error
    try:
        port = parts.port
    except ValueError as error:
        raise InputError("this is not a port number", where=url, remedy="use 1 to 65535") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("this is not an http:// or https:// URL with a host", where=url, remedy=_WRITE_URL)
    secure = parts.scheme == "https"
    return secure, parts.hostname, port or (443 if secure else 80)


def endpoint_of(url: str, document: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint of `url`, whose host is an address or a workload's NAME or NAME.NAMESPACE.

    For https, the mesh's status document gives the expected SPIFFE ID of the address. Raises InputError if no
    workload of the mesh is there, because no identity could be verified.
    """
    secure, host, port = check_url(url)
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


@contextlib.asynccontextmanager
async def answered(
    endpoint: Endpoint,
    request: WorkloadHttpRequest,
    credentials: Path,
    *,
    patience: float,
    tell: Callable[[str], None],
) -> AsyncIterator[FetchedResponse]:
    """Connect, verify the server and send the request; yield the answer, whose body is not decoded.

    The server's certificate must chain to the trust bundle in `credentials` and contain exactly the expected
    SPIFFE ID. The request is sent only after this check. `patience` limits each wait (seconds). Raises
    RefusedError if TLS fails, UnavailableError without an answer.
    """
    where = f"{endpoint.address}:{endpoint.port}"
    limits = FetchLimits(patience, patience, math.inf, body_bytes=sys.maxsize)
    tls = client_context(credentials) if endpoint.identity else None

    def admit(connection: ssl.SSLObject) -> None:
        identity = str(identity_of(x509.load_der_x509_certificate(connection.getpeercert(True) or b"")))
        tell(f"* {connection.version()}, server is {identity}")
        if identity != endpoint.identity:
            raise RefusedError(
                f"{identity} answers, {endpoint.identity} was expected; nothing was sent",
                where=where,
                remedy="find out who listens there",
            )
        told()

    def told() -> None:
        tell(f"> {request.method} {sent_target(request.url)} HTTP/1.1")
        for name, value in sent_headers(request.url, request.headers, request.body):
            tell(f"> {name}: {value}")

    if tls is None:
        told()
    asked = fetch_stream(
        request.url,
        address=(endpoint.address, endpoint.port),
        headers=request.headers,
        body=request.body,
        limits=limits,
        tls=tls,
        admit=admit,
        method=request.method,
        decode=False,
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            answer = await stack.enter_async_context(asked)
        except UnavailableError as error:
            if tls is not None:
                _raise_refusal(error, where)
                if isinstance(error.__cause__, ConnectionError | ssl.SSLEOFError):
                    await _raise_alert(endpoint, request.url, tls, patience)
            elif _hung_up(error):
                hint = "if this port takes mutual TLS, write https://"
                raise UnavailableError(error.what, where=where, remedy=hint) from error
            raise
        yield answer


def _hung_up(error: UnavailableError) -> bool:
    """Return whether a server accepted the connection and then did not speak HTTP, as a TLS port does."""
    return not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, _CUT_OFF)


_CUT_OFF = (ConnectionResetError, BrokenPipeError)


async def _raise_alert(endpoint: Endpoint, url: str, tls: ssl.SSLContext, patience: float) -> None:
    """Connect again to a server that reset the connection, to learn its reason.

    In TLS 1.3 a server refuses after the client's handshake. If the request crosses the refusal, the server
    answers with a reset, which can overtake the alert. A client that sends nothing always receives the alert.

    Raises RefusedError with a reason.
    """
    wait = min(patience, 2.0)
    try:
        await unasked(
            url, address=(endpoint.address, endpoint.port), tls=tls, limits=FetchLimits(wait, wait, 2 * wait)
        )
    except UnavailableError as error:
        _raise_refusal(error, f"{endpoint.address}:{endpoint.port}")


def _raise_refusal(error: UnavailableError, where: str) -> None:
    """Raise RefusedError if TLS failed, whichever side refused."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        what = f"the server's certificate is not trusted: {cause.verify_message}"
    elif isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        reason = (cause.reason or str(cause)).lower()
        alert = reason.partition("_alert_")[2].replace("_", " ")
        what = f"the server refuses with TLS alert {alert!r}" if alert else f"TLS fails: {reason}"
    else:
        return
    raise RefusedError(what, where=where) from cause
