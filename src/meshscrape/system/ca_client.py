"""Ask a CA that speaks Istio's protocol (istiod, or `meshscrape ca`) for a certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain, count
from pathlib import Path
from typing import Any

from cryptography import x509
from google.protobuf.message import DecodeError
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from meshscrape.errors import InputError, UnauthenticatedError, UnavailableError
from meshscrape.istio.ca_protocol import (
    CREATE_CERTIFICATE,
    IstioCertificateRequest,
    IstioCertificateResponse,
)
from meshscrape.istio.host_port import parse_host_port
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE
from meshscrape.spiffe.bundles import load_bundle
from meshscrape.spiffe.certificates import load_certificates

_CHECK_CA = "check that the CA runs there"
# With these codes a CA refuses a request for good, so sending it again does not help.
_PERMANENT = (Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED, Status.OUT_OF_RANGE)
# Seconds for the first tries to connect, TLS included; each later try may take twice as long. A CA that is
# flooded serves the newest and the oldest connections first, so another try is better than a place in the
# middle.
_CONNECT_TRIES = (0.5, 0.5, 0.5, 0.5)
_CREDENTIALS = (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED)


async def create_certificate(
    address: str,
    root_pem: bytes,
    csr: bytes,
    ttl: timedelta,
    *,
    token: str | None,
    client_credentials: Path | None,
    deadline: float,
) -> tuple[list[bytes], bytes]:
    """Return the certificate for `csr` (PEM) from the CA at `address` (HOST:PORT), and the root bundle (PEM).

    The chain is leaf first, one PEM each, without the roots. The server's certificate must lead to a root of
    `root_pem` and name the host of `address`. `client_credentials` is a directory with `cert-chain.pem` and
    `key.pem`. When the CA does not accept them, the request is sent again with `token` and without them:
    servers refuse an expired client certificate in TLS, before they see a token. The whole call takes at most
    `deadline` seconds.

    Raises UnauthenticatedError when other credentials may be accepted, UnavailableError when a later try
    makes sense, and InputError when the CA will not grant the request or an argument cannot be used.
    """
    host, port = _host_and_port(address)
    request = IstioCertificateRequest(csr=csr.decode(), validity_duration=int(ttl.total_seconds()))
    try:
        async with asyncio.timeout(deadline):
            if client_credentials is not None:
                try:
                    context = _context(root_pem, client_credentials, address)
                    return _checked(await _call(host, port, context, request, {}, deadline), csr, address)
                except (UnauthenticatedError, _Disconnected, _UnusableCredentials):
                    if token is None:
                        raise
            metadata = {"authorization": f"Bearer {token}"} if token else {}
            context = _context(root_pem, None, address)
            return _checked(await _call(host, port, context, request, metadata, deadline), csr, address)
    except TimeoutError:
        raise UnavailableError(
            f"the CA did not answer within {deadline:g} s", where=address, remedy=_CHECK_CA
        ) from None


class _Disconnected(UnavailableError):
    """The connection ended before an answer. In TLS 1.3 a refused client certificate looks the same."""


class _UnusableCredentials(InputError):
    """The client credentials are missing, or their key does not match."""


async def _call(
    host: str, port: int, context: ssl.SSLContext, request: Any, metadata: dict[str, str], deadline: float
) -> Any:
    where = f"{host}:{port}"
    channel = Channel(host, port, ssl=context)
    method = UnaryUnaryMethod[Any, Any](
        channel, CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse
    )
    try:
        await _connect(channel)
        return await method(request, timeout=deadline, metadata=metadata)
    except TimeoutError:
        # This is grpclib's own deadline. The handlers below must not catch it, and TimeoutError is an
        # OSError.
        raise
    except DecodeError:
        raise UnavailableError("the CA's answer is malformed", where=where) from None
    except GRPCError as error:
        raise _status_error(error, where) from None
    except ssl.SSLCertVerificationError as error:
        raise UnavailableError(
            f"the CA's certificate is not accepted: {error.verify_message}",
            where=where,
            remedy="check CA_ADDR and the CA's root certificate",
        ) from None
    except (
        StreamTerminatedError,
        ProtocolError,
        ssl.SSLError,
        ConnectionResetError,
        AssertionError,
    ) as error:
        raise _Disconnected(
            f"the CA closed the connection ({type(error).__name__})", where=where, remedy=_CHECK_CA
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"the CA cannot be reached: {error.strerror or error}", where=where, remedy=_CHECK_CA
        ) from None
    finally:
        channel.close()


async def _connect(channel: Channel) -> None:
    """Connect, and try again until it works: the caller sets the deadline."""
    for seconds in chain(_CONNECT_TRIES, (2.0**power for power in count())):
        try:
            async with asyncio.timeout(seconds) as limit:
                # A call of grpclib begins with this method.
                await channel.__connect__()
                return
        except TimeoutError:
            if not limit.expired():
                # The operating system gave up connecting before this deadline.
                raise


def _status_error(error: GRPCError, where: str) -> Exception:
    said = f"{error.status.name}: {(error.message or 'no reason given')[:200]!a}"
    if error.status in _CREDENTIALS:
        return UnauthenticatedError(f"the CA does not accept the credentials ({said})", where=where)
    if error.status in _PERMANENT:
        return InputError(f"the CA refuses the request ({said})", where=where)
    return UnavailableError(f"the CA cannot answer now ({said})", where=where, remedy="try again later")


def _checked(response: Any, csr: bytes, where: str) -> tuple[list[bytes], bytes]:
    """Return the response's chain and bundle; raise unless the leaf certifies the key of `csr`."""
    pems: Sequence[str] = response.cert_chain
    if len(pems) < 2:
        raise UnavailableError("the CA's answer is not a chain and a root bundle", where=where)
    *issued, bundle = (element.encode() for element in pems)
    try:
        leaf = load_certificates(issued[0], where)[0]
        load_bundle(bundle, where)
    except InputError as error:
        raise UnavailableError(f"the CA's answer cannot be used: {error.what}", where=where) from None
    if leaf.public_key() != x509.load_pem_x509_csr(csr).public_key():
        raise UnavailableError("the CA's answer certifies another key", where=where)
    return issued, bundle


def _context(root_pem: bytes, credentials: Path | None, where: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=root_pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise InputError("the CA's root certificate is not PEM", where=where) from None
    if credentials is not None:
        try:
            context.load_cert_chain(credentials / CERTIFICATE_CHAIN_FILE, credentials / PRIVATE_KEY_FILE)
        except (OSError, ssl.SSLError) as error:
            raise _UnusableCredentials(
                f"the client credentials cannot be used: {error.strerror or error}", where=str(credentials)
            ) from None
    return context


def _host_and_port(address: str) -> tuple[str, int]:
    host, port = parse_host_port(address, example="istiod:15012")
    try:
        host.encode("idna")
    except UnicodeError:
        raise InputError(f"{host!a} is not a host", where=address, remedy="write a DNS name") from None
    return host, port
