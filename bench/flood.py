"""What a peer without a credential does to the CA: silent connections, opened again, and TLS handshakes.

A process of its own, so that its work is not the measured process's: `python -m bench.flood ADDRESS`.
Prints one JSON line a second with what it has reached, until SIGTERM or `--seconds`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable

_WORKERS = 8
# Connections that have shaken hands and say nothing: the newest are kept open.
_HELD = 600


class Flood:
    """Counts of one flood, and whether it goes on."""

    def __init__(self, address: tuple[str, int], source: str) -> None:
        self.address = address
        self.source = source
        self.going = True
        self.silent = 0
        self.opened = 0
        self.handshakes = 0
        self.failures = 0
        self._lock = threading.Lock()
        self._held: deque[ssl.SSLSocket] = deque()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2"])

    def connect(self) -> socket.socket:
        """Open one TCP connection."""
        return socket.create_connection(self.address, 5, (self.source, 0) if self.source else None)

    def stay_silent(self, number: int) -> None:
        """Keep `number` connections open that say nothing; each that the CA ends is opened again."""
        with selectors.DefaultSelector() as ends:
            while self.going:
                for _ in range(min(number - self.silent, 200)):
                    try:
                        ends.register(self.connect(), selectors.EVENT_READ)
                    except OSError:
                        break
                    self.silent += 1
                    self.opened += 1
                for key, _ in ends.select(0.05):
                    ends.unregister(key.fileobj)
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.close()
                    self.silent -= 1

    def shake_hands(self, rate: float) -> None:
        """Complete `rate` handshakes a second, and say nothing afterwards."""
        due = time.monotonic()
        while self.going:
            due = max(due + 1 / rate, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                tls = self._context.wrap_socket(self.connect())
            except OSError:
                with self._lock:
                    self.failures += 1
                continue
            with self._lock:
                self.handshakes += 1
                self._held.append(tls)
                oldest = self._held.popleft() if len(self._held) > _HELD else None
            if oldest is not None:
                with contextlib.suppress(OSError):
                    oldest.close()


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
    flood = Flood((host, int(port)), options.source)
    work: list[Callable[[], None]] = []
    if options.silent:
        work.append(lambda: flood.stay_silent(options.silent))
    if options.rate:
        work += [lambda: flood.shake_hands(options.rate / _WORKERS)] * _WORKERS
    for one in work:
        threading.Thread(target=one, daemon=True).start()
    began, before = time.monotonic(), (0, 0)
    while time.monotonic() - began < options.seconds:
        time.sleep(1)
        now = flood.handshakes, flood.opened
        line = {
            "silent": flood.silent,
            "handshakes": now[0] - before[0],
            "opened": now[1] - before[1],
            "failures": flood.failures,
        }
        before = now
        print(json.dumps(line), flush=True)
    flood.going = False


if __name__ == "__main__":
    main()
