"""The CA's server certificate, which it issues and renews itself."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from meshscrape.ca.authority import Authority
from meshscrape.ca.storage import SERVER_CREDENTIALS
from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.spiffe.certificates import certificates_to_pem
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.spiffe.renewal import renew_at
from meshscrape.system.files import write_atomic

log = logging.getLogger(__name__)

SERVER_LIFETIME = timedelta(hours=24)
_LONGEST_SLEEP = 3600.0


class ServerCertificate:
    """The CA's own certificate and key, in a live `ssl.SSLContext`.

    Renewal loads the new pair into the same context. Later handshakes use it; open connections keep theirs,
    because OpenSSL copies the certificate into each connection at its start.
    """

    def __init__(self, authority: Authority, names: Sequence[str], directory: Path) -> None:
        """Prepare a certificate for `names` (DNS names and IP addresses), stored in `directory` (0600)."""
        self._authority = authority
        self._names = tuple(names)
        self._path = directory / SERVER_CREDENTIALS
        self.context = _context(authority)

    def renew(self, now: datetime) -> datetime:
        """Make and load a new pair; return when to renew next. Raise InputError if the CA has expired."""
        key = generate_key()
        leaf = self._authority.issue_own(key.public_key(), self._names, now, SERVER_LIFETIME)
        # Load the certificates above the leaf, too. Otherwise OpenSSL would build and verify the chain in
        # every handshake, which takes an eighth of the CA's CPU under a flood.
        above = self._authority.signer.intermediates or (self._authority.anchor,)
        chain = certificates_to_pem([leaf, *above])
        write_atomic(self._path, key_to_pem(key) + chain, 0o600)
        self.context.load_cert_chain(self._path)
        return renew_at(now, leaf.not_valid_after_utc, draw=0.5)

    async def keep(self, first: datetime, clock: Callable[[], datetime]) -> None:
        """Renew for ever, first at `first`. After a failure, log it and try again after a minute."""
        due = first
        while True:
            # Sleep at most an hour: after a suspend, the clock has moved on, but the sleep has not.
            await asyncio.sleep(min(max((due - clock()).total_seconds(), 1.0), _LONGEST_SLEEP))
            if clock() < due:
                continue
            try:
                due = self.renew(clock())
                log.info("server certificate renewed, next at %s", f"{due:%Y-%m-%dT%H:%M:%SZ}")
            except (MeshscrapeError, OSError) as error:
                log.error("server certificate not renewed: %s", error)
                due = clock() + timedelta(minutes=1)


def own_names(names: Sequence[str], host: str) -> tuple[str, ...]:
    """Return the names for the server's certificate: `names`, and the address unless it is a wildcard."""
    address = ip_address(host)
    own = [*names] if address.is_unspecified else [*names, str(address)]
    if not own:
        raise InputError(
            "the CA's certificate needs a name",
            where=host,
            remedy="give the names that callers use with --dns",
        )
    return tuple(dict.fromkeys(own))


def _context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=authority.bundle_pem.decode())
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would skip the check of the client's certificate.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    return context
