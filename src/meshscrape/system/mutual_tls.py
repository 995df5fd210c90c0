"""The client's side of mutual TLS with a server that is known by its SPIFFE ID."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from meshscrape.errors import InputError, UnauthenticatedError
from meshscrape.spiffe.certificates import identity_of
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.credentials import layout_of


def client_context(credentials: Path) -> ssl.SSLContext:
    """Return a context that presents the certificate in a directory of credentials and trusts its roots.

    The context does not check which SPIFFE ID answers; `admit_only` does. Raises InputError for credentials
    that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A workload certificate has no host name: the SPIFFE ID is compared instead.
    context.check_hostname = False
    layout = layout_of(credentials)
    try:
        context.load_verify_locations(str(credentials / layout.roots))
        context.load_cert_chain(str(credentials / layout.chain), str(credentials / layout.key))
    except OSError as error:
        raise InputError(
            f"the credentials are unusable: {error.strerror or error}", where=str(credentials)
        ) from error
    return context


def admit_only(expected: SpiffeId, where: str) -> Callable[[ssl.SSLObject], None]:
    """Return a check for `fetch_stream`: raise UnauthenticatedError if another SPIFFE ID answers."""

    def admit(connection: ssl.SSLObject) -> None:
        identity = identity_of(x509.load_der_x509_certificate(connection.getpeercert(True) or b""))
        if identity != expected:
            raise UnauthenticatedError(
                f"{identity} answers, {expected} was expected; nothing was sent",
                where=where,
                remedy="find out who listens there",
            )

    return admit
