"""What Envoy opens, shares, holds and gives up: sockets, ports, addresses, connections, times."""

from __future__ import annotations

import gzip
import socket
import ssl
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from meshscrape.envoy.bootstrap import bootstrap, dynamic_files
from meshscrape.envoy.listener_table import listeners_table
from meshscrape.envoy.options import GatewayRoute, Upstream
from meshscrape.istio.settings import InboundPort
from meshscrape.system.proc import socket_inodes
from support.addresses import free_port, loopback
from support.envoy import start_envoy, write_resources
from support.polling import eventually
from support.sidecar import (
    SCRAPER,
    SERVER,
    Sidecar,
    echo_server,
    proxy_options,
    publish_credentials,
    running_sidecar,
)
from support.wire import Wire, alert, ask

PATH = "/stats/prometheus"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with running_sidecar(tmp_path_factory.mktemp("sidecar")) as running:
        yield running


@pytest.fixture(scope="module")
def scraper(sidecar: Sidecar) -> ssl.SSLContext:
    return sidecar.forge.leaf(SCRAPER).client_context()


INBOUND = (InboundPort(9080, "STRICT"), InboundPort(9081, "PERMISSIVE", "grpc"), InboundPort(9082, "DISABLE"))
UPSTREAM = Upstream("httpbin", "127.0.0.1", 9, SERVER)


@pytest.mark.parametrize(
    "changes",
    [
        {"inbound": INBOUND},
        {"localhost_only": True},
        {"role": "router", "gateway_port": 8080, "routes": (GatewayRoute("/", UPSTREAM),)},
    ],
    ids=["sidecar", "hardened", "gateway"],
)
def test_start_logs_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    """No warning, of deprecated fields or missing limits, hides the ones that matter."""
    with running_sidecar(tmp_path, options=proxy_options(tmp_path, **changes)) as sidecar:
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        assert ask(sidecar.pod, 15091, PATH, friend).status == 200
    # A gateway's Envoy says that a filter of envoy/resources/server_keys.py is not finished.
    known = ["ENVOY_SIGTERM"] + ["custom_response"] * ("routes" in changes)
    lines = sidecar.envoy.output().splitlines()
    assert [line for line in lines if not any(word in line for word in known)] == []


def test_the_admin_api_is_a_private_socket(sidecar: Sidecar) -> None:
    """The admin API is a Unix socket of mode 0600, and no TCP port beyond the listed ones is open."""
    path = sidecar.envoy.directory / "admin.sock"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = listeners_table(sidecar.envoy.config_dump())
    assert _listening_ports(sidecar.envoy.pid) == {row.port for row in rows}


def test_envoy_opens_no_abstract_socket(sidecar: Sidecar) -> None:
    """Hot restart's socket, on which any process of the pod could stop Envoy, does not exist."""
    inodes = socket_inodes(sidecar.envoy.pid)
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    names = {line[7] for line in lines if len(line) > 7 and line[6] in inodes}
    assert not any(name.startswith("@") for name in names)


@pytest.mark.parametrize(
    "target", ["/quitquitquit", "/runtime_modify?a=b", "/cpuprofiler?enable=y", "/healthcheck/fail"]
)
def test_admin_socket_serves_only_listed_paths(sidecar: Sidecar, target: str) -> None:
    """What the agent never uses is shut on the socket as well."""
    assert sidecar.envoy.admin(target, "POST")[0] == 403
    assert sidecar.envoy.admin("/ready")[0] == 200


def test_a_taken_port_ends_envoy(tmp_path: Path, sidecar: Sidecar) -> None:
    """A second Envoy on the same address fails, naming it, instead of sharing the port silently."""
    options = proxy_options(tmp_path, pod_addresses=sidecar.options.pod_addresses)
    publish_credentials(options, sidecar.forge.leaf(SERVER), sidecar.forge.root)
    write_resources(Path(options.files_dir), dynamic_files(options, ()))
    second = start_envoy(tmp_path, bootstrap(options))
    try:
        assert second.wait() != 0
        assert "Address already in use" in second.output()
    finally:
        second.stop()


def test_port_cannot_be_shared(sidecar: Sidecar) -> None:
    """A process that asks for SO_REUSEPORT cannot steal connections from a secure port."""
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind((sidecar.pod, 15091))


def test_both_families_are_served(tmp_path: Path) -> None:
    """A dual-stack pod has its ports on IPv4 and IPv6, over the same rules."""
    ports = [free_port("::1") for _ in range(4)]
    options = proxy_options(
        tmp_path,
        pod_addresses=(loopback(), "::1"),
        stats_port=ports[0], merged_port=ports[1], secure_stats_port=ports[2], secure_merged_port=ports[3],
        health_port=0,
    )  # fmt: skip
    with running_sidecar(tmp_path, options=options) as sidecar:
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        unlisted = sidecar.forge.leaf(SERVER).client_context()
        for address in options.pod_addresses:
            assert ask(address, ports[0], PATH).status == 200
            assert ask(address, ports[2], PATH, friend).status == 200
            assert ask(address, ports[2], PATH, unlisted).status == 403
            assert ask(address, ports[3], PATH, unlisted).status == 403


