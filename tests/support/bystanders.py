"""Clients who have every right to be served, going on while a test does its worst to the server."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from support.polling import eventually

PAUSE = 0.02
ROUNDS = 3

Round = Callable[[], None]
"""One request with its checks; raises what went wrong."""


@dataclass(slots=True)
class Bystander:
    """Repeats a round in a thread of its own until `stop`; remembers every failure."""

    name: str
    round: Round
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present round."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(30)
            assert not self._thread.is_alive(), f"{self.name} hangs"

    def _run(self) -> None:
        while not self._stopped.wait(PAUSE):
            try:
                self.round()
                self.rounds += 1
            except Exception as error:
                self.failures.append(f"{self.name}, round {self.rounds}: {error!r}")


class Bystanders:
    """Several of them; `unharmed` is what a test claims."""

    def __init__(self, *bystanders: Bystander) -> None:
        self._all = bystanders

    @contextlib.contextmanager
    def running(self) -> Iterator[Bystanders]:
        """All of them at work for the length of a block; nobody may have failed at its end."""
        for each in self._all:
            each.start()
        try:
            yield self
        finally:
            for each in self._all:
                each.stop()
        self.check()

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Each of them is served during the block, again and again, and at once after it; no round fails."""
        before = self.check()
        yield
        during = self.check()
        idle = [name for name, rounds in during.items() if rounds == before[name]]
        assert not idle, f"not served during the attack: {idle}"

        def served_again() -> bool:
            return all(rounds >= during[name] + ROUNDS for name, rounds in self.check().items())

        eventually(served_again, what="bystanders being served")

    def check(self) -> dict[str, int]:
        """Fail if anybody failed so far; the rounds of each."""
        assert not [failure for each in self._all for failure in each.failures]
        return {each.name: each.rounds for each in self._all}


class KeptAlive:
    """GETs over one connection for as long as the server keeps it; a new one only after it said so."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext) -> None:
        self._connection = http.client.HTTPSConnection(address, port, timeout=10, context=context)

    def get(self, path: str) -> bytes:
        """The body of a 200; http.client opens the connection anew after `connection: close`."""
        return self.send("GET", path)

    def send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The same for any method."""
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        said = answer.read()
        assert answer.status == 200, f"{answer.status} {said[:200]!r}"
        return said


def fresh(address: str, port: int, context: ssl.SSLContext, path: str) -> bytes:
    """The body of a 200 over a connection, with a handshake, of its own."""
    connection = http.client.HTTPSConnection(address, port, timeout=10, context=context)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status == 200, f"{answer.status} {said[:200]!r}"
        return said
