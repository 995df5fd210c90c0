"""The streaming client against real servers, most of them hostile."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshscrape.errors import InputError, UnavailableError
from meshscrape.spiffe.certificates import Signer, certificates_to_pem, issue_server, self_signed_root
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.system.http.client import (
    FetchedResponse,
    FetchLimits,
    TooLargeError,
    TruncatedError,
    fetch,
    fetch_stream,
)
from support.addresses import free_port, loopback
from support.applications import (
    Behaviour,
    application,
    drips,
    hangs,
    header,
    redirects,
    resets_after,
    says,
    zips,
)

QUICK = FetchLimits(connect=5, read=0.2, total=5)


def ask(behaviour: Behaviour, limits: FetchLimits | None = None) -> tuple[int, bytes]:
    """Status and body of one GET to an application that behaves so."""

    async def run() -> tuple[int, bytes]:
        address = loopback()
        async with application(behaviour, address) as port:
            return await fetch(f"http://{address}:{port}/metrics?a=b", limits=limits)

    return asyncio.run(run())


def raw(answer: bytes) -> Behaviour:
    """Answers with exactly these bytes, then closes."""

    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return behave


def test_request_and_answer() -> None:
    """One GET with Host, path and query, asking for no coding and no second request."""
    seen: list[bytes] = []

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(header("text/plain", "Content-Length: 4") + b"body")

    assert ask(behave) == (200, b"body")
    lines = seen[0].lower().split(b"\r\n")
    assert seen[0].startswith(b"GET /metrics?a=b HTTP/1.1\r\n")
    assert b"accept-encoding: identity" in lines
    assert b"connection: close" in lines


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (raw(b"HTTP/1.0 200 OK\r\n\r\nto the end"), (200, b"to the end")),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"), (200, b"ab")),
        (raw(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"), (200, b"x")),
        (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), (204, b"")),
        (redirects("http://192.0.2.1/"), (302, b"")),
        (zips(b"zipped" * 1000), (200, b"zipped" * 1000)),
        (
            says(gzip.compress(b"a") + gzip.compress(b"b"), "x", "200 OK", "Content-Encoding: x-gzip"),
            (200, b"ab"),
        ),
    ],
)
def test_status_headers_and_body_are_returned(behaviour: Behaviour, expected: tuple[int, bytes]) -> None:
    """Every framing, early hints, gzip nobody asked for; a redirect is an answer, not an order."""
    assert ask(behaviour) == expected


@pytest.mark.parametrize(
    ("behaviour", "error", "words"),
    [
        (raw(b""), UnavailableError, "before the answer"),
        (raw(b"SSH-2.0-x\r\n\r\n"), UnavailableError, "not answer in HTTP/1.1"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), TruncatedError, "middle of the body"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), TruncatedError, "middle"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), UnavailableError, "chunk"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n"), UnavailableError, "'br'"),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000), UnavailableError, "HTTP/1.1"),
        (resets_after(b"some"), TruncatedError, "middle of the body"),
        (hangs, TruncatedError, "deadline passed before the answer"),
        (drips(b"x", pause=0), TruncatedError, "deadline passed in the middle"),
    ],
)
def test_failures_name_what_was_seen(behaviour: Behaviour, error: type[UnavailableError], words: str) -> None:
    """Each way to fail is an UnavailableError of one line that names the place and what happened."""
    with pytest.raises(error) as caught:
        ask(behaviour, QUICK)
    assert words in str(caught.value)
    assert str(caught.value).startswith("http://127.")
    assert "\n" not in str(caught.value)


def test_a_gzip_bomb_meets_the_limit() -> None:
    """What a few bytes inflate to counts towards the limit, and is never held as a whole."""
    bomb = zlib.compressobj(wbits=31)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    with pytest.raises(TooLargeError):
        ask(says(packed, "x", "200 OK", "Content-Encoding: gzip"), FetchLimits(body_bytes=1 << 20))


def test_a_body_over_the_limit() -> None:
    """More than the limit is refused, exactly the limit is not."""
    assert ask(says(b"x" * 100), FetchLimits(body_bytes=100))[1] == b"x" * 100
    with pytest.raises(TooLargeError):
        ask(says(b"x" * 101), FetchLimits(body_bytes=100))


def test_closed_port_is_unavailable() -> None:
    """A refused connection and a missing socket say so."""
    address = loopback()
    with pytest.raises(UnavailableError, match="cannot connect"):
        asyncio.run(fetch(f"http://{address}:{free_port(address)}/"))
    with pytest.raises(UnavailableError, match="No such file"):
        asyncio.run(fetch("http://localhost/", unix_socket="/nonexistent/admin.sock"))


@pytest.mark.parametrize("url", ["ftp://a/", "/metrics", "http://", "https://127.0.0.1/", "http://a:99999/"])
def test_unusable_urls_are_refused(url: str) -> None:
    """What is wrong with the question is an InputError, not the other side's fault."""
    with pytest.raises(InputError):
        asyncio.run(fetch(url))


@pytest.mark.parametrize("path", ["/caf\u00e9", "/two words"])
def test_requests_that_cannot_be_written(path: str) -> None:
    """A target that HTTP/1.1 cannot spell is an InputError, and never sent."""

    async def run() -> None:
        address = loopback()
        async with application(says(b"hello"), address) as port:
            await fetch(f"http://{address}:{port}{path}")

    with pytest.raises(InputError, match="cannot be written"):
        asyncio.run(run())


