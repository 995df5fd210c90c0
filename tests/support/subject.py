"""What `verify` is pointed at: a real Envoy with the shipped configuration, which a test may spoil.

The certificates come from the real CA. What the agent would serve is a plain server here, because its
answers are what a test wants to spoil.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from meshscrape.dataplane.bootstrap import bootstrap, dynamic_files
from meshscrape.dataplane.options import CERTIFICATE_CHAIN, PRIVATE_KEY, ROOTS, ProxyOptions
from meshscrape.istio.scrapers import parse_scrapers
from meshscrape.system.files import publish
from support.ca import CaProcess, Credentials
from support.envoy import running_envoy, write_resources
from support.sidecar import ALLOW, SCRAPER, SERVER, proxy_options

TYPE = "text/plain; version=0.0.4; charset=utf-8"
MERGED = b"""\
# HELP istio_agent_scrapes_total Scrapes.
# TYPE istio_agent_scrapes_total counter
istio_agent_scrapes_total 7
# TYPE envoy_server_live gauge
envoy_server_live{} 1
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 12
# TYPE meshscrape_source_up gauge
meshscrape_source_up{source="envoy"} 1
meshscrape_source_up{source="application:9080"} 1
"""

Bootstrap = dict[str, Any]


@dataclass
class Inside:
    """What answers on the inside address: status, type and body of the merged metrics."""

    status: int = 200
    content_type: str = TYPE
    body: bytes = MERGED


@dataclass(slots=True)
class Plan:
    """What a test changes before Envoy starts; everything else is as shipped."""

    options: Callable[[ProxyOptions], ProxyOptions] = lambda options: options
    edit: Callable[[Bootstrap], None] = lambda config: None
    edit_files: Callable[[dict[str, dict[str, Any]]], None] = lambda files: None
    scrapers: str = ALLOW
    server: Credentials | None = None
    roots: bytes = b""
    inside: Inside = field(default_factory=Inside)


@dataclass(frozen=True, slots=True)
class Identities:
    """Credential directories of the mesh that the subject belongs to, and the scraper's token."""

    ca: CaProcess
    directory: Path

    def workload(self, namespace: str, name: str) -> Path:
        """Where the credentials of NAMESPACE/NAME are; issued when first asked for."""
        path = self.directory / f"{namespace}-{name}"
        if not path.exists():
            self.ca.issue(namespace, name).write(path)
        return path

    def token(self) -> Path:
        """The scraper's token for the CA."""
        path = self.directory / "token"
        if not path.exists():
            path.write_text(self.ca.token("istio-system", "prometheus"))
            path.chmod(0o600)
        return path


@contextlib.contextmanager
def subject(directory: Path, identities: Identities, plan: Plan | None = None) -> Iterator[dict[str, Any]]:
    """A running Envoy, spoiled as `plan` says; yields the status document of the mesh as it should be."""
    plan = plan or Plan()
    honest = proxy_options(directory)
    options = plan.options(honest)
    own = plan.server or _read(identities.workload("default", "httpbin"))
    publish(
        Path(options.secrets.credentials_dir),
        {
            CERTIFICATE_CHAIN: own.chain_pem,
            PRIVATE_KEY: own.key_pem,
            ROOTS: plan.roots or identities.ca.root_pem,
        },
    )
    files = dynamic_files(options, parse_scrapers(plan.scrapers))
    plan.edit_files(files)
    write_resources(Path(options.files_dir), files)
    config: Bootstrap = bootstrap(options)
    plan.edit(config)
    with (
        inside_server(options.inside_address, options.merged_port, plan.inside),
        running_envoy(directory, config),
    ):
        yield status_of(options, identities)


def status_of(options: ProxyOptions, identities: Identities) -> dict[str, Any]:
    """The MeshStatus of a mesh of this sidecar, its scraper, and a third workload that may not scrape."""
    sidecar = _entry(
        "default", "httpbin", SERVER, options.pod_addresses[0], str(identities.workload("default", "httpbin"))
    )
    sidecar |= {
        "kind": "sidecar",
        "insideAddress": options.inside_address,
        "hardened": options.localhost_only,
        "scrapers": [ALLOW],
        "ports": {
            "secure": {"envoy": options.secure_stats_port, "merged": options.secure_merged_port},
            "plaintext": {
                "envoy": options.stats_port,
                "merged": options.merged_port,
                "health": options.health_port,
            },
            "application": [
                {"name": each.name, "port": each.port, "mtls": each.mode} for each in options.inbound
            ],
        },
    }
    scraper = _entry(
        "istio-system",
        "prometheus",
        SCRAPER,
        "127.0.0.1",
        str(identities.workload("istio-system", "prometheus")),
    )
    scraper["token"] = str(identities.token())
    other = _entry(
        "default",
        "other",
        "spiffe://cluster.local/ns/default/sa/other",
        "127.0.0.1",
        str(identities.workload("default", "other")),
    )
    return {
        "apiVersion": "meshscrape.io/v1",
        "kind": "MeshStatus",
        "trustDomain": "cluster.local",
        "ca": {"address": identities.ca.address, "rootCertificate": str(identities.directory / "root.pem")},
        "prometheus": {"url": "", "workload": "istio-system/prometheus"},
        "workloads": [sidecar, other, scraper],
    }


def _entry(namespace: str, name: str, spiffe_id: str, address: str, credentials: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "pod": f"{name}-0",
        "kind": "credentials",
        "spiffeId": spiffe_id,
        "address": address,
        "addresses": [address],
        "insideAddress": address,
        "hardened": False,
        "ports": {"secure": {}, "plaintext": {}, "application": []},
        "credentials": credentials,
        "token": "",
        "scrapers": [],
    }


def _read(directory: Path) -> Credentials:
    return Credentials(
        *((directory / name).read_bytes() for name in ("cert-chain.pem", "key.pem", "root-cert.pem"))
    )


@contextlib.contextmanager
def inside_server(address: str, port: int, inside: Inside) -> Iterator[None]:
    """A plain server on the inside address that answers every GET with what `inside` says at that moment."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = self.path in ("/stats/prometheus", "/metrics", "/healthz/ready")
            body = inside.body if known else b"no such page\n"
            self.send_response(inside.status if known else 404)
            self.send_header("content-type", inside.content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((address, port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


__all__ = ["Identities", "Inside", "Plan", "replace", "subject"]