def test_hardening_closes_the_plaintext_ports_together(tmp_path: Path) -> None:
    """METRICS_LOCALHOST_ACCESS_ONLY leaves 15090 on the inside address alone, and 15020 to the agent."""
    options = proxy_options(tmp_path, localhost_only=True)
    with running_sidecar(tmp_path, options=options) as sidecar:
        for port in (15090, 15020):
            with pytest.raises(ConnectionRefusedError):
                ask(sidecar.pod, port, PATH)
        assert ask(options.inside_address, 15090, PATH).status == 200
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        assert ask(sidecar.pod, 15091, PATH, friend).status == 200


def test_ports_that_are_off_are_closed(tmp_path: Path) -> None:
    """0 is off, Istio's default for the secure ports."""
    options = proxy_options(tmp_path, secure_stats_port=0, secure_merged_port=0)
    with running_sidecar(tmp_path, options=options) as sidecar:
        for port in (15091, 15092):
            with pytest.raises(ConnectionRefusedError):
                ask(sidecar.pod, port, PATH)


@pytest.mark.parametrize("port", [15090, 15091])
@pytest.mark.parametrize(
    ("accepted", "used"), [("gzip", "gzip"), ("zstd", "zstd"), ("gzip;q=0.5, zstd", "zstd")]
)
def test_answers_are_compressed_as_the_client_asks(
    sidecar: Sidecar, scraper: ssl.SSLContext, port: int, accepted: str, used: str
) -> None:
    """Both compressors act, and the preference of the client decides."""
    with Wire(sidecar.pod, port, scraper if port == 15091 else None) as wire:
        answer = wire.get(PATH, accept_encoding=accepted)
    assert answer.headers["content-encoding"] == used
    if used == "gzip":
        assert b"envoy_server_live" in gzip.decompress(answer.body)
    else:
        assert answer.body.startswith(struct.pack("<I", 0xFD2FB528))


def test_without_a_request_nothing_is_compressed(sidecar: Sidecar) -> None:
    """A client that did not ask for compression gets plain text."""
    assert "content-encoding" not in ask(sidecar.pod, 15090, PATH).headers


def test_directory_may_have_a_long_path(tmp_path: Path) -> None:
    """The admin socket is found by its name, so that a directory may be longer than a socket address."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with running_sidecar(deep) as sidecar:
        assert ask(sidecar.pod, 15090, PATH).status == 200


def test_idle_strangers_are_disconnected(tmp_path: Path) -> None:
    """Connections that never finish the handshake fill the port only until their time is up."""

    def small(config: dict[str, Any]) -> None:
        runtime = config["layered_runtime"]["layers"][0]["static_layer"]
        runtime["envoy.resource_limits.listener.secure_metrics_15091.connection_limit"] = 4
        for chain in _chains(config, "secure_metrics_15091"):
            chain["transport_socket_connect_timeout"] = "2s"

    with running_sidecar(tmp_path, edit=small) as sidecar, ExitStack() as stack:
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        for _ in range(4):
            stack.enter_context(Wire(sidecar.pod, 15091))
        overflow = "listener.secure_metrics_15091.downstream_cx_overflow"
        with pytest.raises(OSError):
            ask(sidecar.pod, 15091, PATH, friend)
        assert sidecar.envoy.stats(overflow)[overflow] > 0
        eventually(lambda: ask(sidecar.pod, 15091, PATH, friend).status == 200, what="room for the scraper")


@pytest.mark.parametrize("port", [15090, 15091])
def test_slow_headers_are_cut_off(tmp_path: Path, port: int) -> None:
    """A client that sends its request drop by drop loses its connection."""

    def short(config: dict[str, Any]) -> None:
        for manager in _managers(config):
            assert manager["request_headers_timeout"] == "5s"
            manager["request_headers_timeout"] = "0.3s"

    with running_sidecar(tmp_path, edit=short) as sidecar:
        friend = sidecar.forge.leaf(SCRAPER).client_context() if port == 15091 else None
        with Wire(sidecar.pod, port, friend) as wire:
            wire.socket.sendall(b"GET /stats/prometheus HTTP/1.1\r\nhost: x\r\n")
            assert _ends(wire)


def test_plaintext_clients_cannot_starve_the_secure_port(tmp_path: Path) -> None:
    """With every place of the plaintext port's breaker taken, the secure port still reaches the agent."""
    with running_sidecar(tmp_path) as sidecar, ExitStack() as stack:
        stack.enter_context(echo_server(sidecar.options.inside_address, 15020))

        overflow = "cluster.merged_metrics.upstream_rq_pending_overflow"

        def occupy() -> int:
            wire = stack.enter_context(Wire(sidecar.pod, 15020))
            wire.socket.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\nx-hang: 1\r\n\r\n".encode())
            return sidecar.envoy.stats(overflow)[overflow]

        eventually(occupy, what="a full plaintext port")
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        assert ask(sidecar.pod, 15092, PATH, friend).status == 200


