"""The running CA's roots: what it signs and serves with, changed while it runs when a rotation says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from meshscrape.ca.authority import Authority
from meshscrape.ca.metrics import Metrics
from meshscrape.ca.roots import record_state
from meshscrape.ca.server import BoundedServer, ServerCertificate
from meshscrape.ca.service import CertificateService
from meshscrape.errors import MeshscrapeError
from meshscrape.istio.names import ROOTS_FILE
from meshscrape.spiffe.certificates import fingerprint
from meshscrape.system.clock import utcnow
from meshscrape.system.files import write_atomic

log = logging.getLogger(__name__)

LOOK = 0.25
_STOP_SECONDS = 1.0


class RootFollower:
    """Serves with an authority, and with the next one as soon as the rotation's record names it.

    The new bundle is trusted and handed out before its file says so: who has seen the file gets it. A record
    or a root that cannot be used changes nothing, is logged once, and is tried again.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        service: CertificateService,
        metrics: Metrics,
        reopen: Callable[[], Authority],
        seen: object,
    ) -> None:
        """`seen` is `record_state` from before the service's authority was opened: no change is missed."""
        self._directory = directory
        self._names = names
        self._service = service
        self._metrics = metrics
        self._reopen = reopen
        self._seen = seen
        self._server = BoundedServer([service])
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._problem = ""

    async def start(self, listening: socket.socket, authority: Authority) -> None:
        """Serve on a bound socket, which is closed with `stop`; publishes the bundle."""
        self._listening = listening
        await self._use(authority)

    async def stop(self) -> None:
        """Stop serving completely."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._listening is not None:
            self._listening.close()
        if self._accepting is not None:
            self._accepting.close()
            self._server.end_connections()
            # From Python 3.12 on this waits for connections that are still in their handshake, too.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._accepting.wait_closed()

    async def follow(self) -> None:
        """Look at the record for ever."""
        while True:
            await asyncio.sleep(LOOK)
            state = record_state(self._directory)
            if state == self._seen:
                continue
            try:
                await self._use(self._reopen())
            except (MeshscrapeError, OSError) as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    log.error("the roots stay as they were: %s", error)
                continue
            self._seen, self._problem = state, ""

    async def _use(self, authority: Authority) -> None:
        before = self._service.authority
        certificate = ServerCertificate(authority, self._names, self._directory)
        due = certificate.renew(utcnow())
        if self._listening is None:
            raise RuntimeError("there is no socket to serve on")
        replaced = self._accepting
        # The sockets share one queue: a connection that waits in it is not lost.
        self._accepting = await self._server.listen(self._listening.dup(), certificate.context)
        if replaced is not None:
            replaced.close()
        if self._keeper is not None:
            self._keeper.cancel()
        self._keeper = asyncio.create_task(certificate.keep(due, utcnow), name="server certificate")
        self._service.authority = authority
        self._metrics.roots(authority.not_after, len(authority.signer.roots))
        write_atomic(self._directory / ROOTS_FILE, authority.bundle_pem, 0o644)
        if set(before.signer.roots) - set(authority.signer.roots):
            # Who proved itself before did so to roots of which one is trusted no more.
            self._server.end_connections()
        if before.signer.roots != authority.signer.roots:
            log.info(
                "roots changed: signing with %s, trusting %s",
                fingerprint(authority.anchor)[:16],
                ", ".join(fingerprint(root)[:16] for root in authority.signer.roots),
            )
