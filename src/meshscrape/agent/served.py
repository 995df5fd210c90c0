"""Check whether Envoy serves the latest published certificate, to notice a failed reload."""

from __future__ import annotations

import asyncio
import logging
import time

from meshscrape.agent.credentials import CredentialRenewer
from meshscrape.errors import UnavailableError
from meshscrape.system.envoy_admin import EnvoyAdmin

logger = logging.getLogger(__name__)

# Envoy follows the directory within milliseconds; a loaded machine needs more time (seconds).
PATIENCE = 15.0
_FIRST_LOOK, _LONGEST_LOOK = 0.05, 10.0


class ServedCertificate:
    """Compare Envoy's certificate with the published one; `current` is None while unknown."""

    def __init__(self, admin: EnvoyAdmin, credentials: CredentialRenewer) -> None:
        self.current: bool | None = None
        self._admin = admin
        self._credentials = credentials

    async def follow(self) -> None:
        """Check after every publication, for ever; log if Envoy has not followed within `PATIENCE` s."""
        while True:
            issued = self._credentials.issued
            if issued is not None:
                await self._await_serial(issued.serial)
            await self._credentials.changed_from(issued)

    async def _await_serial(self, serial: int) -> None:
        since, pause, said = time.monotonic(), _FIRST_LOOK, False
        while not await self._serves(serial) and self._is_newest(serial):
            late = time.monotonic() - since > PATIENCE
            if late and self.current is False and not said:
                said = True
                logger.error("Envoy does not serve the certificate %x that was published", serial)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_LOOK, pause * 2)

    def _is_newest(self, serial: int) -> bool:
        issued = self._credentials.issued
        return issued is not None and issued.serial == serial

    async def _serves(self, serial: int) -> bool:
        """Return whether Envoy serves the certificate, or does not need one."""
        try:
            serials = await self._admin.serials()
        except UnavailableError:
            return False
        self.current = serial in serials if serials else None
        return not serials or serial in serials
