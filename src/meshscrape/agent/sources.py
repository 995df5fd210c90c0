"""The sources of a workload's merged metrics, and reading one of them ahead of its turn."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import ssl
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.exposition.negotiate import Declared, Format, accept_header, declared_format
from meshscrape.exposition.source import MergeLimits
from meshscrape.istio.host_port import host_port
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.system.http.client import FetchedResponse, FetchLimits, fetch_stream

_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class MergedOptions:
    """The sources to merge: the application's endpoints on `inside_address`, Envoy by its admin socket."""

    sources: tuple[ScrapeSource, ...] = ()
    inside_address: str = "127.0.0.1"
    envoy_admin: Path | None = None
    merge_envoy: bool = True
    allow_scrape_series: bool = False
    limits: MergeLimits = field(default_factory=MergeLimits)


@dataclass(frozen=True, slots=True)
class MergedSource:
    """One source: its URL and its name; `kind` is `envoy` or `application`."""

    name: str
    url: str
    kind: str
    host: str
    unix_socket: Path | None = None


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time limit for reading and merging one source, by the loop's clock.

    `own` is the source's limit, `latest` the limit of all sources. A source that had to wait for its turn may
    exceed its own limit, because the wait was not its fault.
    """

    own: float
    latest: float
    merge_by: float

    def after_waiting(self, now: float) -> float:
        """Return the limit of a source that was held up until `now`: half of the remaining time."""
        return now + (self.latest - now) / 2

    def after_timeout(self, now: float) -> Deadline:
        """Return the deadline of a source that used up its time: the other sources need the rest."""
        return replace(self, merge_by=now + (self.merge_by - now) / 3)


class State(enum.Enum):
    """The state of a fetch: asked, answered (reading its body), held up (waiting for its turn), ended."""

    ASKED = enum.auto()
    ANSWERED = enum.auto()
    HELD_UP = enum.auto()
    ENDED = enum.auto()


class ReadAhead:
    """A queue, bounded in bytes, for a source that waits for its turn."""

    def __init__(self, bound: int) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._bound = bound
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False

    @property
    def is_full(self) -> bool:
        """Return whether reading the source must pause."""
        return self._size >= self._bound

    @property
    def is_empty(self) -> bool:
        """Return whether the next `take` waits for the source, or says that it has ended."""
        return not self._pieces

    def put(self, piece: bytes) -> None:
        """Append a piece without waiting."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._changed.set()

    def end(self) -> None:
        """Mark the end of the source."""
        self._ended = True
        self._changed.set()

    async def room(self) -> None:
        """Wait until a caller of `take` has made room."""
        self._taken.clear()
        await self._taken.wait()

    async def take(self, most: int) -> bytes:
        """Wait for bytes and return at most `most` of them; return none at the end."""
        while not self._pieces:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        pieces = [self._first(most)]
        size = len(pieces[0])
        # Join small pieces, because a merge has costs per call as well as per byte.
        while self._pieces and size + len(self._pieces[0]) <= most:
            pieces.append(self._pieces.popleft())
            size += len(pieces[-1])
        self._size -= size
        self._taken.set()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _first(self, most: int) -> bytes:
        piece = self._pieces.popleft()
        if len(piece) > most:
            self._pieces.appendleft(piece[most:])
        return piece[:most]


