"""Check whether the proxy's Envoy has accepted its credentials."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.spiffe.certificates import load_certificates
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.credentials import read_credential_files
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.followed import Problem

# Envoy reads its files within milliseconds of being live; a loaded machine needs more time (seconds).
PATIENCE = 5.0
_LOOK = 0.1
# The text before the reason in Envoy's log.
_REJECTED = "update rejected:"


class PresentedCertificates:
    """Compare Envoy's certificates with the credential directories, by trust domain.

    Envoy opens the files itself. It refuses a key that does not match the certificate. It may also fail to
    open files that this process can open, such as files of another mount namespace below /proc.
    """

    def __init__(
        self, admin: EnvoyAdmin, directories: Mapping[str, Path], last_words: Callable[[], str]
    ) -> None:
        """Prepare to compare. `last_words` returns Envoy's last output, for the reason."""
        self._admin = admin
        self._directories = directories
        self._last_words = last_words
        self._problem = Problem("scrapes fail because a certificate is missing")

    async def check(self, identities: Iterable[SpiffeId], patience: float = PATIENCE) -> None:
        """Wait until Envoy has a certificate for the trust domain of each of these identities.

        Raises UnavailableError if it has not accepted a directory within `patience` seconds.
        """
        wanted = {identity.trust_domain for identity in identities}
        deadline = time.monotonic() + patience
        while missing := await self._missing(wanted):
            if time.monotonic() > deadline:
                raise self._not_accepted(missing)
            await asyncio.sleep(_LOOK)

    async def follow(self, identities: Callable[[], Iterable[SpiffeId]]) -> None:
        """Check for ever, and log if Envoy lacks a certificate for one of the current identities."""
        while True:
            await asyncio.sleep(PATIENCE)
            try:
                await self.check(identities())
                self._problem.clear()
            except MeshscrapeError as error:
                self._problem.note(error)

    async def _missing(self, trust_domains: set[str]) -> str:
        """Return a trust domain whose certificate Envoy does not have, or an empty text."""
        if not trust_domains:
            return ""
        try:
            present = await self._admin.serials()
        except UnavailableError:
            present = set()
        return next((name for name in sorted(trust_domains) if self._serial(name) not in present), "")

    def _serial(self, trust_domain: str) -> int:
        directory = self._directories[trust_domain]
        chain = read_credential_files(directory, key=False, roots=False).chain
        return load_certificates(chain, str(directory))[0].serial_number

    def _not_accepted(self, trust_domain: str) -> UnavailableError:
        said = next((line for line in self._last_words().splitlines()[::-1] if _REJECTED in line), "")
        reason = f": {said.rpartition(_REJECTED)[2].strip()}" if said else ""
        return UnavailableError(
            f"Envoy does not accept the credentials for the trust domain {trust_domain}{reason}",
            where=str(self._directories[trust_domain]),
            remedy="check that the key belongs to the certificate, and that Envoy itself can open the files",
        )