@pytest.mark.parametrize("depth", [1, 30])
def test_unix_sockets_of_any_length(tmp_path: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket is reached through a path longer than the 107 bytes that the kernel takes."""
    directory = tmp_path.joinpath(*["deeper"] * depth)
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)

    async def run() -> tuple[int, bytes]:
        async with application(says(b"hello"), unix_socket=Path("s")):
            return await fetch("http://localhost/", unix_socket=directory / "s")

    assert asyncio.run(run()) == (200, b"hello")


def test_framing_decides_whether_a_body_is_complete() -> None:
    """A length or chunks say when a body is whole; one that ends with the connection never does."""

    async def run(answer: bytes) -> bool:
        address = loopback()
        async with (
            application(raw(answer), address) as port,
            fetch_stream(f"http://{address}:{port}/") as response,
        ):
            assert [chunk async for chunk in response.body] == [b"ab"]
            return response.complete

    assert asyncio.run(run(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"))
    assert not asyncio.run(run(b"HTTP/1.1 200 OK\r\n\r\nab"))


def test_a_body_and_repeated_headers_are_sent_as_given() -> None:
    """Given headers replace those of the client's own; a host of the URL's need not be where it connects."""
    seen: list[bytes] = []
    headers = [("accept-encoding", "gzip"), ("X", "1"), ("X", "2")]
    url = "http://user:secret@elsewhere:1/a?b=c"

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(b"HTTP/1.1 201 Made\r\nX-Kept-Case: y\r\nContent-Length: 0\r\n\r\n")

    async def run() -> FetchedResponse:
        address = loopback()
        async with (
            application(behave, address) as port,
            fetch_stream(url, address=(address, port), headers=headers, body=b"1234", method="PUT") as answer,
        ):
            return answer

    answer = asyncio.run(run())
    assert seen[0].split(b"\r\n") == [
        b"PUT /a?b=c HTTP/1.1", b"Host: elsewhere:1", b"Connection: close", b"Content-Length: 4",
        b"accept-encoding: gzip", b"X: 1", b"X: 2", b"", b"",
    ]  # fmt: skip
    assert (answer.status, answer.head) == (201, ("1.1", "Made"))
    assert ("X-Kept-Case", "y") in answer.raw_headers


def test_body_can_be_read_undecoded() -> None:
    """Without decoding, any content coding passes."""

    async def run() -> bytes:
        address = loopback()
        async with application(zips(b"zipped" * 1000), address) as port:
            url = f"http://{address}:{port}/"
            async with fetch_stream(url, decode=False) as answer:
                return b"".join([piece async for piece in answer.body])

    assert gzip.decompress(asyncio.run(run())) == b"zipped" * 1000


@pytest.mark.parametrize(
    ("name", "accepted"), [("api.internal", True), ("other.internal", False), ("", False)]
)
def test_server_name_replaces_the_host(tmp_path: Path, name: str, accepted: bool) -> None:
    """The certificate must carry that name, and need not carry the address that is connected to."""
    now, authority, key = datetime.now(UTC), generate_key(), generate_key()
    root = self_signed_root("test", authority, now, timedelta(hours=1))
    signer = Signer(root, authority, (), (root,))
    leaf = issue_server(signer, key.public_key(), ["api.internal"], now, timedelta(minutes=30))
    pem = tmp_path / "server.pem"
    pem.write_bytes(key_to_pem(key) + certificates_to_pem((leaf,)))
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(pem)
    asking = ssl.create_default_context(cadata=certificates_to_pem((root,)).decode())

    async def run() -> int:
        address = loopback()
        async with application(says(b"x 1\n"), address, tls=serving) as port:
            url = f"https://{address}:{port}/"
            async with fetch_stream(url, tls=asking, server_name=name) as response:
                return response.status

    if accepted:
        assert asyncio.run(run()) == 200
    else:
        with pytest.raises(UnavailableError):
            asyncio.run(run())


@pytest.mark.parametrize("secure", [True, False])
def test_an_http_proxy_connects_to_the_host(tmp_path: Path, secure: bool) -> None:
    """The request goes through the proxy's tunnel, with TLS to the host inside it."""
    now, authority, key = datetime.now(UTC), generate_key(), generate_key()
    root = self_signed_root("test", authority, now, timedelta(hours=1))
    leaf = issue_server(
        Signer(root, authority, (), (root,)), key.public_key(), ["api"], now, timedelta(hours=1)
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(key_to_pem(key) + certificates_to_pem((leaf,)))
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(pem)
    asking = ssl.create_default_context(cadata=certificates_to_pem((root,)).decode())
    asked: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
        writer.close()

    async def run() -> tuple[int, bytes]:
        address = loopback()

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
            inner, outer = await asyncio.open_connection(address, port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(pump(reader, outer), pump(inner, writer))

        async with application(says(b"x 1\n"), address, tls=serving if secure else None) as port:
            proxy = await asyncio.start_server(connect, address)
            tunnel = address, proxy.sockets[0].getsockname()[1]
            url = f"{'https' if secure else 'http'}://api:6443/"
            async with proxy, fetch_stream(url, tls=asking, tunnel=tunnel) as response:
                return response.status, b"".join([piece async for piece in response.body])

    assert asyncio.run(run()) == (200, b"x 1\n")
    assert asked == [b"CONNECT api:6443 HTTP/1.1"]


def test_a_proxy_that_refuses_is_named() -> None:
    async def run() -> None:
        address = loopback()

        async def refuse(request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        async with (
            application(refuse, address) as port,
            fetch_stream("http://api:6443/", tunnel=(address, port), limits=QUICK),
        ):
            pass

    with pytest.raises(UnavailableError, match="407"):
        asyncio.run(run())