class Fetch:
    """One source being read, ahead of its turn by a bounded number of bytes."""

    def __init__(
        self,
        source: MergedSource,
        asked: Format,
        deadline: Deadline,
        ahead: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.source = source
        self.state = State.ASKED
        self.answered = asyncio.Event()  # its header has arrived, or it has failed
        self.declared: Declared | None = None  # what its header says, if that can be merged
        self.problem = ""  # why it sent no whole exposition; known once ENDED
        self.complete = False  # the transport said that the body is whole
        self.seconds = 0.0
        self.deadline = deadline
        self._asked = asked
        self._queue = ReadAhead(ahead)
        self._tls = tls
        self._timeout: asyncio.Timeout | None = None
        self._its_turn = False
        self._refused = ""

    async def run(self) -> None:
        """Read the source until its end or its deadline; set `problem` if the exposition is incomplete."""
        clock = asyncio.get_running_loop().time
        started = clock()
        self.problem = "was not read to its end"
        try:
            async with asyncio.timeout_at(self.deadline.own) as self._timeout:
                await self._read()
            self.problem = ""
        except TimeoutError:
            # The text is a label value, so it has no seconds: each different text would be a new series.
            self.problem = "did not answer whole in time"
            self.deadline = self.deadline.after_timeout(clock())
        except MeshscrapeError as error:
            self.problem = error.what
        finally:
            self.seconds = clock() - started
            self.state = State.ENDED
            self.answered.set()
            self._queue.end()

    def refuse(self, why: str) -> None:
        """Discard the source."""
        self._refused = why

    async def pieces(self, most: int) -> AsyncIterator[bytes]:
        """Yield the body in pieces of at most `most` bytes.

        When the time to merge this source is over, set `problem` and end, to leave time for other sources.
        """
        clock = asyncio.get_running_loop().time
        if self._refused:
            raise UnavailableError(self._refused)
        self._begin_turn()
        while piece := await self._queue.take(most):
            if clock() > self.deadline.merge_by:
                raise UnavailableError("could not be merged in the scrape's time")
            yield piece
            if not self._queue.is_empty:
                # The next piece is taken without waiting: let other tasks run first.
                await asyncio.sleep(0)

    def _begin_turn(self) -> None:
        """Let the source be read without pauses; if it was held up, give it half of the remaining time."""
        self._its_turn = True
        if self.state is State.HELD_UP and self._timeout is not None:
            now = asyncio.get_running_loop().time()
            self._timeout.reschedule(self.deadline.after_waiting(now))

    async def _read(self) -> None:
        headers = {
            # Send this Host, as Istio does, and not the inside address: some applications check the Host.
            "Host": self.source.host,
            "Accept": accept_header(self._asked),
            "User-Agent": "meshscrape-agent",
        }
        url, location = self.source.url, ""
        for _ in range(2):
            async with self._request(url, headers) as response:
                location = _redirect(response, url, self.source.host)
                if not location:
                    self.declared = _checked(response, self._asked)
                    self.state = State.ANSWERED
                    self.answered.set()
                    async for chunk in response.body:
                        await self._keep(chunk)
                    self.complete = response.complete
                    return
            url = location
        raise UnavailableError("redirects more than once")

    def _request(
        self, url: str, headers: dict[str, str]
    ) -> contextlib.AbstractAsyncContextManager[FetchedResponse]:
        now = asyncio.get_running_loop().time()
        # The timeout of `run` limits the source, because it knows which waits are not the source's fault.
        left = self.deadline.latest - now
        timeout = {"X-Prometheus-Scrape-Timeout-Seconds": f"{self.deadline.own - now:.3f}"}
        return fetch_stream(
            url,
            unix_socket=self.source.unix_socket,
            headers=headers | timeout,
            limits=FetchLimits(connect=left, read=left, total=left),
            tls=self._tls,
        )

    async def _keep(self, chunk: bytes) -> None:
        self._queue.put(chunk)
        while self._queue.is_full:
            if not self._its_turn and self._timeout is not None:
                # Reading pauses until the source's turn. That wait is not the source's fault.
                self.state = State.HELD_UP
                self._timeout.reschedule(self.deadline.latest)
            await self._queue.room()
        if self.state is State.HELD_UP and self._its_turn:
            self.state = State.ANSWERED


def sources_of(options: MergedOptions) -> tuple[MergedSource, ...]:
    """Return the sources in their order: Envoy, then applications as declared."""
    ports = [source.port for source in options.sources]
    envoy = []
    if options.merge_envoy and options.envoy_admin is not None:
        envoy = [
            MergedSource(
                "envoy", "http://localhost/stats/prometheus", "envoy", "localhost", options.envoy_admin
            )
        ]
    return (
        *envoy,
        *(
            MergedSource(
                f"application:{source.port}" + (source.path if ports.count(source.port) > 1 else ""),
                f"{source.scheme}://{host_port(options.inside_address, source.port)}{source.path}",
                "application",
                f"localhost:{source.port}",
            )
            for source in options.sources
        ),
    )


def loopback_tls() -> ssl.SSLContext:
    """Return the TLS context for applications that serve their metrics over https.

    Certificates are not verified: only processes in the same pod can answer on the workload's own loopback
    address, so a name in a certificate would add no security.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _redirect(response: FetchedResponse, url: str, host: str) -> str:
    """Return a redirect's URL on the same host and port, empty without a redirect.

    Frameworks redirect `/metrics` to `/metrics/`. Raises UnavailableError for another host or port, because
    it may belong to a stranger.
    """
    location = response.headers.get("location", "")
    if response.status not in _REDIRECTS or not location:
        return ""
    here = urlsplit(url)
    try:
        there = urlsplit(urljoin(f"{here.scheme}://{host}{here.path}", location))
        same = (there.scheme, there.netloc) in ((here.scheme, host), (here.scheme, here.netloc))
    except ValueError:
        same = False
    if not same:
        raise UnavailableError("redirects to another address or port, which is not followed")
    query = f"?{there.query}" if there.query else ""
    return f"{here.scheme}://{here.netloc}{there.path or '/'}{query}"


def _checked(response: FetchedResponse, asked: Format) -> Declared:
    """Return the format of an answer that can be merged. Raise UnavailableError for every other answer."""
    if response.status != 200:
        raise UnavailableError(f"answered with status {response.status}")
    declared = declared_format(response.content_type)
    if declared is None or (declared.format is Format.PROTOBUF and asked is Format.TEXT):
        raise UnavailableError(f"answered with Content-Type {response.content_type[:60]!r}")
    return declared
