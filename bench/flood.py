"""What a peer without a credential does to the CA: silent connections, opened again, and TLS handshakes.

A process of its own, so that its work is not the measured process's: `python -m bench.flood ADDRESS`.
Prints one JSON line a second with what it has reached, until SIGTERM or `--seconds`. One thread: threads of
Python would wait for each other more than they work.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time
from collections import deque

from bench.hello import HandshakeFailed, Hello

# Connections that have shaken hands and say nothing: the newest are kept open.
_HELD = 600
# Handshakes under way. With more, the generator would measure its own queue.
_UNDER_WAY = 400
_PATIENCE = 15.0
_BURST = 200


class Flood:
    """The connections of one flood, and how many there were."""

    def __init__(self, address: tuple[str, int], source: str, silent: int, rate: float) -> None:
        self.silent = 0
        self.opened = 0
        self.handshakes = 0
        self.failures = 0
        self._address = address
        self._source = source
        self._wanted = silent
        self._rate = rate
        self._due = time.monotonic()
        self._events = selectors.DefaultSelector()
        self._shaking: dict[socket.socket, float] = {}
        self._held: deque[socket.socket] = deque()

    def turn(self) -> None:
        """Open what is wanted, and do what can be done within 20 ms."""
        for _ in range(min(self._wanted - self.silent, _BURST)):
            self._open_silent()
        now = time.monotonic()
        while self._rate and self._due <= now and len(self._shaking) < _UNDER_WAY:
            self._due = max(self._due + 1 / self._rate, now - 1)
            self._begin_handshake(now)
        for key, _ in self._events.select(0.02):
            key.data()

    def give_up(self) -> None:
        """End the handshakes that take longer than `_PATIENCE`."""
        late = time.monotonic() - _PATIENCE
        for each in [each for each, began in self._shaking.items() if began < late]:
            self._fail(each)

    def _connect(self) -> socket.socket:
        opened = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET)
        opened.setblocking(False)
        if self._source:
            opened.bind((self._source, 0))
        opened.connect_ex(self._address)
        return opened

    def _open_silent(self) -> None:
        opened = self._connect()
        self.silent += 1
        self.opened += 1

        def ended() -> None:
            self._events.unregister(opened)
            opened.close()
            self.silent -= 1

        # It is readable when the CA ends it, or when it could not be opened.
        self._events.register(opened, selectors.EVENT_READ, ended)

    def _begin_handshake(self, now: float) -> None:
        opened = self._connect()
        self._shaking[opened] = now

        hello = Hello()

        def connected() -> None:
            self._events.modify(opened, selectors.EVENT_READ, lambda: self._shake(opened, hello))
            try:
                opened.send(hello.first())
            except OSError:
                self._fail(opened)

        self._events.register(opened, selectors.EVENT_WRITE, connected)

    def _shake(self, opened: socket.socket, hello: Hello) -> None:
        try:
            data = opened.recv(16384)
            if not data:
                raise HandshakeFailed("the CA ended the connection")
            if not (answer := hello.feed(data)):
                return
            opened.send(answer)
        except (OSError, HandshakeFailed):
            self._fail(opened)
            return
        del self._shaking[opened]
        self._events.unregister(opened)
        self.handshakes += 1
        self._held.append(opened)
        if len(self._held) > _HELD:
            self._held.popleft().close()

    def _fail(self, shaking: socket.socket) -> None:
        del self._shaking[shaking]
        self._events.unregister(shaking)
        shaking.close()
        self.failures += 1


def main() -> None:
    """Flood until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="ADDRESS:PORT of the CA")
    parser.add_argument("--silent", type=int, default=2000, help="silent connections (default: 2000)")
    parser.add_argument("--rate", type=float, default=500, help="handshakes a second (default: 500)")
    parser.add_argument("--seconds", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--source", default="", help="the address to connect from")
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    flood = Flood((host.strip("[]"), int(port)), options.source, options.silent, options.rate)
    began = second = time.monotonic()
    before = (0, 0)
    while second - began < options.seconds:
        flood.turn()
        if (now := time.monotonic()) < second + 1:
            continue
        flood.give_up()
        done = flood.handshakes, flood.opened
        line = {
            "silent": flood.silent,
            "handshakes": round((done[0] - before[0]) / (now - second)),
            "opened": round((done[1] - before[1]) / (now - second)),
            "failures": flood.failures,
        }
        second, before = now, done
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
