"""The bootstrap override, merged into an Istio-shaped bootstrap as Istio's agent does it, on a real Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from meshscrape.envoy import bounds
from meshscrape.envoy.override import BOOTSTRAP_FILE, SCRAPERS_FILE, OverrideOptions, allow_list, override
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.verify.run import VerifyOptions, verify
from support.addresses import loopback
from support.ca import ca_process
from support.envoy import RunningEnvoy
from support.forgery import Forge, Pair
from support.istio_proxy import istio_bootstrap, running_istio_envoy, start_istio_envoy
from support.polling import eventually
from support.sds import SecretServer, sds_server
from support.sidecar import ALLOW, SCRAPER, SERVER, proxy_options
from support.subject import (
    Identities,
    Inside,
    inside_server,
    mesh_status,
    sidecar_entry,
)
from support.wire import Wire, ask

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
STRANGER = "spiffe://cluster.local/ns/default/sa/stranger"


@dataclass(slots=True)
class Volume:
    """A ConfigMap as kubelet mounts it: files are links through `..data`, which one rename switches."""

    directory: Path
    version: int = 0

    def write(self, files: dict[str, str]) -> None:
        """Switch the whole volume to `files`."""
        self.version += 1
        content = self.directory / f"..{self.version}"
        content.mkdir(parents=True)
        for name, text in files.items():
            (content / name).write_text(text)
            with contextlib.suppress(FileExistsError):
                (self.directory / name).symlink_to(f"..data/{name}")
        link = self.directory / "..data_tmp"
        link.symlink_to(content.name)
        link.rename(self.directory / "..data")


@dataclass(slots=True)
class Proxy:
    """A running proxy with the override."""

    address: str
    forge: Forge
    secrets: SecretServer
    envoy: RunningEnvoy
    volume: Volume
    files: dict[str, str]

    def allow(self, scrapers: str) -> None:
        """Change the ConfigMap's allow list."""
        self.files[SCRAPERS_FILE] = json.dumps(allow_list(parse_scrapers(scrapers)))
        self.volume.write(self.files)

    def status(self, identity: Pair, port: int = 15092, path: str = "/stats/prometheus") -> object:
        return ask(self.address, port, path, identity.client_context()).status


def options_at(address: str, volume: Path) -> OverrideOptions:
    return OverrideOptions(15092, 15091, (address,), str(volume), "ConfigMap default/meshscrape-bootstrap")


@contextlib.contextmanager
def sockets() -> Iterator[Path]:
    """A directory whose path is short enough for a Unix socket's address."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@contextlib.contextmanager
def proxy(
    directory: Path,
    *,
    own: Pair | None = None,
    roots: bytes = b"",
    edit: Callable[[Any], Any] = lambda it: it,
) -> Iterator[Proxy]:
    """An Istio-shaped Envoy with the override, an agent behind it, and secrets over gRPC."""
    forge = Forge()
    address = loopback()
    volume = Volume(directory / "custom-bootstrap")
    files = {
        BOOTSTRAP_FILE: json.dumps(edit(override(options_at(address, volume.directory)))),
        SCRAPERS_FILE: json.dumps(edit(allow_list(parse_scrapers(ALLOW)))),
    }
    volume.write(files)
    with contextlib.ExitStack() as stack:
        socket = stack.enter_context(sockets()) / "socket"
        pair = own or forge.leaf(SERVER)
        secrets = stack.enter_context(sds_server(socket, pair, roots or forge.root))
        stack.enter_context(inside_server(address, 15020, Inside()))
        main = istio_bootstrap(address, socket)
        envoy = stack.enter_context(running_istio_envoy(directory, main, files[BOOTSTRAP_FILE]))
        yield Proxy(address, forge, secrets, envoy, volume, files)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("proxy")) as found:
        yield found


def test_the_scraper_reads_both_ports(running: Proxy) -> None:
    """With secrets from the agent over gRPC, the listed scraper reads Envoy's and the merged metrics."""
    scraper = running.forge.leaf(SCRAPER).client_context()
    stats = ask(running.address, 15091, "/stats/prometheus", scraper)
    merged = ask(running.address, 15092, "/metrics", scraper)
    assert b"envoy_server_live" in stats.body
    assert b"istio_agent_scrapes_total" in merged.body
    assert running.secrets.asked == {"default", "ROOTCA"}


def test_other_workloads_of_the_mesh_are_refused(running: Proxy) -> None:
    """A certificate of the mesh is not enough: who is not listed gets 403 that names the list."""
    answer = ask(
        running.address,
        15092,
        "/metrics",
        running.forge.leaf(STRANGER).client_context(),
    )
    assert answer.status == 403
    assert b"ConfigMap default/meshscrape-bootstrap" in answer.body


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bits", [1024, 1536, 2040, 2041, 2047])
def test_a_scraper_with_an_rsa_key_below_2048_bits_is_refused(
    running: Proxy, bits: int, version: ssl.TLSVersion
) -> None:
    """Its own key, or that of a CA between it and the root: both ports say why."""
    weak = running.forge.leaf(SCRAPER, rsa_bits=bits), running.forge.intermediate("short", bits).leaf(SCRAPER)
    for pair in weak:
        for port in (15091, 15092):
            answer = ask(running.address, port, "/stats/prometheus", pair.client_context(maximum=version))
            assert answer.status == 403
            assert b"[RSA_key_below_2048_bits]" in answer.body
    strong = running.forge.intermediate("long", 2048).leaf(SCRAPER, rsa_bits=2048)
    assert ask(running.address, 15092, "/metrics", strong.client_context(maximum=version)).status == 200


