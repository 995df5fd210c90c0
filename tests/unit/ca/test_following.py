"""The running CA's following of its roots, when the machine is short of something."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from meshscrape.ca import following
from meshscrape.ca.authenticators import JwksFile, TokenAuthenticator
from meshscrape.ca.authority import Authority, open_own
from meshscrape.ca.following import RootFollower
from meshscrape.ca.metrics import Metrics
from meshscrape.ca.service import CertificateService, Lifetimes
from meshscrape.ca.storage import JWKS
from meshscrape.ca.tokens import LOCAL_ISSUER, TokenIssuer
from meshscrape.system.clock import utcnow
from support.polling import eventually_async


def test_an_error_of_the_machine_does_not_end_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many open files, say: it is logged once, and tried again."""
    monkeypatch.setattr(following, "LOOK", 0.01)
    authority = open_own(tmp_path, "cluster.local", utcnow())
    metrics = Metrics(authority.not_after)
    TokenIssuer.load_or_create(tmp_path)
    tokens = TokenAuthenticator(JwksFile(tmp_path / JWKS), LOCAL_ISSUER, "cluster.local")
    service = CertificateService(authority, tokens, Lifetimes(), metrics, utcnow)
    tries: list[int] = []

    def reopen() -> Authority:
        tries.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario() -> None:
        follower = RootFollower(tmp_path, ("localhost",), service, metrics, reopen, "another record")
        task = asyncio.create_task(follower.follow())

        async def tried_again() -> bool:
            return len(tries) >= 3 or task.done()

        await eventually_async(tried_again, within=10)
        assert not task.done()
        task.cancel()

    asyncio.run(scenario())
    assert caplog.text.count("Too many open files") == 1