def _managers(config: dict[str, Any]) -> list[dict[str, Any]]:
    listeners = config["static_resources"]["listeners"]
    chains = [chain for listener in listeners for chain in listener["filter_chains"]]
    return [chain["filters"][-1]["typed_config"] for chain in chains]


def _short(config: dict[str, Any]) -> None:
    """Shorten the times that the shipped configuration sets; add none."""
    for manager in _managers(config):
        common = manager["common_http_protocol_options"]
        common.update({name: "1s" for name in common if name in _DURATIONS})
        manager["drain_timeout"] = "0.3s"


_DURATIONS = ("max_connection_duration", "max_stream_duration")


def test_an_expired_scraper_loses_its_open_connection(tmp_path: Path) -> None:
    """A connection outlives the certificate that opened it by a bounded time, however busy it is kept."""
    with running_sidecar(tmp_path, edit=_short) as sidecar:
        friend = sidecar.forge.leaf(SCRAPER, valid_until=timedelta(seconds=3)).client_context()
        wire = Wire(sidecar.pod, 15091, friend)
        assert wire.get(PATH).status == 200

        def ended() -> bool:
            try:
                wire.get(PATH)
            except (OSError, ValueError):
                return True
            return False

        with wire:
            eventually(ended, what="the end of the connection")
        eventually(
            lambda: alert(sidecar.pod, 15091, friend, 0.5) == "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            what="the alert",
        )


def test_an_answer_under_way_is_cut_at_the_bound(tmp_path: Path) -> None:
    """A request that is never answered does not keep its connection open beyond the bound (HTTP/1.1)."""
    with (
        running_sidecar(tmp_path, edit=_short) as sidecar,
        echo_server(sidecar.options.inside_address, 15020),
    ):
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        with Wire(sidecar.pod, 15092, friend) as wire:
            wire.socket.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\nx-hang: 1\r\n\r\n".encode())
            assert _ends(wire)


def test_a_stream_under_way_is_cut_at_the_bound(tmp_path: Path) -> None:
    """The same for HTTP/2, which Prometheus speaks."""
    with (
        running_sidecar(tmp_path, edit=_short) as sidecar,
        echo_server(sidecar.options.inside_address, 15020),
    ):
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        friend.set_alpn_protocols(["h2"])
        with Wire(sidecar.pod, 15092, friend) as wire:
            protocol = H2Connection(H2Configuration(client_side=True))
            protocol.initiate_connection()
            pseudo = {":method": "GET", ":scheme": "https", ":authority": "pod", ":path": PATH}
            protocol.send_headers(1, [*pseudo.items(), ("x-hang", "1")], end_stream=True)
            wire.socket.sendall(protocol.data_to_send())
            assert _ends(wire)


def test_flood_of_inbound_traffic_does_not_affect_metrics(tmp_path: Path) -> None:
    """The process's bound on connections is the sum of the ports' bounds."""
    options = proxy_options(tmp_path, inbound=(InboundPort(9080, "DISABLE"),))

    def small(config: dict[str, Any]) -> None:
        config["layered_runtime"]["layers"][0]["static_layer"][
            "envoy.resource_limits.listener.inbound_9080.connection_limit"
        ] = 3

    with running_sidecar(tmp_path, options=options, edit=small) as sidecar, ExitStack() as stack:
        overflow = "listener.inbound_9080.downstream_cx_overflow"

        def flood() -> int:
            stack.enter_context(Wire(sidecar.pod, 9080))
            return sidecar.envoy.stats(overflow)[overflow]

        eventually(flood, what="a full application port")
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        assert ask(sidecar.pod, 15091, PATH, friend).status == 200


def _ends(wire: Wire) -> bool:
    """Read until the server closes; a timeout is no end."""
    try:
        while wire.socket.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def _chains(config: dict[str, Any], name: str) -> list[dict[str, Any]]:
    (found,) = [each for each in config["static_resources"]["listeners"] if each["name"] == name]
    chains: list[dict[str, Any]] = found["filter_chains"]
    return chains


def _listening_ports(pid: int) -> set[int]:
    inodes = socket_inodes(pid)
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
