"""The running CA's following of its roots, when something fails."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from meshscrape.ca import root_follower
from meshscrape.ca.admission import Limits
from meshscrape.ca.authenticators import JwksFile, TokenAuthenticator
from meshscrape.ca.authority import Authority, open_own
from meshscrape.ca.metrics import Metrics
from meshscrape.ca.root_follower import RootFollower
from meshscrape.ca.service import CertificateService, Lifetimes
from meshscrape.ca.storage import JWKS
from meshscrape.ca.tokens import LOCAL_ISSUER, TokenIssuer
from meshscrape.istio.names import ROOTS_FILE
from meshscrape.system.clock import utcnow
from meshscrape.system.files import private_dir
from meshscrape.system.followed import Stamp
from meshscrape.system.net import listen_tcp
from meshscrape.system.tasks import TaskEndedError, background
from support.polling import eventually_async


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_follower, "LOOK", 0.01)


def follower(
    directory: Path, reopen: Callable[[], Authority], metrics: Metrics | None = None
) -> RootFollower:
    """A follower whose record differs from what it has seen; call it in an event loop."""
    authority = open_own(directory, "cluster.local", utcnow())
    metrics = metrics or Metrics(authority.not_after)
    TokenIssuer.load_or_create(directory)
    tokens = TokenAuthenticator(JwksFile(directory / JWKS), LOCAL_ISSUER, "cluster.local")
    service = CertificateService(authority, tokens, Lifetimes(), metrics, utcnow)
    patient = Limits(silent=60.0)
    return RootFollower(directory, ("localhost",), service, metrics, reopen, Stamp(1, 2, 3), patient)


def test_an_error_of_the_machine_does_not_end_following(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many open files, say: it is logged once, and tried again."""
    tries: list[int] = []

    def reopen() -> Authority:
        tries.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario() -> None:
        async with background() as tasks:
            tasks.start(follower(tmp_path, reopen).follow, "following")

            async def tried_again() -> bool:
                return len(tries) >= 3

            await eventually_async(tried_again, within=10)

    asyncio.run(scenario())
    assert caplog.text.count("Too many open files") == 1


def test_a_follower_that_fails_ends_the_ca(tmp_path: Path) -> None:
    """An error that nobody foresaw ends the CA: it must not go on with roots that it no longer follows."""

    def reopen() -> Authority:
        raise ValueError("nobody foresaw this")

    async def scenario() -> None:
        async with asyncio.timeout(10), background() as tasks:
            tasks.start(follower(tmp_path, reopen).follow, "following the rotation")
            await asyncio.Event().wait()

    with pytest.raises(TaskEndedError, match="following the rotation"):
        asyncio.run(scenario())


def test_a_renewal_that_fails_ends_the_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper of the CA's own certificate does not end in silence either."""

    async def keep(*_: object) -> None:
        raise ValueError("nobody foresaw this")

    monkeypatch.setattr(root_follower.ServerCertificate, "keep", keep)

    async def scenario() -> None:
        authority = open_own(tmp_path, "cluster.local", utcnow())
        roots = follower(tmp_path, lambda: authority)
        try:
            async with asyncio.timeout(10), background() as tasks:
                roots.start(listen_tcp("127.0.0.1", 0, 10), authority, tasks)
                await asyncio.Event().wait()
        finally:
            roots.stop()

    with pytest.raises(TaskEndedError, match="renewing the CA's certificate"):
        asyncio.run(scenario())


def test_connections_end_with_their_root_although_the_bundle_cannot_be_written(tmp_path: Path) -> None:
    """A full disk must not keep connections alive that a root opened which is trusted no more."""
    for name in ("own", "next"):
        private_dir(tmp_path / name)
    own, next_one = (open_own(tmp_path / name, "cluster.local", utcnow()) for name in ("own", "next"))
    metrics = Metrics(own.not_after)

    async def scenario() -> None:
        roots = follower(tmp_path / "own", lambda: next_one, metrics)
        listening = listen_tcp("127.0.0.1", 0, 10)
        address = listening.getsockname()
        async with asyncio.timeout(20), background() as tasks:
            roots.start(listening, own, tasks)
            bundle = tmp_path / "own" / ROOTS_FILE
            bundle.unlink()
            (bundle / "in the way").mkdir(parents=True)
            reader, writer = await asyncio.open_connection(*address)

            async def accepted() -> bool:
                return metrics.accepted == 1

            await eventually_async(accepted, within=10)
            tasks.start(roots.follow, "following the rotation")
            assert await reader.read() == b""
            writer.close()
            roots.stop()

    asyncio.run(scenario())
