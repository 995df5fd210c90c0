"""The mesh's certificate authority as a child process."""

from __future__ import annotations

import asyncio
import sys

from meshscrape.ca.storage import JWKS
from meshscrape.ca.tokens import LOCAL_ISSUER
from meshscrape.errors import UnavailableError
from meshscrape.istio.host_port import parse_host_port
from meshscrape.local.layout import Site
from meshscrape.local.state import StateDirectory
from meshscrape.local.workload import accepts
from meshscrape.system.processes import Process, spawn
from meshscrape.system.supervisor import Supervisor

CA_NAMES = ("istiod.istio-system.svc", "localhost")
CA_BOUND = 30.0
_LOOK = 0.05


class CaProcess:
    """Run `meshscrape ca serve` on the mesh's CA address, for one trust domain."""

    def __init__(self, state: StateDirectory, site: Site, trust_domain: str) -> None:
        self.supervisor = Supervisor("CA", self._start)
        self._state = state
        self._site = site
        self._trust_domain = trust_domain

    async def wait(self) -> None:
        """Wait until the CA answers; raise UnavailableError with its output after `CA_BOUND` seconds."""
        host, port = parse_host_port(self._site.ca_address)
        try:
            async with asyncio.timeout(CA_BOUND):
                while not (await accepts(host, port) and self._site.ca_root.is_file()):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise UnavailableError(
                f"the CA does not answer within {CA_BOUND:g} s: {self.supervisor.tail(3)}",
                where=self._site.ca_address,
            ) from None

    async def _start(self) -> Process:
        argv = [sys.executable, "-m", "meshscrape", "ca", "serve", "--dir", str(self._state.ca)]
        argv += ["--listen", self._site.ca_address, "--trust-domain", self._trust_domain]
        argv += ["--jwks", str(self._state.run / "issuer" / JWKS), "--issuer", LOCAL_ISSUER]
        argv += ["--metrics", self._site.ca_metrics.address]
        argv += ["--metrics-token", self._site.ca_metrics.token_file]
        host, _ = parse_host_port(self._site.ca_address)
        for name in (host, *CA_NAMES):
            argv += ["--dns", name]
        log = self._state.run / "ca.log"
        return await spawn(argv, env=self._site.environment, cwd=self._state.run, log_file=log)
