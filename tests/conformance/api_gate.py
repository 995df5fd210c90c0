"""A gate between pods and the real API server: it passes everything on until a test disturbs it.

TLS ends at the gate on both sides, because a test must be able to read which requests are watches. The
requests, their tokens and all answers are those of the pods and of the API server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from conformance.cluster import certificates
from conformance.kube import Kube

T = TypeVar("T")
CHUNK = 1 << 16
WATCH = re.compile(rb"[?&]watch=")
VERSION = re.compile(rb"([?&]resourceVersion=)\d+")
PATIENCE = 30.0


@dataclass(eq=False)
class _Link:
    """One connection of a pod."""

    writer: asyncio.StreamWriter
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    watches: bool = False


class Gate:
    """Forwards connections to the API server from a thread of its own."""

    def __init__(self, host: str, upstream: tuple[str, int], outward: ssl.SSLContext, inward: Path) -> None:
        """Prepare to listen on `host`. `inward` is the directory of the gate's own certificates."""
        self.host, self.port = host, 0
        self.aged = 0
        pki = certificates.write(inward, host)
        self.ca = pki.ca.read_text()
        self._upstream, self._outward = upstream, outward
        self._inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inward.load_cert_chain(*pki.pair("apiserver"))
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._too_old = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        """End every connection and the thread."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    @property
    def watches(self) -> int:
        """Return how many watches are open."""
        return sum(link.watches for link in list(self._links))

    def cut(self) -> None:
        """End every connection; new ones pass."""
        self._do(self._cut())

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Refuse every connection while the block runs: the API server is away."""
        self._do(self._end())
        try:
            yield
        finally:
            self._do(self._listen())

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Pass nothing of the API server on to the watches that are open now, and close none of them."""
        silenced = self._do(self._silence())
        assert silenced, "no watch is open: the block would show nothing"
        try:
            yield
        finally:
            self._do(self._resume(silenced))

    @contextlib.contextmanager
    def too_old(self) -> Iterator[None]:
        """Ask for the first resource version of all in every watch: the API server answers 410."""
        self._too_old = True
        try:
            yield
        finally:
            self._too_old = False

    # --- in the thread ----------------------------------------------------------------------------

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self._inward)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        for link in list(self._links):
            link.writer.transport.abort()

    async def _silence(self) -> list[_Link]:
        found = [link for link in self._links if link.watches]
        for link in found:
            link.flowing.clear()
        return found

    async def _resume(self, links: list[_Link]) -> None:
        for link in links:
            link.flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        link.flowing.set()
        self._links.add(link)
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection(*self._upstream, ssl=self._outward)
            pumps = {
                asyncio.ensure_future(self._ask(link, reader, upstream)),
                asyncio.ensure_future(self._answer(link, answers)),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            return  # the API server is not there: the pod sees its connection end
        finally:
            self._links.discard(link)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def _ask(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK):
            line, end, rest = chunk.partition(b"\r\n")
            if line.startswith(b"GET ") and WATCH.search(line):
                link.watches = True
                if self._too_old:
                    line, found = VERSION.subn(rb"\g<1>1", line)
                    self.aged += found
            writer.write(line + end + rest)
            await writer.drain()

    async def _answer(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(CHUNK):
            await link.flowing.wait()
            link.writer.write(chunk)
            await link.writer.drain()


@contextlib.contextmanager
def running(kube: Kube, directory: Path) -> Iterator[Gate]:
    """Run a gate on the address that this machine has in the pods' network."""
    cluster = json.loads(kube.kubeconfig.read_text())["clusters"][0]["cluster"]
    place = urlsplit(cluster["server"])
    upstream = str(place.hostname), int(place.port or 443)
    with socket.create_connection(upstream, 5) as route:
        here = str(route.getsockname()[0])
    outward = ssl.create_default_context(
        cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
    )
    gate = Gate(here, upstream, outward, directory / "gate")
    gate.start()
    try:
        yield gate
    finally:
        gate.stop()
