"""gRPC peers of another implementation than the product's (grpcio), each in a process of its own.

grpcio in the test process would run its fork handlers in every child that a test forks with Python code
before exec, and would slow the others down. What a peer does is in `support.grpc_process`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class GrpcRefusal(Exception):
    """A call that ended with another status than OK."""

    def __init__(self, code: str, details: str) -> None:
        self.code = code
        self.details = details
        super().__init__(code, details)


class GrpcPeer:
    """A process with grpcio; it ends with this one, which holds its standard input."""

    def __init__(self) -> None:
        tests = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.grpc_process"],
            env={**os.environ, "PYTHONPATH": tests},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._one_at_a_time = threading.Lock()

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Return the result of `operation` of the peer; GrpcRefusal when its call was refused."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._one_at_a_time:
            pickle.dump((operation, arguments), self._process.stdin)
            self._process.stdin.flush()
            outcome, value = pickle.load(self._process.stdout)
        if outcome == "refused":
            raise GrpcRefusal(*value)
        assert outcome == "done", value
        return value

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(15)


@functools.cache
def client() -> GrpcPeer:
    """Return the peer that makes the calls of this test process."""
    peer = GrpcPeer()
    atexit.register(peer.stop)
    return peer


@contextlib.contextmanager
def serving_peer() -> Iterator[GrpcPeer]:
    """A peer for the time of a block, for what it is to serve."""
    peer = GrpcPeer()
    try:
        yield peer
    finally:
        peer.stop()
