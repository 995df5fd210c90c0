"""Change the running CA's roots when a rotation changes them on disk."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from meshscrape.ca.admission import Limits
from meshscrape.ca.authority import Authority
from meshscrape.ca.grpc_adapter import GrpcServer
from meshscrape.ca.metrics import Metrics
from meshscrape.ca.roots import record_state
from meshscrape.ca.server import BoundedServer, limits_of_process
from meshscrape.ca.server_certificate import ServerCertificate
from meshscrape.ca.service import CertificateService
from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.istio.names import ROOTS_FILE
from meshscrape.spiffe.certificates import fingerprint
from meshscrape.system.clock import utcnow
from meshscrape.system.files import write_atomic
from meshscrape.system.followed import Problem, Stamp
from meshscrape.system.tasks import Background

log = logging.getLogger(__name__)

LOOK = 0.25


class RootFollower:
    """Serve with an authority, and change to another as soon as the rotation's record names it.

    The CA trusts and hands out a new bundle before it writes root-cert.pem, so a client that has read the new
    file always gets the new bundle. An unusable record or root changes nothing. It is logged once, and read
    again.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        service: CertificateService,
        metrics: Metrics,
        reopen: Callable[[], Authority],
        state: Stamp | None,
        limits: Limits,
    ) -> None:
        """Prepare to serve.

        `state` must be the `record_state` from before the service's authority was opened. Otherwise a change
        in between would be missed.
        """
        self._directory = directory
        self._names = names
        self._service = service
        self._metrics = metrics
        self._reopen = reopen
        self._seen = state
        protocols = GrpcServer([service])
        bounds = limits_of_process(limits)
        self._server = BoundedServer(protocols.protocol, service.identify, metrics, bounds)
        self._tasks: Background | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._problem = Problem("the roots stay as they were", log)

    def start(self, listening: socket.socket, authority: Authority, tasks: Background) -> None:
        """Serve on a bound socket, which `stop` closes, and publish the bundle.

        If one of the background `tasks` ends, the CA ends.
        """
        self._tasks = tasks
        self._use(authority)
        self._server.listen(listening)
        tasks.start(self._server.sweep, "keeping the bounds on connections")

    def stop(self) -> None:
        """Stop serving completely."""
        if self._keeper is not None:
            self._keeper.cancel()
        self._server.stop()

    async def follow(self) -> None:
        """Watch the record and apply its changes; never return."""
        while True:
            await asyncio.sleep(LOOK)
            state = record_state(self._directory)
            if state == self._seen:
                continue
            try:
                self._use(self._reopen())
            except MeshscrapeError as error:
                self._problem.note(error)
            except OSError as error:
                self._problem.note(UnavailableError(f"a system call failed: {error.strerror or error}"))
            else:
                self._seen = state
                self._problem.clear()

    def _use(self, authority: Authority) -> None:
        before = self._service.authority
        certificate = ServerCertificate(authority, self._names, self._directory)
        due = certificate.renew(utcnow())
        self._server.context = certificate.context
        if self._keeper is not None:
            self._keeper.cancel()
        if self._tasks is not None:
            self._keeper = self._tasks.start(
                partial(certificate.keep, due, utcnow), "renewing the CA's certificate"
            )
        self._service.authority = authority
        self._metrics.roots(authority.not_after, len(authority.signer.roots))
        if set(before.signer.roots) - set(authority.signer.roots):
            # Open connections may have been authenticated with a root that is no longer trusted.
            self._server.end_connections()
        if before.signer.roots != authority.signer.roots:
            log.info(
                "roots changed: signing with %s, trusting %s",
                fingerprint(authority.anchor)[:16],
                ", ".join(fingerprint(root)[:16] for root in authority.signer.roots),
            )
        # This comes last because it can fail (a full disk), which must not delay the steps above. `follow`
        # tries it again.
        write_atomic(self._directory / ROOTS_FILE, authority.bundle_pem, 0o644)
