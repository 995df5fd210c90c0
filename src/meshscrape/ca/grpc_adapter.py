"""Access the non-public parts of grpclib in one place.

grpclib is pinned to one version in pyproject.toml because of this module. Before an upgrade, check each
function here and run `tests/integration/test_ca*.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from grpclib.config import Configuration
from grpclib.server import Server, Stream

if TYPE_CHECKING:
    from grpclib._typing import IServable

# The smallest window that HTTP/2 allows, because each connection may hold this many bytes in memory.
_WINDOW_BYTES = 65535


class GrpcServer:
    """Make the HTTP/2 side of connections. The caller accepts and secures them."""

    def __init__(self, services: Collection[IServable]) -> None:
        windows = Configuration(
            http2_connection_window_size=_WINDOW_BYTES, http2_stream_window_size=_WINDOW_BYTES
        )
        self._server = Server(services, config=windows)

    def protocol(self) -> asyncio.Protocol:
        """Return a new protocol for one connection."""
        return self._server._protocol_factory()


def transport_of(stream: Stream[Any, Any]) -> asyncio.BaseTransport:
    """Return the transport that a request came over."""
    return stream.peer._transport


async def receive(stream: Stream[Any, Any], size: int) -> bytes:
    """Return the next `size` bytes of a request's body (b"" at its end).

    Raises AssertionError if the body ends earlier.
    """
    return await stream._stream.recv_data(size)
