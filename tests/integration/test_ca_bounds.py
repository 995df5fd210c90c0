"""What a peer without credentials can hold of the CA, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshscrape.ca import server, service
from meshscrape.ca.run import CaOptions, RunningCa, running_ca
from meshscrape.ca.tokens import TokenIssuer
from support.grpc_ca import bearer, call_without_message
from support.grpc_peer import GrpcRefusal


@contextlib.asynccontextmanager
async def started(directory: Path) -> AsyncIterator[RunningCa]:
    """A CA in this process."""
    TokenIssuer.load_or_create(directory)
    async with running_ca(CaOptions(directory, "127.0.0.1:0")) as ca:
        yield ca


@pytest.mark.parametrize("bound", ["IDLE_SECONDS", "CONNECTION_SECONDS"])
def test_connections_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """A connection that does nothing, and one that lasts too long whatever it does, are ended by the CA."""
    monkeypatch.setattr(server, bound, 0.1)

    async def scenario() -> None:
        async with started(tmp_path) as ca:
            host, port = ca.address.rsplit(":", 1)
            trusting = ssl.create_default_context(cadata=ca.root_bundle.read_text())
            reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(10):
                    assert await reader.read(), "the greeting"
            writer.close()

    asyncio.run(scenario())


def test_a_handshake_that_never_starts_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects and says nothing is cut off."""
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.1)

    async def scenario() -> None:
        async with started(tmp_path) as ca:
            host, port = ca.address.rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(10):
                    assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_stopping_ends_open_connections(tmp_path: Path) -> None:
    """When the CA has stopped, a connection that was open is closed, and its directory and port are free."""

    async def scenario() -> None:
        async with started(tmp_path) as ca:
            host, port = ca.address.rsplit(":", 1)
            trusting = ssl.create_default_context(cadata=ca.root_bundle.read_text())
            reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
            assert await reader.readexactly(9), "the greeting"
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                await reader.read()
        writer.close()
        async with running_ca(CaOptions(tmp_path, ca.address)) as again:
            assert again.address == ca.address

    asyncio.run(scenario())


def test_a_request_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authenticated caller that sends no message gets a refusal, not a place for ever."""
    monkeypatch.setattr(service, "REQUEST_SECONDS", 0.1)

    def ask(ca: RunningCa) -> GrpcRefusal:
        token = TokenIssuer.load_or_create(tmp_path).issue(
            "foo", "bar", datetime.now(UTC), timedelta(minutes=5)
        )
        with pytest.raises(GrpcRefusal) as caught:
            call_without_message(ca.address, ca.root_bundle.read_bytes(), bearer(token))
        return caught.value

    async def scenario() -> GrpcRefusal:
        async with started(tmp_path) as ca:
            return await asyncio.to_thread(ask, ca)

    error = asyncio.run(scenario())
    assert (error.code, error.details[:30]) == ("INVALID_ARGUMENT", "the message did not arrive wit")
