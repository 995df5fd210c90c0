"""The workload's certificate: asked for, judged, published, and renewed while the old one serves."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from meshscrape.agent.issued import Issued, judge
from meshscrape.agent.schedule import Schedule, Timing
from meshscrape.envoy.options import SCRAPERS_BUNDLE
from meshscrape.errors import InputError, MeshscrapeError, UnauthenticatedError, UnavailableError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.spiffe.bundles import bundle_to_pem, load_bundle
from meshscrape.spiffe.certificates import fingerprint, load_certificates, make_csr
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.spiffe.keys import PrivateKey, generate_key, key_to_pem
from meshscrape.system.ca_client import create_certificate
from meshscrape.system.clock import utcnow
from meshscrape.system.files import publish, read_input

logger = logging.getLogger(__name__)

RPC_DEADLINE = 10.0
# The same token refused so often is not a CA that is still starting.
REFUSALS = 3
# How often the clock and the files of roots are looked at: a machine that slept renews this soon.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class CaClientOptions:
    """Whom to ask, as whom, for what. Times are the workload's wishes; the CA may give less."""

    address: str
    roots: Path
    token: Path
    identity: SpiffeId
    ttl: timedelta
    algorithm: Literal["ECDSA", "RSA"] = "ECDSA"
    rsa_bits: int = 2048
    timing: Timing = field(default_factory=Timing)
    wait: timedelta = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Places:
    """Where credentials go: the agent's own directory, and the one the application reads, if any."""

    credentials: Path
    output: Path | None = None
    output_mode: int = 0o600
    scrapers_ca: Path | None = None


