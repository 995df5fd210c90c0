"""What `verify` is pointed at: a real Envoy with the shipped configuration, which a test may spoil.

The certificates come from the real CA. What the agent would serve is a plain server here, because its
answers are what a test wants to spoil.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from meshscrape.envoy.bootstrap import bootstrap, dynamic_files
from meshscrape.envoy.options import SCRAPERS_BUNDLE, SidecarOptions
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.system.files import publish
from support.addresses import loopback
from support.ca import CaProcess, Credentials
from support.envoy import running_envoy, write_resources
from support.serving import serving
from support.sidecar import ALLOW, proxy_options

APPLICATION = 9080
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


@dataclass(frozen=True, slots=True)
class Inside:
    """What answers on the inside address: status, type and body of the merged metrics."""

    status: int = 200
    content_type: str = TYPE
    body: bytes = MERGED


@dataclass(frozen=True, slots=True)
class Spoiled:
    """What differs from the shipped sidecar; the status document still describes the promised one.

    `promised` and `real` change the options of both and of Envoy alone, `edit` its bootstrap;
    `scraper_roots` are trusted to vouch for scrapers beside the mesh's own.
    """

    promised: Callable[[SidecarOptions], SidecarOptions] = lambda options: options
    real: Callable[[SidecarOptions], SidecarOptions] = lambda options: options
    edit: Callable[[Bootstrap], None] = lambda config: None
    scrapers: str = ALLOW
    scraper_roots: bytes = b""
    server: Callable[[Identities], Credentials] | None = None
    inside: Inside = field(default_factory=Inside)


@dataclass(frozen=True, slots=True)
class Identities:
    """Credential directories of the mesh that subjects belong to, issued by its real CA."""

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

    def read(self, namespace: str, name: str) -> Credentials:
        """The same credentials in memory."""
        files = ("cert-chain.pem", "key.pem", "root-cert.pem")
        return Credentials(*((self.workload(namespace, name) / file).read_bytes() for file in files))


@contextlib.contextmanager
def subject(
    directory: Path, identities: Identities, name: str, spoiled: Spoiled | None = None
) -> Iterator[dict[str, Any]]:
    """A running workload default/`name`, spoiled; yields its entry in the status as if it were not."""
    spoiled = spoiled or Spoiled()
    directory.mkdir()
    promised = spoiled.promised(proxy_options(directory))
    options = spoiled.real(promised)
    if spoiled.scraper_roots:
        options = replace(options, secrets=replace(options.secrets, scrapers_bundle=SCRAPERS_BUNDLE))
    own = spoiled.server(identities) if spoiled.server else identities.read("default", name)
    secrets = {
        CERTIFICATE_CHAIN_FILE: own.chain_pem,
        PRIVATE_KEY_FILE: own.key_pem,
        ROOTS_FILE: identities.ca.root_pem,
    }
    secrets[SCRAPERS_BUNDLE] = identities.ca.root_pem + spoiled.scraper_roots
    publish(Path(options.secrets.credentials_dir), secrets)
    write_resources(Path(options.files_dir), dynamic_files(options, parse_scrapers(spoiled.scrapers)))
    config: Bootstrap = bootstrap(options)
    spoiled.edit(config)
    with contextlib.ExitStack() as stack:
        for port in (options.merged_port, APPLICATION):
            stack.enter_context(inside_server(options.inside_address, port, spoiled.inside))
        stack.enter_context(running_envoy(directory, config))
        yield sidecar_entry(promised, identities, name)


def sidecar_entry(options: SidecarOptions, identities: Identities, name: str) -> dict[str, Any]:
    """What the status says about a sidecar with these options."""
    application = [
        {"name": each.name, "port": each.port, "mtls": each.mode, "metrics": "/metrics"}
        for each in options.inbound
    ]
    plaintext = {"envoy": options.stats_port, "merged": options.merged_port, "health": options.health_port}
    return _entry(identities, "default", name) | {
        "kind": "sidecar",
        "address": options.pod_addresses[0],
        "addresses": list(options.pod_addresses),
        "insideAddress": options.inside_address,
        "hardened": options.localhost_only,
        "scrapers": [ALLOW],
        "ports": {
            "secure": {"envoy": options.secure_stats_port, "merged": options.secure_merged_port},
            "plaintext": plaintext,
            "application": application,
        },
    }


def mesh_status(identities: Identities, sidecars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The MeshStatus of these sidecars, a scraper, and one workload more that may not scrape."""
    scraper = _entry(identities, "istio-system", "prometheus") | {"token": str(identities.token())}
    root = identities.workload("istio-system", "prometheus") / "root-cert.pem"
    return {
        "apiVersion": "meshscrape.io/v1",
        "kind": "MeshStatus",
        "trustDomain": "cluster.local",
        "ca": {"address": identities.ca.address, "rootCertificate": str(root)},
        "prometheus": {"url": "", "workload": "istio-system/prometheus"},
        "workloads": [scraper, _entry(identities, "default", "other"), *sidecars],
    }


def _entry(identities: Identities, namespace: str, name: str) -> dict[str, Any]:
    pod, inside = loopback(), loopback()
    return {
        "name": name,
        "namespace": namespace,
        "pod": f"{name}-0",
        "kind": "credentials",
        "spiffeId": f"spiffe://cluster.local/ns/{namespace}/sa/{name}",
        "address": pod,
        "addresses": [pod],
        "insideAddress": inside,
        "hardened": False,
        "ports": {"secure": {}, "plaintext": {}, "application": []},
        "credentials": str(identities.workload(namespace, name)),
        "token": "",
        "scrapers": [],
    }


@contextlib.contextmanager
def inside_server(address: str, port: int, inside: Inside) -> Iterator[None]:
    """A plain server that answers as `inside` says on the agent's three paths, whatever the method."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            known = self.path in ("/stats/prometheus", "/metrics", "/healthz/ready")
            body = inside.body if known else b"no such page\n"
            self.send_response(inside.status if known else 404)
            self.send_header("content-type", inside.content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((address, port), Handler)
    with serving(server):
        yield
