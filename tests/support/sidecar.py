"""A workload for tests: credentials, configuration, a real Envoy, and a server for what is inside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from meshscrape.envoy.bootstrap import bootstrap, dynamic_files
from meshscrape.envoy.options import SCRAPERS_BUNDLE, SecretFiles, SidecarOptions
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.system.files import publish
from support.addresses import loopback
from support.envoy import RunningEnvoy, running_envoy, write_resources
from support.forgery import Forge, Pair
from support.serving import serving

SCRAPER = "spiffe://cluster.local/ns/istio-system/sa/prometheus"
SERVER = "spiffe://cluster.local/ns/default/sa/httpbin"
ALLOW = f"spiffe:{SCRAPER}"

Edit = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Sidecar:
    """A running Envoy with what it was made from; change files through it while it runs."""

    options: SidecarOptions
    forge: Forge
    envoy: RunningEnvoy

    @property
    def pod(self) -> str:
        return self.options.pod_addresses[0]

    def allow(self, scrapers: str) -> None:
        """Replace the allow list, as the agent does."""
        write_resources(Path(self.options.files_dir), dynamic_files(self.options, parse_scrapers(scrapers)))


def proxy_options(directory: Path, **changes: Any) -> SidecarOptions:
    """A sidecar's options with everything on, at addresses of its own."""
    options = SidecarOptions(
        node_id="sidecar~httpbin-0.default",
        cluster="httpbin.default",
        role="sidecar",
        pod_addresses=(loopback(),),
        inside_address=loopback(),
        secrets=SecretFiles(str(directory / "credentials")),
        admin_socket="admin.sock",
        stats_port=15090,
        merged_port=15020,
        health_port=15021,
        secure_stats_port=15091,
        secure_merged_port=15092,
        localhost_only=False,
        inbound=(),
        trust_domain="cluster.local",
        files_dir=str(directory / "files"),
    )
    return replace(options, **changes)


def publish_credentials(
    options: SidecarOptions, pair: Pair, roots: bytes, scraper_roots: bytes = b""
) -> None:
    """Switch the credentials directory to this certificate and these roots."""
    files = {CERTIFICATE_CHAIN_FILE: pair.chain, PRIVATE_KEY_FILE: pair.key, ROOTS_FILE: roots}
    if scraper_roots:
        files[SCRAPERS_BUNDLE] = scraper_roots
    publish(Path(options.secrets.credentials_dir), files)


@contextlib.contextmanager
def running_sidecar(
    directory: Path,
    *,
    forge: Forge | None = None,
    options: SidecarOptions | None = None,
    scrapers: str = ALLOW,
    scraper_roots: bytes = b"",
    identity: str = SERVER,
    edit: Edit | None = None,
) -> Iterator[Sidecar]:
    """Envoy with the shipped configuration; `edit` may change the bootstrap (shorter times, say)."""
    forge = forge or Forge()
    options = options or proxy_options(directory)
    publish_credentials(options, forge.leaf(identity), forge.root, scraper_roots)
    write_resources(Path(options.files_dir), dynamic_files(options, parse_scrapers(scrapers)))
    config: dict[str, Any] = bootstrap(options)
    if edit is not None:
        edit(config)
    with running_envoy(directory, config) as envoy:
        yield Sidecar(options, forge, envoy)


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        if "x-hang" in self.headers:
            self.rfile.read()
            return
        if self.headers.get("upgrade") == "websocket":
            self._switch()
            return
        length = int(self.headers.get("content-length", 0))
        seen = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.rfile.read(length).decode(),
        }
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _switch(self) -> None:
        self.send_response(101)
        self.send_header("connection", "upgrade")
        self.send_header("upgrade", "websocket")
        self.end_headers()
        self.wfile.write(self.rfile.read(4))
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def echo_server(address: str, port: int) -> Iterator[None]:
    """A server whose answer is the request that it saw, as JSON.

    A request with `x-hang` is never answered; a web socket gets its first four bytes back.
    """
    server = ThreadingHTTPServer((address, port), _Echo)
    server.daemon_threads = True
    with serving(server):
        yield
