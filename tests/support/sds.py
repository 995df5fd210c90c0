"""A secret discovery server over gRPC on a Unix socket, as Istio's agent is one for its Envoy.

Messages are written and read here by hand (envoy.service.discovery.v3, transport_sockets.tls.v3), so that
nothing of the product is needed to test it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from support.forgery import Pair
from support.grpc_peer import GrpcPeer, serving_peer

METHOD = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


class Secrets:
    """The secrets `default` and `ROOTCA`; `replace` pushes new ones to every stream."""

    def __init__(self, pair: Pair, roots: bytes) -> None:
        self._pair, self._roots = pair, roots
        self._version = 1
        self._changed = threading.Condition()
        self._closed = False
        self.asked: set[str] = set()

    def replace(self, pair: Pair, roots: bytes) -> None:
        """New secrets, from now on."""
        with self._changed:
            self._pair, self._roots = pair, roots
            self._version += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End every stream."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stream(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """One StreamSecrets: answer what is asked for, and again whenever it changes."""
        names: tuple[str, ...] = ()
        ended = threading.Event()

        def read() -> None:
            nonlocal names
            for request in requests:
                with self._changed:
                    names = tuple(value.decode() for number, value in _fields(request) if number == 3)
                    self.asked |= set(names)
                    self._changed.notify_all()
            ended.set()
            with self._changed:
                self._changed.notify_all()

        threading.Thread(target=read, daemon=True).start()
        sent: tuple[int, tuple[str, ...]] = (0, ())

        def has_news() -> bool:
            news = bool(names) and (self._version, names) != sent
            return news or self._closed or ended.is_set()

        while True:
            with self._changed:
                self._changed.wait_for(has_news)
                if self._closed or ended.is_set():
                    return
                sent = (self._version, names)
                resources = [self._secret(name) for name in names]
            yield self._response(sent[0], resources)

    def _secret(self, name: str) -> bytes:
        if name == "ROOTCA":
            return _field(1, name.encode()) + _field(4, _field(1, _inline(self._roots)))
        certificate = _field(1, _inline(self._pair.chain)) + _field(2, _inline(self._pair.key))
        return _field(1, name.encode()) + _field(2, certificate)

    def _response(self, version: int, resources: list[bytes]) -> bytes:
        text = str(version).encode()
        packed = [_field(1, _SECRET.encode()) + _field(2, each) for each in resources]
        body = b"".join(_field(2, each) for each in packed)
        return _field(1, text) + body + _field(4, _SECRET.encode()) + _field(5, text)


class SecretServer:
    """A running secret discovery server."""

    def __init__(self, peer: GrpcPeer) -> None:
        self._peer = peer

    @property
    def asked(self) -> set[str]:
        """The names of the secrets that were asked for."""
        names: set[str] = self._peer.ask("asked_secrets")
        return names

    def replace(self, pair: Pair, roots: bytes) -> None:
        """Push new secrets to every stream."""
        self._peer.ask("replace_secrets", pair, roots)


@contextlib.contextmanager
def sds_server(socket: Path, pair: Pair, roots: bytes) -> Iterator[SecretServer]:
    """Serve the secrets on the Unix socket."""
    with serving_peer() as peer:
        peer.ask("serve_secrets", METHOD, str(socket), pair, roots)
        yield SecretServer(peer)


def _inline(data: bytes) -> bytes:
    """A DataSource with inline_bytes."""
    return _field(2, data)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message; others are passed over."""
    rest = data
    while rest:
        key, rest = _read(rest)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, rest = _read(rest)
        elif kind == 2:
            length, rest = _read(rest)
            yield number, rest[:length]
            rest = rest[length:]
        else:
            rest = rest[8 if kind == 1 else 4 :]


def _read(data: bytes) -> tuple[int, bytes]:
    number = 0
    for index, byte in enumerate(data):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, data[index + 1 :]
    raise AssertionError("a varint without an end")
