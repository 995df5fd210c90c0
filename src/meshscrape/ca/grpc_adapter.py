"""The parts of grpclib that have no public name, in one place.

grpclib is pinned to one version in pyproject.toml because of this module. A new version needs a look at
each function here, and the tests of `tests/integration/test_ca*.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from grpclib.config import Configuration
from grpclib.server import Server, Stream

if TYPE_CHECKING:
    from grpclib._typing import IServable

# The least that HTTP/2 allows: what a peer may have in flight, times the number of connections.
_WINDOW_BYTES = 65535


class GrpcServer:
    """Makes the HTTP/2 side of connections that somebody else accepts and secures."""

    def __init__(self, services: Collection[IServable]) -> None:
        windows = Configuration(
            http2_connection_window_size=_WINDOW_BYTES, http2_stream_window_size=_WINDOW_BYTES
        )
        self._server = Server(services, config=windows)

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of one new connection."""
        return self._server._protocol_factory()


def transport_of(stream: Stream[Any, Any]) -> asyncio.BaseTransport:
    """Return the transport that a request came over."""
    return stream.peer._transport


async def receive(stream: Stream[Any, Any], size: int) -> bytes:
    """Return the next `size` bytes of a request's body (b"" at its end).

    AssertionError when the body ends before that.
    """
    return await stream._stream.recv_data(size)
