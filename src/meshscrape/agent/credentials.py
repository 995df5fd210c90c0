"""Request, judge, publish and renew the workload's certificate. The old one stays in use meanwhile."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeAlias

from meshscrape.agent.issued import Issued, judge
from meshscrape.agent.publication import Places, Publication
from meshscrape.agent.schedule import Schedule, Timing
from meshscrape.errors import InputError, MeshscrapeError, UnauthenticatedError, UnavailableError
from meshscrape.spiffe.bundles import bundle_to_pem, load_bundle
from meshscrape.spiffe.certificates import fingerprint, make_csr
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.spiffe.keys import PrivateKey, generate_key, key_to_pem
from meshscrape.system.ca_client import create_certificate
from meshscrape.system.clock import utcnow
from meshscrape.system.files import read_input
from meshscrape.system.followed import FollowedFile

Fingerprints: TypeAlias = tuple[str, ...]

logger = logging.getLogger(__name__)

RPC_DEADLINE = 10.0
# After so many refusals of the same token, do not wait any longer: the CA is running and refuses it.
REFUSALS = 3
# How often the clock and the root files are checked (seconds). After a suspend, renewal is late by this much.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class CaClientOptions:
    """The CA, the identity and the lifetime to request. The CA may grant a shorter lifetime."""

    address: str
    roots: Path
    token: Path
    identity: SpiffeId
    ttl: timedelta
    algorithm: Literal["ECDSA", "RSA"] = "ECDSA"
    rsa_bits: int = 2048
    timing: Timing = field(default_factory=Timing)
    wait: timedelta = timedelta(seconds=60)


class CredentialRenewer:
    """Keep the certificate in use, and request new ones.

    `issued` is the certificate that Envoy can read. A newer one may still wait to be written.
    """

    def __init__(self, ca: CaClientOptions, places: Places) -> None:
        self.issued: Issued | None = None
        self._newest: Issued | None = None
        self.requests = 0
        self.failures = 0
        self.renewals = 0
        self.latency = 0.0
        self._request_problem = f"no certificate yet from the CA at {ca.address}"
        self._ca = ca
        self._publication = Publication(places)
        self._roots = FollowedFile(ca.roots, "the CA's root certificate", _parse_roots, log=logger)
        self._scraper_roots = _scraper_roots(places.scrapers_ca)
        self._credentials = places.credentials
        self._news = asyncio.Event()
        self._roots_used: Fingerprints = ()
        self._inherited = False

    @property
    def problem(self) -> str:
        """Return the certificate's current problem, empty without one."""
        problem = self._publication.problem.text
        return self._request_problem or (f"the certificate is kept in memory: {problem}" if problem else "")

    @property
    def written(self) -> bool:
        """Return whether Envoy can read the newest certificate."""
        return self._newest is self.issued

    def check_inputs(self) -> None:
        """Read the files that the user named. Raise InputError if one is missing or malformed."""
        self._roots.read()
        self._read_token()
        if self._scraper_roots is not None:
            self._scraper_roots.read()

    async def first(self) -> None:
        """Get and publish the first certificate, or use a valid one that an earlier agent left.

        While the CA does not answer, try again for `wait`, and log the reason once. Raise UnavailableError
        after that, UnauthenticatedError if the same token is refused `REFUSALS` times, and other errors
        (InputError and other MeshscrapeErrors) at once, because waiting would not help.
        """
        if self._inherit():
            return
        deadline = time.monotonic() + self._ca.wait.total_seconds()
        refused: list[str] = []
        said: type[MeshscrapeError] | None = None
        schedule = Schedule(utcnow())
        while True:
            token = self._read_token()
            try:
                await self._request(token)
                return self._require_written()
            except UnauthenticatedError as error:
                refused.append(token or "")
                if refused[-REFUSALS:].count(token or "") == REFUSALS:
                    raise
                reason: MeshscrapeError = error
            except UnavailableError as error:
                reason = error
            schedule = schedule.after_failure(now := utcnow(), _draw())
            pause = schedule.wait(now).total_seconds()
            if time.monotonic() + pause >= deadline:
                raise UnavailableError(
                    f"no certificate within {self._ca.wait.total_seconds():g} s: {reason}",
                    remedy="check that the CA runs and that CA_ADDR is its address",
                ) from reason
            if said is not type(reason):
                said = type(reason)
                logger.warning("waiting for the first certificate: %s", reason)
            await asyncio.sleep(pause)

    async def keep(self) -> None:
        """Renew in time, for ever. Failures are logged and counted; the current certificate stays in use."""
        schedule = self._schedule()
        while True:
            now = utcnow()
            self._follow_scraper_roots()
            self._publication.retry()
            self._take_over()
            if self._roots_changed():
                schedule = schedule.hastened(now, self._ca.timing, _draw())
            if (left := schedule.wait(now).total_seconds()) > 0:
                await asyncio.sleep(min(left, _LOOK))
            elif await self._renewed():
                schedule = self._schedule()
            else:
                schedule = schedule.after_failure(utcnow(), _draw())

    def close(self) -> None:
        """Remove files that the agent keeps in memory."""
        self._publication.close()

    async def changed_from(self, issued: Issued | None) -> None:
        """Wait until a certificate other than `issued` is in use."""
        while self.issued is issued:
            await self._news.wait()

    def _inherit(self) -> bool:
        """Use the certificate that an earlier agent left, if it is still valid; return whether it was."""
        pem, _ = self._roots.value
        inherited = self._publication.left_by_predecessor(self._ca.identity, pem, utcnow())
        if inherited is None:
            return False
        # If the CA's roots differ now, this counts as a change, and the certificate is renewed.
        _, self._roots_used = _parse_roots(inherited.bundle, str(self._credentials))
        logger.info("using the predecessor's certificate, %r", inherited)
        self._use(inherited)
        self._inherited = True
        return True

    def _require_written(self) -> None:
        """Raise MeshscrapeError unless the first certificate is on disk, because Envoy has no other."""
        if self._publication.problem.error is not None:
            raise self._publication.problem.error

    async def _renewed(self) -> bool:
        try:
            await self._request(self._read_token())
        except MeshscrapeError as error:
            self._request_problem = f"the certificate could not be renewed: {error}"
            logger.warning("%s", self._request_problem)
            return False
        except Exception:
            # An unexpected error must not end the agent: the certificate in use is still valid.
            logger.exception("the certificate could not be renewed")
            return False
        self.renewals += 1
        return True

    def _schedule(self) -> Schedule:
        issued = self._newest
        if issued is None or (self._inherited and self._roots_changed()):
            return Schedule(utcnow())
        return Schedule.after_success(issued.received_at, issued.not_after, self._ca.timing, _draw())

    def _roots_changed(self) -> bool:
        """Return whether the CA's roots differ from those at the last request, once for each change.

        The file is only a hint: the workload's trust bundle comes from the CA, over a verified connection.
        """
        self._roots.changed()
        _, present = self._roots.value
        changed = present != self._roots_used
        if changed:
            logger.info("the CA's roots have changed; the certificate is renewed early")
            self._roots_used = present
        return changed

    async def _request(self, token: str | None) -> None:
        """Send one request to the CA; use its answer only after it has been judged."""
        self.requests += 1
        began = time.monotonic()
        try:
            key = await self._new_key()
            self._roots.changed()
            roots, self._roots_used = self._roots.value
            chain, bundle = await create_certificate(
                self._ca.address,
                roots,
                make_csr(key, self._ca.identity),
                self._ca.ttl,
                token=token,
                client_credentials=None if token else self._credentials,
                deadline=RPC_DEADLINE,
            )
            issued = judge(
                key_to_pem(key),
                b"".join(chain),
                bundle,
                expected=self._ca.identity,
                now=utcnow(),
                where=f"the answer of the CA at {self._ca.address}",
            )
            self._use(issued)
            self._inherited = False
        except MeshscrapeError as error:
            self.failures += 1
            self._request_problem = str(error)
            raise
        finally:
            self.latency += time.monotonic() - began
        logger.info("certificate %x until %s", issued.serial, issued.not_after.isoformat())

    async def _new_key(self) -> PrivateKey:
        if self._ca.algorithm == "ECDSA":
            return generate_key()
        # Searching primes can take seconds, so do it outside the event loop, which answers health checks.
        return await asyncio.to_thread(generate_key, "RSA", self._ca.rsa_bits)

    def _read_token(self) -> str | None:
        """Return the current token; None if it is missing and a valid certificate can replace it."""
        if not self._ca.token.exists() and self.issued and self.issued.valid(utcnow()):
            return None
        token = read_input(self._ca.token, "the token for the CA").decode("ascii", "replace").strip()
        if not token or not token.isascii() or any(letter.isspace() for letter in token):
            raise InputError("is not a token", where=str(self._ca.token), remedy="put one JWT into it")
        return token

    def _follow_scraper_roots(self) -> None:
        """Publish again if the scrapers' bundle has changed; an unusable one changes nothing."""
        if self._scraper_roots is not None and self._scraper_roots.changed() and self._newest:
            self._use(self._newest)
            logger.info("the scrapers' CA bundle has changed")

    def _use(self, issued: Issued) -> None:
        self._newest = issued
        self._request_problem = ""
        self._publication.publish(issued, self._scraper_roots.value if self._scraper_roots else b"")
        self._take_over()

    def _take_over(self) -> None:
        """Wake the waiting tasks if Envoy can read another certificate."""
        if self._publication.in_use is not self.issued:
            self.issued = self._publication.in_use
            self._news.set()
            self._news = asyncio.Event()


def _scraper_roots(path: Path | None) -> FollowedFile[bytes] | None:
    if path is None:
        return None
    return FollowedFile(
        path, "the scrapers' CA bundle", lambda pem, where: bundle_to_pem(load_bundle(pem, where)), log=logger
    )


def _parse_roots(pem: bytes, where: str) -> tuple[bytes, Fingerprints]:
    """Return the roots to verify the CA with, as PEM and as fingerprints in their order."""
    return pem, tuple(fingerprint(root) for root in load_bundle(pem, where))


def _draw() -> float:
    return random.random()  # noqa: S311 - it spreads requests in time, nothing depends on its secrecy
