"""What a peer without credentials can hold of the CA, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshscrape.ca import service
from meshscrape.ca.admission import Limits
from meshscrape.ca.run import CaOptions, RunningCa, running_ca
from meshscrape.ca.tokens import TokenIssuer
from meshscrape.spiffe.keys import generate_key
from support.ca import CaProcess, ca_process
from support.grpc_ca import any_csr, bearer, call, call_without_message, request_bytes
from support.grpc_peer import GrpcRefusal
from support.polling import eventually

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
PING = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
# :method GET, :scheme https, :path / as HPACK's static table has them.
REQUEST = b"\x82\x87\x84"
CSR = any_csr(generate_key())


@contextlib.asynccontextmanager
async def started(directory: Path, limits: Limits) -> AsyncIterator[RunningCa]:
    """A CA in this process."""
    TokenIssuer.load_or_create(directory)
    async with running_ca(CaOptions(directory, "127.0.0.1:0", limits=limits)) as ca:
        yield ca


async def ends(ca: RunningCa, *said: bytes, tls: bool = True, repeat: float = 0) -> None:
    """Fail unless the CA ends, within 10 s, a connection that says this; `repeat` says it again and again."""
    host, port = ca.address.rsplit(":", 1)
    trusting = ssl.create_default_context(cadata=ca.root_bundle.read_text()) if tls else None
    reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            for text in said:
                writer.write(text)
            while repeat:
                await asyncio.sleep(repeat)
                writer.write(said[-1])
                await writer.drain()
            while await reader.read(65536):
                pass
    writer.close()


@pytest.mark.parametrize(
    ("limits", "tls", "said", "repeat"),
    [
        (Limits(silent=0.2), False, [], 0),
        (Limits(silent=0.2), False, [b"\x16\x03\x01\x02\x00"], 0),
        (Limits(silent=0.5), False, [b"\x16\x03\x01\x02\x00", b"\x01"], 0.01),
        (Limits(shaking=0.2), False, [b"\x16\x03\x01\x00\x01\x01"], 0),
        (Limits(unproven=0.2), True, [], 0),
        (Limits(unproven=0.2), True, [PREFACE], 0),
        (Limits(unproven=0.5), True, [PREFACE, PING], 0.02),
    ],
    ids=[
        "silence",
        "a record without its content",
        "a record in slow bytes",
        "half a handshake",
        "silence after the handshake",
        "no request",
        "pings instead of a request",
    ],
)
def test_slow_peers_are_ended(
    tmp_path: Path, limits: Limits, tls: bool, said: list[bytes], repeat: float
) -> None:
    """A peer has its time for the greeting, the handshake and the first request, whatever it does in it."""

    async def scenario() -> None:
        async with started(tmp_path, limits) as ca:
            await ends(ca, *said, tls=tls, repeat=repeat)

    asyncio.run(scenario())


def test_plaintext_is_ended_at_once(tmp_path: Path) -> None:
    """What is not a TLS handshake ends without a wait, whether it is text, an odd record or a long one."""

    async def scenario() -> None:
        async with started(tmp_path, Limits(silent=3600)) as ca:
            for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x17\x03\x03\x00\x05hello", b"\x16\x03\x01\xff\xff"):
                await ends(ca, said, tls=False)

    asyncio.run(scenario())


def test_stopping_ends_open_connections(tmp_path: Path) -> None:
    """When the CA has stopped, a connection that was open is closed, and its directory and port are free."""

    async def scenario() -> None:
        async with started(tmp_path, Limits()) as ca:
            host, port = ca.address.rsplit(":", 1)
            trusting = ssl.create_default_context(cadata=ca.root_bundle.read_text())
            reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
            writer.write(PREFACE)
            assert await reader.readexactly(9), "the server's SETTINGS"
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
        async with started(tmp_path, Limits()) as ca:
            return await asyncio.to_thread(ask, ca)

    assert asyncio.run(scenario()).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "flood",
    [
        PING * 1000,
        (b"\0\0\0\x04" + bytes(5)) * 1000,
        b"".join(
            struct.pack("!I", len(REQUEST))[1:] + b"\x01\x04" + struct.pack("!I", stream) + REQUEST
            + b"\0\0\x04\x03\0" + struct.pack("!I", stream) + b"\0\0\0\x08"
            for stream in range(1, 200, 2)
        ),
        b"\0\0\x01\x01\0\0\0\0\x01\x82" + b"\0\0\x01\x09\0\0\0\0\x01\x82" * 1000,
        b"\0\x40\0\x00\0\0\0\0\x01" + bytes(16384),
    ],
    ids=["pings", "settings", "requests reset at once", "headers without end", "data without a request"],
)  # fmt: skip
def test_http2_floods_are_cut_off(tmp_path: Path, flood: bytes) -> None:
    """A flood of cheap frames ends the connection that it comes over, long before its time is over."""

    async def scenario() -> None:
        async with started(tmp_path, Limits(unproven=3600)) as ca:
            await ends(ca, PREFACE, flood)

    asyncio.run(scenario())


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaProcess]:
    """One running CA."""
    with ca_process(tmp_path_factory.mktemp("ca")) as running:
        yield running


def test_silent_connections_of_the_same_address_do_not_lock_out_a_workload(ca: CaProcess) -> None:
    """With every place for silent connections taken by its own address, a workload gets its certificate."""
    host, port = ca.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(Limits().silent_places + 50):
            stack.enter_context(socket.create_connection((host, int(port)), 5))
        assert call(ca, request_bytes(CSR), metadata=bearer(ca.token("foo", "bar")))
        credentials = ca.issue("foo", "bar")
        assert call(ca, request_bytes(CSR), credentials=credentials)
        evicted = 'meshscrape_ca_connections_ended_total{stage="silent",cause="evicted"}'
        assert evicted + " 0\n" not in ca.metrics()
    eventually(lambda: "evicted while silent" in ca.log(), within=20, what="the cause in the log")


def test_a_silent_connection_is_cheap(ca: CaProcess) -> None:
    """Two thousand silent connections cost the CA less than 8 kB of memory each."""
    host, port = ca.address.rsplit(":", 1)
    before = resident(ca.process.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            stack.enter_context(socket.create_connection((host, int(port)), 5))
        eventually(lambda: ca.connections("silent") >= 1900, within=3, what="the connections")
        assert resident(ca.process.pid) - before < 2000 * 8


def resident(pid: int) -> int:
    """Resident memory in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
