"""The kubelet's server: `kubectl logs`, and `kubectl exec` over a WebSocket (protocol v5.channel.k8s.io)."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from conformance.cluster.certificates import Pki
from conformance.cluster.pod import Pod

PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, STATUS, CLOSE = 0, 1, 2, 3, 255
BINARY, CLOSING, PING, PONG = 2, 8, 9, 10
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
Find = Callable[[str, str], Pod | None]


def serve(address: str, port: int, pki: Pki, find: Find) -> ThreadingHTTPServer:
    """Serve in a thread of its own. Only the API server's client certificate is accepted."""

    class Handler(_Handler):
        pods = staticmethod(find)

    server = _Server((address, port), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = pki.pair("kubelet")
    tls.load_cert_chain(certificate, key)
    tls.load_verify_locations(pki.ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, name="kubelet", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients without a certificate, such as a Prometheus that looks for kubelets."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pods: Find

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Serve `/containerLogs/NAMESPACE/POD/CONTAINER` and `/exec/NAMESPACE/POD/CONTAINER`."""
        parts = urlsplit(self.path)
        words = [unquote(word) for word in parts.path.strip("/").split("/")]
        query = parse_qs(parts.query, keep_blank_values=True)
        if len(words) != 4 or words[0] not in ("containerLogs", "exec"):
            self.send_error(404)
            return
        pod = self.pods(words[1], words[2])
        if pod is None or words[3] not in pod.containers:
            self.send_error(404, f"no container {words[3]} of pod {words[2]} runs")
            return
        if words[0] == "containerLogs":
            self._logs(pod, words[3], query)
        elif self.headers.get("Upgrade", "").lower() != "websocket":
            self.send_error(400, f"this kubelet speaks only WebSocket ({PROTOCOL})")
        else:
            self._exec(pod, words[3], query)

    do_POST = do_GET

    def _logs(self, pod: Pod, container: str, query: dict[str, list[str]]) -> None:
        text = pod.log_file(container).read_bytes()
        if "tailLines" in query:
            number = int(query["tailLines"][0])
            text = b"".join(text.splitlines(keepends=True)[-number:]) if number else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = True
        if query.get("follow") == ["true"]:
            self._follow(pod, pod.log_file(container))

    def _follow(self, pod: Pod, file: Path) -> None:
        with open(file, "rb") as log:
            log.seek(0, 2)
            while not pod.gone:
                self.wfile.write(log.read())
                self.wfile.flush()
                time.sleep(0.2)

    def _exec(self, pod: Pod, container: str, query: dict[str, list[str]]) -> None:
        try:
            words, values = pod.containers[container].enter(query["command"])
        except (RuntimeError, KeyError) as error:
            self.send_error(400, str(error))
            return
        accept = base64.b64encode(
            hashlib.sha1(f"{self.headers['Sec-WebSocket-Key']}{MAGIC}".encode()).digest()
        )
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept.decode())
        self.send_header("Sec-WebSocket-Protocol", PROTOCOL)
        self.end_headers()
        self.close_connection = True
        wants_input = query.get("input", ["0"])[0] in ("1", "true")
        session = _Session(self.rfile, self.wfile)
        session.run(words, values, wants_input)


class _Session:
    """One `kubectl exec`: a process, and a WebSocket that carries its streams."""

    def __init__(self, reader: BufferedIOBase, writer: BufferedIOBase) -> None:
        self._reader, self._writer, self._lock = reader, writer, threading.Lock()

    def run(self, words: list[str], values: dict[str, str], wants_input: bool) -> None:
        child = subprocess.Popen(
            words,
            env=values,
            stdin=subprocess.PIPE if wants_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert child.stdout is not None and child.stderr is not None
        pumps = [
            threading.Thread(target=self._pump, args=(stream, channel), daemon=True)
            for stream, channel in ((child.stdout, STDOUT), (child.stderr, STDERR))
        ]
        for pump in pumps:
            pump.start()
        threading.Thread(target=self._receive, args=(child,), daemon=True).start()
        code = child.wait()
        for pump in pumps:
            pump.join()
        self._send(BINARY, bytes([STATUS]) + json.dumps(exit_status(code)).encode())
        self._send(CLOSING, struct.pack("!H", 1000))

    def _pump(self, stream: BinaryIO, channel: int) -> None:
        while data := stream.read1(65536):  # type: ignore[attr-defined]
            self._send(BINARY, bytes([channel]) + data)

    def _send(self, kind: int, data: bytes) -> None:
        try:
            with self._lock:
                self._writer.write(frame(kind, data))
                self._writer.flush()
        except OSError:  # the client has gone; the process ends by itself or with its pod
            return

    def _receive(self, child: subprocess.Popen[bytes]) -> None:
        try:
            while True:
                kind, data = read_frame(self._reader)
                if kind == PING:
                    self._send(PONG, data)
                elif kind == CLOSING:
                    break
                elif kind == BINARY and data and child.stdin is not None:
                    if data[0] == STDIN:
                        child.stdin.write(data[1:])
                        child.stdin.flush()
                    elif data[0] == CLOSE and data[1:2] == bytes([STDIN]):
                        child.stdin.close()
        except (OSError, EOFError, ValueError):
            pass
        if child.poll() is None:
            child.terminate()


def exit_status(code: int) -> dict[str, object]:
    """Return the Status object that tells kubectl a command's exit code."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    causes = [{"reason": "ExitCode", "message": str(code)}]
    message = f"command terminated with non-zero exit code: exit status {code}"
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": message,
        "details": {"causes": causes},
    }


def frame(kind: int, data: bytes) -> bytes:
    """Return an unfragmented, unmasked WebSocket frame."""
    if len(data) < 126:
        length = bytes([len(data)])
    elif len(data) < 2**16:
        length = bytes([126]) + struct.pack("!H", len(data))
    else:
        length = bytes([127]) + struct.pack("!Q", len(data))
    return bytes([0x80 | kind]) + length + data


def read_frame(reader: BufferedIOBase) -> tuple[int, bytes]:
    """Read one frame and return its kind and its unmasked data."""
    first, second = _exactly(reader, 2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", _exactly(reader, 2))
    elif length == 127:
        (length,) = struct.unpack("!Q", _exactly(reader, 8))
    mask = _exactly(reader, 4) if second & 0x80 else bytes(4)
    data = _exactly(reader, length)
    return first & 0x0F, bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


def _exactly(reader: BufferedIOBase, number: int) -> bytes:
    data = reader.read(number)
    if len(data) != number:
        raise EOFError
    return data