class CredentialRenewer:
    """The certificate in use, and the requests that brought it."""

    def __init__(self, ca: CaClientOptions, places: Places) -> None:
        self.issued: Issued | None = None
        self.requests = 0
        self.failures = 0
        self.renewals = 0
        self.latency = 0.0
        self.problem = f"no certificate yet from the CA at {ca.address}"
        self._ca = ca
        self._places = places
        self._news = asyncio.Event()
        self._roots_seen: tuple[str, ...] = ()
        self._roots: tuple[str, ...] = ()
        self._roots_pem = b""
        self._inherited = False
        self._scraper_pem = self._scraper_roots = b""
        self._scraper_problem = ""

    def check_inputs(self) -> None:
        """Read what the user named; InputError for what is missing or malformed."""
        self._read_roots()
        self._read_token()
        self._read_scraper_roots()

    async def first(self) -> None:
        """Get and publish the first certificate; one that a predecessor left and is still good serves too.

        Tries for `wait` while the CA does not answer, saying once why it waits. Raises UnavailableError
        after that, UnauthenticatedError when the same token is refused `REFUSALS` times, and InputError
        and other MeshscrapeErrors, which time does not heal, at once.
        """
        if found := self._left_by_predecessor():
            logger.info("using the certificate of before, %r", found)
            self._use(found)
            self._inherited = True
            return
        deadline = time.monotonic() + self._ca.wait.total_seconds()
        refused: list[str] = []
        said: type[MeshscrapeError] | None = None
        schedule = Schedule(utcnow())
        while True:
            token = self._read_token()
            try:
                return await self._request(token)
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
                    remedy="see that the CA runs and that CA_ADDR is its address",
                ) from reason
            if said is not type(reason):
                said = type(reason)
                logger.warning("waiting for the first certificate: %s", reason)
            await asyncio.sleep(pause)

    async def keep(self) -> None:
        """Renew in time, for ever; failures are logged and counted, and the present certificate serves on."""
        schedule = self._schedule()
        while True:
            now = utcnow()
            self._follow_scraper_roots()
            if self._roots_changed():
                schedule = schedule.hastened(now, self._ca.timing, _draw())
            if (left := schedule.wait(now).total_seconds()) > 0:
                await asyncio.sleep(min(left, _LOOK))
            elif await self._renewed():
                schedule = self._schedule()
            else:
                schedule = schedule.after_failure(utcnow(), _draw())

    async def _renewed(self) -> bool:
        try:
            await self._request(self._read_token())
        except MeshscrapeError as error:
            self.problem = f"the certificate could not be renewed: {error}"
            logger.warning("%s", self.problem)
            return False
        except Exception:
            # Whatever is wrong with the renewal, the certificate in use is still good.
            logger.exception("the certificate could not be renewed")
            return False
        self.renewals += 1
        return True

    async def changed_from(self, seen: Issued | None) -> None:
        """Wait until a certificate other than `seen` is in use."""
        while self.issued is seen:
            await self._news.wait()

    def _schedule(self) -> Schedule:
        issued = self.issued
        if issued is None or self._inherited_other_roots():
            return Schedule(utcnow())
        return Schedule.after_success(issued.received_at, issued.not_after, self._ca.timing, _draw())

    def _inherited_other_roots(self) -> bool:
        """Whether a predecessor left a bundle that is not the CA's roots of now: who knows how old it is."""
        return self._inherited and self._roots_changed()

    def _roots_changed(self) -> bool:
        """Whether the CA's roots are others than before the last request, once for each change.

        The file is only a hint: what the workload trusts comes from the CA, over a connection that was
        checked. A file that cannot be used is no change; the request that needs it will say what is wrong.
        """
        try:
            _, present = self._read_roots()
        except InputError:
            return False
        changed = present != self._roots_seen
        if changed:
            logger.info("the CA's roots have changed; the certificate is renewed early")
            self._roots_seen = present
        return changed

    async def _request(self, token: str | None) -> None:
        """One request to the CA; the answer is used only after it has been judged."""
        self.requests += 1
        began = time.monotonic()
        try:
            key = await self._new_key()
            roots, self._roots_seen = self._read_roots()
            chain, bundle = await create_certificate(
                self._ca.address,
                roots,
                make_csr(key, self._ca.identity),
                self._ca.ttl,
                token=token,
                client_credentials=None if token else self._places.credentials,
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
            self.problem = str(error)
            raise
        finally:
            self.latency += time.monotonic() - began
        logger.info("certificate %x until %s", issued.serial, issued.not_after.isoformat())

    async def _new_key(self) -> PrivateKey:
        if self._ca.algorithm == "ECDSA":
            return generate_key()
        # Searching primes takes up to seconds: not on the loop that answers health checks.
        return await asyncio.to_thread(generate_key, "RSA", self._ca.rsa_bits)

    def _read_roots(self) -> tuple[bytes, tuple[str, ...]]:
        """The roots that the CA must prove itself with, and what they are; their order counts."""
        pem = read_input(self._ca.roots, "the CA's root certificate")
        if pem != self._roots_pem:
            self._roots = _fingerprints(pem, str(self._ca.roots))
            self._roots_pem = pem
        return pem, self._roots

    def _read_token(self) -> str | None:
        """The token as it is now; None when there is none but a valid certificate can speak for itself."""
        if not self._ca.token.exists() and self.issued and self.issued.valid(utcnow()):
            return None
        token = read_input(self._ca.token, "the token for the CA").decode("ascii", "replace").strip()
        if not token or not token.isascii() or any(letter.isspace() for letter in token):
            raise InputError("is not a token", where=str(self._ca.token), remedy="put one JWT into it")
        return token

    def _read_scraper_roots(self) -> bytes:
        path = self._places.scrapers_ca
        if path is None:
            return b""
        pem = read_input(path, "the scrapers' CA bundle")
        if pem != self._scraper_pem:
            self._scraper_roots = bundle_to_pem(load_bundle(pem, str(path)))
            self._scraper_pem = pem
        return self._scraper_roots

    def _follow_scraper_roots(self) -> None:
        """Publish again when the scrapers' bundle has changed; a broken one changes nothing."""
        before = self._scraper_roots
        try:
            if self._read_scraper_roots() != before and self.issued is not None:
                self._use(self.issued)
                logger.info("the scrapers' CA bundle has changed")
            self._scraper_problem = ""
        except MeshscrapeError as error:
            if str(error) != self._scraper_problem:
                self._scraper_problem = str(error)
                logger.warning("the scrapers' CA bundle is kept as it was: %s", error)

    def _use(self, issued: Issued) -> None:
        """Publish: the agent's own directory for Envoy, then the application's."""
        own = {CERTIFICATE_CHAIN_FILE: issued.chain, PRIVATE_KEY_FILE: issued.key, ROOTS_FILE: issued.bundle}
        roots = self._scraper_roots
        bundle = {SCRAPERS_BUNDLE: issued.bundle + roots} if roots else {}
        publish(self._places.credentials, own | bundle)
        if self._places.output is not None:
            publish(self._places.output, own, self._places.output_mode)
        self.issued = issued
        self.problem = ""
        self._news.set()
        self._news = asyncio.Event()

    def _left_by_predecessor(self) -> Issued | None:
        """What a predecessor published, if this agent would accept it from the CA that it trusts now."""
        directory = self._places.credentials
        try:
            chain, key = (
                (directory / CERTIFICATE_CHAIN_FILE).read_bytes(),
                (directory / PRIVATE_KEY_FILE).read_bytes(),
            )
            roots = self._ca.roots.read_bytes()
            found = judge(key, chain, roots, expected=self._ca.identity, now=utcnow(), where=str(directory))
            bundle = (directory / ROOTS_FILE).read_bytes()
            # What has changed since then counts as a change now.
            self._roots_seen = _fingerprints(bundle, str(directory))
        except (OSError, MeshscrapeError):
            return None
        # When it was received nobody has noted; its own beginning is early enough, so that it is rather
        # renewed too soon than too late.
        begin = load_certificates(chain, str(directory))[0].not_valid_before_utc
        return replace(found, bundle=bundle, received_at=begin)


def _fingerprints(pem: bytes, where: str) -> tuple[str, ...]:
    return tuple(fingerprint(each) for each in load_bundle(pem, where))


def _draw() -> float:
    return random.random()  # noqa: S311 - it spreads requests in time, nothing depends on its secrecy
