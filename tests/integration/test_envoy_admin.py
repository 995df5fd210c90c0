"""Questions to a running Envoy on its admin socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from meshscrape.agent.credentials import CaClientOptions, CredentialRenewer
from meshscrape.agent.issued import judge
from meshscrape.agent.publication import Places
from meshscrape.agent.served import ServedCertificate
from meshscrape.errors import UnavailableError
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.envoy_admin import EnvoyAdmin
from support.polling import eventually, eventually_async
from support.sidecar import SERVER, Sidecar, publish_credentials, running_sidecar

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """An Envoy in a directory whose path is longer than a socket's address may be."""
    directory = tmp_path_factory.mktemp("long") / ("d" * 120)
    directory.mkdir()
    with running_sidecar(directory) as running:
        yield running


@pytest.fixture
def admin(sidecar: Sidecar) -> EnvoyAdmin:
    """Its admin interface."""
    return EnvoyAdmin(sidecar.envoy.directory / "admin.sock")


def test_a_running_envoy_is_ready(admin: EnvoyAdmin) -> None:
    """`/ready` of a live Envoy, at a socket with a long path."""
    assert asyncio.run(admin.ready())


def test_admin_returns_the_running_listeners_and_configuration(admin: EnvoyAdmin, sidecar: Sidecar) -> None:
    """The secure port is among the bound listeners and in the configuration."""
    listeners = asyncio.run(admin.listeners())["listener_statuses"]
    bound = [each["local_address"]["socket_address"] for each in listeners]
    assert {"address": sidecar.pod, "port_value": 15091} in bound
    dump = asyncio.run(admin.config_dump())
    assert any(part["@type"].endswith("BootstrapConfigDump") for part in dump["configs"])


def test_statistics_are_filtered_by_name(admin: EnvoyAdmin) -> None:
    """A pattern keeps the counters and gauges that match it, characters special in a URL included."""
    assert asyncio.run(admin.stats(r"^server\.live$")) == {"server.live": 1}
    assert "server.live" in asyncio.run(admin.stats())
    assert asyncio.run(admin.stats("a&b")) == {}


def test_envoy_without_a_socket_is_not_ready(tmp_path: Path) -> None:
    """Without an Envoy readiness is false, and a question is an error that names the socket."""
    admin = EnvoyAdmin(tmp_path / "admin.sock")
    assert not asyncio.run(admin.ready())
    with pytest.raises(UnavailableError, match=r"admin\.sock: Envoy's admin interface: cannot connect"):
        asyncio.run(admin.certs())


def test_a_closed_path_is_an_error_with_its_status(admin: EnvoyAdmin) -> None:
    """What the admin interface refuses is not taken for an empty answer."""
    with pytest.raises(UnavailableError, match=r"Envoy answers 40[34] to /quitquitquit"):
        asyncio.run(admin._json("/quitquitquit"))


def test_a_certificate_that_envoy_does_not_serve_is_noticed(
    admin: EnvoyAdmin, sidecar: Sidecar, tmp_path: Path
) -> None:
    """`current` is false while Envoy shows another serial number, and true once it follows."""
    pair = sidecar.forge.leaf(SERVER)
    identity = SpiffeId.parse(SERVER)
    root = sidecar.forge.root
    options = CaClientOptions(
        "127.0.0.1:1", tmp_path / "root", tmp_path / "token", identity, ttl=timedelta(hours=1)
    )
    credentials = CredentialRenewer(options, Places(tmp_path / "credentials"))
    credentials.issued = judge(
        pair.key, pair.chain, root, expected=identity, now=datetime.now(UTC), where="test"
    )

    async def scenario() -> None:
        served = ServedCertificate(admin, credentials)
        following = asyncio.create_task(served.follow())

        async def noticed() -> bool:
            return served.current is False

        async def current() -> bool:
            return served.current is True

        await eventually_async(noticed)
        publish_credentials(sidecar.options, pair, root)
        await eventually_async(current)
        following.cancel()

    asyncio.run(scenario())
    serial = x509.load_pem_x509_certificate(pair.chain).serial_number
    eventually(lambda: serial in asyncio.run(admin.serials()))
