"""The process of a gRPC peer: `python -m support.grpc_process` takes operations from standard input.

Operations and answers are pickled; the process ends with its standard input.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]

from support.forgery import Pair
from support.sds import Secrets

Metadata = Sequence[tuple[str, str]]


class Operations:
    """What a peer can be asked to do, each method by its name."""

    def __init__(self) -> None:
        self._channel: grpc.Channel = None
        self._secrets: Secrets | None = None
        self._seen: list[dict[str, Any]] = []
        self._stop: list[Callable[[], object]] = []

    def open(self, address: str, roots: bytes, key: bytes | None, chain: bytes | None) -> None:
        """Open the channel of `call` and `call_without_message`, in place of the one before."""
        self.close()
        tls = grpc.ssl_channel_credentials(roots, key, chain)
        # Without a subchannel pool of its own, a channel reuses the connection of an equal one before it.
        self._channel = grpc.secure_channel(address, tls, options=[("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        """Close the channel, if there is one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def call(self, method: str, message: bytes, metadata: Metadata, timeout: float) -> bytes:
        """Send one message; return the response's."""
        response: bytes = self._channel.unary_unary(method)(message, timeout=timeout, metadata=metadata)
        return response

    def call_without_message(self, method: str, metadata: Metadata, timeout: float) -> bytes:
        """Begin a call and send no message, until the server ends it."""
        ended = threading.Event()

        def nothing() -> Iterator[bytes]:
            ended.wait(timeout + 10)
            yield from ()

        try:
            invoke = self._channel.stream_unary(method)
            response: bytes = invoke(nothing(), timeout=timeout, metadata=metadata)
            return response
        finally:
            ended.set()

    def serve(
        self, method: str, key: bytes, chain: bytes, response: bytes, refusal: tuple[str, str] | None
    ) -> str:
        """Serve `method` with one answer, a response or the status and details of a refusal; the address."""

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = dict(context.invocation_metadata())
            self._seen.append(
                {"message": request, "metadata": metadata, "deadline": context.time_remaining()}
            )
            if refusal is not None:
                context.abort(grpc.StatusCode[refusal[0]], refusal[1])
            return response

        server = self._server(method, grpc.unary_unary_rpc_method_handler(answer))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
        server.start()
        return f"127.0.0.1:{port}"

    def seen(self) -> list[dict[str, Any]]:
        """Return what `serve` was asked: message, metadata and the seconds that were left."""
        return self._seen

    def serve_secrets(self, method: str, socket: str, pair: Pair, roots: bytes) -> None:
        """Serve secret discovery on a Unix socket."""
        self._secrets = secrets = Secrets(pair, roots)
        handler = grpc.stream_stream_rpc_method_handler(lambda requests, context: _stream(secrets, requests))
        server = self._server(method, handler)
        assert server.add_insecure_port(f"unix:{socket}")
        server.start()
        self._stop.insert(0, secrets.close)

    def replace_secrets(self, pair: Pair, roots: bytes) -> None:
        """Push new secrets to every stream."""
        assert self._secrets is not None
        self._secrets.replace(pair, roots)

    def asked_secrets(self) -> set[str]:
        """Return the names of the secrets that were asked for."""
        assert self._secrets is not None
        return self._secrets.asked

    def stop(self) -> None:
        """Stop every server and close the channel."""
        for stop in self._stop:
            stop()
        self.close()

    def _server(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.Server:
        service, _, name = method.strip("/").partition("/")
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
        self._stop.append(lambda: server.stop(1).wait(10))
        return server


def _stream(secrets: Secrets, requests: Iterator[bytes]) -> Iterator[bytes]:
    def until_refused() -> Iterator[bytes]:
        with contextlib.suppress(grpc.RpcError):
            yield from requests

    return secrets.stream(until_refused())


def main() -> None:
    """Answer operations until standard input ends."""
    operations = Operations()
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            answer = ("done", getattr(operations, name)(*arguments))
        except grpc.RpcError as error:
            answer = ("refused", (error.code().name, error.details()))
        except Exception:
            answer = ("failed", traceback.format_exc())
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    operations.stop()


if __name__ == "__main__":
    main()
