"""The CA's port: accept connections and carry out the decisions of `admission`."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
import time
from collections.abc import Callable

from meshscrape.ca.admission import (
    Active,
    Admission,
    Arrived,
    Cause,
    ConnectionStage,
    Decision,
    Elapsed,
    Ended,
    Event,
    Exhausted,
    Greeted,
    Limits,
    Proved,
    Secured,
    TurnTaken,
    decide,
)
from meshscrape.ca.bounded_logs import PressureLog
from meshscrape.ca.connections import Connection
from meshscrape.ca.metrics import Metrics
from meshscrape.system.clock import utcnow

BACKLOG = 4096
# Bytes that a peer can fill before it has proved anything. It is enough for one request and small, because
# each place may use as much.
RECEIVE_BUFFER = 32768
_ACCEPTS_AT_ONCE = 64
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_PAUSE = 0.1
SWEEP_SECONDS = 0.25
# File descriptors of the process that are not connections.
_OWN_DESCRIPTORS = 64


class BoundedServer:
    """Accept TLS connections within the limits of `admission`.

    `context` may be replaced at any time; later handshakes use the new one.
    """

    def __init__(
        self,
        make_protocol: Callable[[], asyncio.Protocol],
        identify: Callable[[bytes], str],
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        """Prepare to accept connections.

        `identify` returns the owner of a client certificate (DER), empty if it is not a workload's.
        """
        self.context: ssl.SSLContext | None = None
        self._make_protocol = make_protocol
        self._identify = identify
        self._metrics = metrics
        self._admission = Admission(limits)
        self._connections: dict[int, Connection] = {}
        self._next = 0
        self._listening: socket.socket | None = None
        self._turn_planned = False
        self._greeted_at: dict[int, float] = {}
        self._pressure = PressureLog()
        metrics.connections(self._admission)

    def listen(self, listening: socket.socket) -> None:
        """Accept connections on a bound socket, which `stop` closes."""
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    def stop(self) -> None:
        """Stop accepting, and end every connection."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
        self.end_connections()

    def end_connections(self) -> None:
        """End every connection now, answered or not, also during the handshake."""
        for connection in tuple(self._connections.values()):
            connection.end(Cause.SERVER)

    async def sweep(self) -> None:
        """End connections whose time is over, and log what was ended; never return."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._on(Elapsed())
            self._pressure.say(utcnow())

    # Events of connections (see `connections.Owner`).

    def greeted(self, connection: Connection) -> None:
        """Put the connection into the queue for handshakes."""
        self._greeted_at[connection.number] = time.monotonic()
        self._on(Greeted(connection.number))
        self._plan_turn()

    def secured(self, connection: Connection, certificate: bytes | None) -> None:
        """Count a complete handshake, and record what the client certificate proves."""
        self._metrics.handshakes += 1
        identity = self._identify(certificate) if certificate else ""
        self._on(Secured(connection.number, identity))

    def active(self, connection: Connection) -> None:
        """Record that the peer has sent something."""
        self._on(Active(connection.number))

    def proved(self, connection: Connection, identity: str) -> None:
        """Record what a request has proved."""
        self._on(Proved(connection.number, identity))

    def ended(self, connection: Connection, cause: Cause) -> None:
        """Forget a connection, and count why it ended."""
        stage = self._admission.stage(connection.number)
        if self._connections.pop(connection.number, None) is None or stage is None:
            return
        self._greeted_at.pop(connection.number, None)
        self._metrics.ended(stage, cause)
        self._pressure.note(stage, cause, connection.address)
        self._on(Ended(connection.number))

    def _on(self, event: Event) -> None:
        self._carry_out(decide(self._admission, event, time.monotonic()))

    def _carry_out(self, decision: Decision) -> None:
        for number, cause in decision.end:
            if connection := self._connections.get(number):
                connection.end(cause)
        started = None if decision.start is None else self._connections.get(decision.start)
        if started is not None and self.context is not None:
            began = self._greeted_at.pop(started.number, None)
            if began is not None:
                self._metrics.waited(time.monotonic() - began)
            started.shake_hands(self.context, self._make_protocol)

    def _plan_turn(self) -> None:
        # One handshake per round of the event loop, so that other ready connections are served in between.
        if not self._turn_planned and self._admission.count(ConnectionStage.WAITING):
            self._turn_planned = True
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_planned = False
        self._on(TurnTaken())
        self._plan_turn()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._listening is None:
                return
            try:
                accepted, peer = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause()
                return
            self._arrived(accepted, str(peer[0]))

    def _arrived(self, accepted: socket.socket, address: str) -> None:
        accepted.setblocking(False)
        self._next += 1
        self._metrics.accepted += 1
        connection = Connection(self._next, accepted, address, self)
        self._connections[connection.number] = connection
        self._on(Arrived(connection.number, address))
        if connection.number in self._connections:
            connection.await_greeting()

    def _pause(self) -> None:
        """End a connection that has proved nothing, and accept again after a pause."""
        self._on(Exhausted())
        loop, listening = asyncio.get_running_loop(), self._listening
        if listening is None:
            return
        loop.remove_reader(listening.fileno())

        def resume() -> None:
            if self._listening is listening:
                loop.add_reader(listening.fileno(), self._accept)

        loop.call_later(_EXHAUSTED_PAUSE, resume)


def limits_of_process(limits: Limits) -> Limits:
    """Raise the process's limit of open files as needed, and return `limits` scaled to what it allows."""
    wanted = sum(limits.places(stage) for stage in ConnectionStage) + _OWN_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return limits if soft == resource.RLIM_INFINITY else limits.within(soft - _OWN_DESCRIPTORS)
