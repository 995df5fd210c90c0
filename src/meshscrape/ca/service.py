"""`CreateCertificate` as a gRPC method: authenticate, check the request, sign, log the certificate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from meshscrape.ca.authenticators import Caller, TokenAuthenticator, certificate_caller
from meshscrape.ca.authority import Authority
from meshscrape.ca.bounded_logs import BoundedLog
from meshscrape.ca.connections import Connection
from meshscrape.ca.grpc_adapter import receive, transport_of
from meshscrape.ca.metrics import Metrics
from meshscrape.ca.turns import Turns
from meshscrape.errors import InputError, UnauthenticatedError
from meshscrape.istio.ca_protocol import (
    CREATE_CERTIFICATE,
    IstioCertificateRequest,
    IstioCertificateResponse,
)
from meshscrape.spiffe.certificates import certificates_to_pem, load_csr
from meshscrape.spiffe.keys import check_public_key

log = logging.getLogger(__name__)

# A request with an RSA key of 8192 bits and metadata needs 4 kB.
MAX_REQUEST_BYTES = 65536
# How long a request may take to arrive.
REQUEST_SECONDS = 10.0
_PREFIX_BYTES = 5


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """The default and the maximum lifetime of workload certificates."""

    default: timedelta = timedelta(hours=24)
    longest: timedelta = timedelta(hours=24)

    def granted(self, seconds: int) -> timedelta:
        """Return the lifetime for a request of `seconds` (0 or less: the default)."""
        if seconds <= 0:
            return min(self.default, self.longest)
        return timedelta(seconds=min(seconds, int(self.longest.total_seconds())))


class CertificateService:
    """The CA's one method. A bearer token authenticates the caller; without one the client certificate does.

    `authority` may be replaced while it serves. A running request keeps the authority that it began with.
    """

    def __init__(
        self,
        authority: Authority,
        tokens: TokenAuthenticator,
        lifetimes: Lifetimes,
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        self.authority = authority
        self._tokens = tokens
        self._lifetimes = lifetimes
        self._metrics = metrics
        self._now = now
        self._refusals = BoundedLog()
        self._turns = Turns()

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods in the form that grpclib's server expects."""
        handler = Handler(
            self._create_certificate,
            Cardinality.UNARY_UNARY,
            IstioCertificateRequest,
            IstioCertificateResponse,
        )
        return {CREATE_CERTIFICATE: handler}

    async def _create_certificate(self, stream: Stream[Any, Any]) -> None:
        try:
            response = await self._answer(stream)
        except UnauthenticatedError as error:
            raise self._refusal(stream, Status.UNAUTHENTICATED, "unauthenticated", str(error)) from None
        except _BadRequest as error:
            raise self._refusal(stream, Status.INVALID_ARGUMENT, "invalid_argument", str(error)) from None
        except InputError as error:
            log.error("cannot sign: %s", error)
            raise self._refusal(stream, Status.UNAVAILABLE, "unavailable", "the CA cannot sign now") from None
        except Exception:
            self._metrics.request("error")
            log.exception("a request failed")
            raise GRPCError(Status.INTERNAL, "internal error") from None
        self._metrics.request("ok")
        await stream.send_message(response)

    async def _answer(self, stream: Stream[Any, Any]) -> Any:
        caller = self._caller(stream)
        connection = transport_of(stream)
        if isinstance(connection, Connection):
            connection.prove(str(caller.spiffe_id))
        request = await _receive(stream)
        await self._turns.turn(str(caller.spiffe_id))
        try:
            csr = load_csr(request.csr.encode())
            public_key = check_public_key(csr.public_key(), "CSR")
        except InputError as error:
            raise _BadRequest(str(error)) from None
        now, authority = self._now(), self.authority
        lifetime = self._lifetimes.granted(request.validity_duration)
        leaf = authority.issue(public_key, caller.spiffe_id, now, lifetime)
        self._metrics.issued += 1
        if isinstance(connection, Connection):
            connection.renew_budget()
        log.info(
            "issued %s serial=%x until=%s by=%s",
            caller.spiffe_id,
            leaf.serial_number,
            leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
            caller.proof,
        )
        chain = [certificates_to_pem([leaf]), *authority.intermediates_pem, authority.bundle_pem]
        return IstioCertificateResponse(cert_chain=[pem.decode() for pem in chain])

    def _caller(self, stream: Stream[Any, Any]) -> Caller:
        metadata = stream.metadata
        headers = [str(value) for value in metadata.getall("authorization", [])] if metadata else []
        if len(headers) > 1:
            raise UnauthenticatedError("more than one authorization was sent")
        if headers:
            scheme, _, token = headers[0].partition(" ")
            if scheme.lower() != "bearer":
                raise UnauthenticatedError("the authorization is not a bearer token")
            return self._tokens.caller(token.strip())
        der = _client_certificate(stream)
        if der is None:
            raise UnauthenticatedError("neither a token nor a client certificate was sent")
        return certificate_caller(der, self.authority.trust_domain, self._now())

    def identify(self, der: bytes) -> str:
        """Return the owner of a client certificate, empty if it is not a workload of this mesh."""
        try:
            return str(certificate_caller(der, self.authority.trust_domain, self._now()).spiffe_id)
        except UnauthenticatedError:
            return ""

    def _refusal(self, stream: Stream[Any, Any], status: Status, result: str, reason: str) -> GRPCError:
        self._metrics.request(result)
        peer = stream.peer.addr() or ("?", 0)
        self._refusals.say(self._now(), f"refused {peer[0]}: {status.name} ({reason})")
        return GRPCError(status, reason)


class _BadRequest(Exception):
    """The request is malformed or too large; the text is sent to the caller."""


async def _receive(stream: Stream[Any, Any]) -> Any:
    """Return the request message, within limits on size and time.

    grpclib's own `recv_message` waits for as many bytes as the caller announces, up to 4 GiB. So this reads
    the length first (gRPC over HTTP/2, "Length-Prefixed-Message").
    """
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            prefix = await receive(stream, _PREFIX_BYTES)
            if len(prefix) != _PREFIX_BYTES or prefix[0] != 0:
                raise _BadRequest("the message is missing or compressed")
            length = int.from_bytes(prefix[1:], "big")
            if length > MAX_REQUEST_BYTES:
                raise _BadRequest(f"the message is longer than {MAX_REQUEST_BYTES} bytes")
            return IstioCertificateRequest.FromString(await receive(stream, length))
    except TimeoutError:
        raise _BadRequest(f"the message did not arrive within {REQUEST_SECONDS:.0f} s") from None
    except (AssertionError, DecodeError):
        raise _BadRequest("the message is malformed") from None


def _client_certificate(stream: Stream[Any, Any]) -> bytes | None:
    # grpclib's Peer.cert() returns only a digest of the certificate.
    tls = transport_of(stream).get_extra_info("ssl_object")
    der: bytes | None = tls.getpeercert(binary_form=True) if tls else None
    return der