def test_nothing_is_lost_or_renamed_in_the_merge(running: Proxy) -> None:
    """Istio's own listener stays, both new ones are there, each with its connection limit."""
    dump = json.dumps(running.envoy.config_dump())
    for name in (
        "0.0.0.0_15090",
        "meshscrape_secure_metrics_15091",
        "meshscrape_secure_merged_metrics_15092",
    ):
        assert f'"name": "{name}"' in dump
    layers = json.loads(running.envoy.admin("/runtime")[1])["entries"]
    limit = layers["envoy.resource_limits.listener.meshscrape_secure_metrics_15091.connection_limit"]
    assert limit["final_value"] == str(bounds.SECURE_CONNECTIONS)


def test_envoy_understands_every_field(running: Proxy) -> None:
    """No field is dropped with a warning: what is written is what holds."""
    assert "unknown field" not in running.envoy.output().lower()
    assert not running.envoy.stats("static_unknown_fields")["server.static_unknown_fields"]
    assert not running.envoy.stats("dynamic_unknown_fields")["server.dynamic_unknown_fields"]


def test_a_changed_configmap_changes_the_allow_list(running: Proxy) -> None:
    """The list is followed while Envoy runs: kubelet's switch of the volume is enough."""
    stranger, scraper = running.forge.leaf(STRANGER), running.forge.leaf(SCRAPER)
    running.allow(f"spiffe:{STRANGER}")
    eventually(lambda: running.status(stranger) == 200 and running.status(scraper) == 403)
    running.allow(ALLOW)
    eventually(lambda: running.status(stranger) == 403 and running.status(scraper) == 200)


def test_a_renewed_certificate_is_served(tmp_path: Path) -> None:
    """A certificate that the agent pushes replaces the old one without a restart."""
    with proxy(tmp_path) as running:
        renewed = running.forge.leaf(SERVER)
        running.secrets.replace(renewed, running.forge.root)
        want = ssl.PEM_cert_to_DER_cert(renewed.chain.decode())

        def served() -> bool:
            context = running.forge.leaf(SCRAPER).client_context()
            with Wire(running.address, 15092, context) as wire:
                assert isinstance(wire.socket, ssl.SSLSocket)
                return wire.socket.getpeercert(binary_form=True) == want

        eventually(served, what="the renewed certificate")


def test_verify_finds_nothing(tmp_path: Path) -> None:
    """The local mesh's own checks of secure ports all pass on the override."""
    (tmp_path / "ca").mkdir()
    (tmp_path / "proxy").mkdir()
    with ca_process(tmp_path / "ca") as ca:
        identities = Identities(ca, tmp_path / "identities")
        (tmp_path / "identities").mkdir()
        own = identities.read("default", "httpbin")
        pair = Pair(own.chain_pem, own.key_pem)
        with proxy(tmp_path / "proxy", own=pair, roots=ca.root_pem) as running:
            promised = replace(proxy_options(tmp_path), pod_addresses=(running.address,))
            entry: dict[str, Any] = sidecar_entry(promised, identities, "httpbin")
            entry["ports"]["plaintext"] = {}
            # Other tests' servers may listen on the machine's own addresses.
            options = VerifyOptions(skip=frozenset({"exposed-metrics"}))
            report = asyncio.run(verify(mesh_status(identities, [entry]), options))
    assert [str(finding) for finding in report.findings] == []
    passed = {result.check for result in report.checks if result.outcome == "passed"}
    assert {
        "scraper-admitted",
        "unlisted-workload",
        "other-ca",
        "expired-certificate",
        "paths",
    } <= passed
    assert {
        "session-resumption",
        "methods",
        "legacy-tls",
        "no-certificate",
        "plain-http",
    } <= passed


def without_matchers(value: Any) -> Any:
    """The configuration as an Envoy understands it that does not know RBAC's matcher."""
    if isinstance(value, dict):
        return {key: without_matchers(item) for key, item in value.items() if key != "matcher"}
    return [without_matchers(item) for item in value] if isinstance(value, list) else value


def test_envoy_without_matchers_refuses_every_client(tmp_path: Path) -> None:
    """Istio's agent lets Envoy drop fields that it does not know: what is left lets nobody in."""
    with proxy(tmp_path, edit=without_matchers) as running:
        for identity in (SCRAPER, STRANGER):
            assert running.status(running.forge.leaf(identity)) == 403


def test_envoy_does_not_start_with_a_port_that_istio_has_open(tmp_path: Path) -> None:
    """Why bootstrap mode turns the native listeners off: two listeners on one address are refused."""
    address = loopback()
    main = istio_bootstrap(address, tmp_path / "none")
    main["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = 15092
    text = json.dumps(override(options_at(address, tmp_path)))
    (tmp_path / SCRAPERS_FILE).write_text(json.dumps(allow_list(())))
    envoy = start_istio_envoy(tmp_path, main, text)
    try:
        assert envoy.wait() != 0
    finally:
        envoy.stop()
    assert "duplicate address" in envoy.output()
