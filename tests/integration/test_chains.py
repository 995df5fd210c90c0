"""The product's judgement of certificate chains beside a real Envoy's: the same chains, the same verdicts."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import certificates_to_pem
from meshscrape.spiffe.chains import Purpose, path_to_root
from support.chains import Chain, Maker, cases
from support.envoy import running_envoy
from support.polling import eventually

CASES = cases()
ROOTS: list[x509.Certificate] = [root for case in CASES.values() for root in case.roots]
NAMES = sorted(CASES)


def context(chain: Chain, *, server: bool) -> ssl.SSLContext:
    """A TLS context that shows a chain, however weak, and takes any peer."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.set_ciphers("DEFAULT:@SECLEVEL=0")
    if not server:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pair.pem")
        path.write_bytes(chain.shown[0].key_pem + certificates_to_pem(chain.certificates))
        made.load_cert_chain(path)
    return made


class Shown:
    """A TLS server that shows the chain whose number the client names (SNI), and answers one request."""

    def __init__(self) -> None:
        self._contexts = [context(CASES[name], server=True) for name in NAMES]
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        self._front = context(CASES["a leaf below a root"], server=True)
        self._front.sni_callback = self._choose
        threading.Thread(target=self._serve, daemon=True).start()

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._contexts[int((name or "case-0").rpartition("-")[2])]

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(accepted,), daemon=True).start()

    def _answer(self, accepted: socket.socket) -> None:
        accepted.settimeout(10)
        with (
            contextlib.suppress(OSError),
            accepted,
            self._front.wrap_socket(accepted, server_side=True) as tls,
        ):
            if tls.recv(65536):
                tls.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    def close(self) -> None:
        self._listening.close()


def bootstrap(directory: Path, server: int) -> dict[str, Any]:
    """One listener that asks for a client certificate, and one cluster for each chain of `server`."""
    bundle = {"trusted_ca": {"filename": str(directory / "roots.pem")}}
    pair = {
        "certificate_chain": {"filename": str(directory / "chain.pem")},
        "private_key": {"filename": str(directory / "key.pem")},
    }
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"

    def cluster(number: int) -> dict[str, Any]:
        endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server}}}
        upstream = {"@type": f"{tls}.UpstreamTlsContext", "sni": f"case-{number}",
                    "common_tls_context": {"validation_context": bundle}}  # fmt: skip
        return {
            "name": f"case-{number}", "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": f"case-{number}",
                                "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": upstream},
        }  # fmt: skip

    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
                 ".HttpConnectionManager",
        "stat_prefix": "chains",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            *({"match": {"path": f"/case-{number}"}, "route": {"cluster": f"case-{number}"}}
              for number in range(len(NAMES))),
            {"match": {"prefix": "/"}, "direct_response": {"status": 200}},
        ]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }  # fmt: skip

    def listener(name: str, secured: bool) -> dict[str, Any]:
        chain: dict[str, Any] = {
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        }
        if secured:
            downstream = {
                "@type": f"{tls}.DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": {"tls_certificates": [pair], "validation_context": bundle},
            }
            chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": downstream}
        return {"name": name, "filter_chains": [chain],
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}  # fmt: skip

    return {
        "admin": {"address": {"pipe": {"path": "admin.sock"}}},
        "static_resources": {
            "listeners": [listener("secured", True), listener("plain", False)],
            "clusters": [cluster(number) for number in range(len(NAMES))],
        },
    }


class Envoy:
    """The running Envoy's verdicts."""

    def __init__(self, secured: int, plain: int) -> None:
        self._secured, self._plain = secured, plain

    def accepts_client(self, chain: Chain) -> bool:
        """Whether it serves a client that shows `chain`."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._secured, timeout=20, context=context(chain, server=False)
        )
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (ssl.SSLError, ConnectionError):
            return False
        finally:
            connection.close()

    def accepts_server(self, name: str) -> bool:
        """Whether it forwards a request to a server that shows the chain of a case."""
        connection = http.client.HTTPConnection("127.0.0.1", self._plain, timeout=20)
        try:
            connection.request("GET", f"/case-{NAMES.index(name)}")
            return connection.getresponse().status == 200
        finally:
            connection.close()


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    """A stock Envoy that trusts the roots of every case."""
    directory = tmp_path_factory.mktemp("chains")
    maker = Maker("the server itself")
    own = maker.leaf(maker.make())
    (directory / "chain.pem").write_bytes(certificates_to_pem([own.certificate]))
    (directory / "key.pem").write_bytes(own.key_pem)
    (directory / "roots.pem").write_bytes(b"".join(root.public_bytes(Encoding.PEM) for root in ROOTS))
    server = Shown()
    with running_envoy(directory, bootstrap(directory, server.port)) as running:
        ports = eventually(lambda: listening(running.admin("/listeners?format=json")[1]), what="its ports")
        yield Envoy(*ports)
    server.close()


def listening(document: bytes) -> tuple[int, int]:
    found = {one["name"]: one["local_address"]["socket_address"]["port_value"]
             for one in json.loads(document).get("listener_statuses", ())}  # fmt: skip
    return (found["secured"], found["plain"]) if len(found) == 2 else (0, 0)


def verdict(chain: Chain, purpose: Purpose) -> str:
    """The product's: empty when it accepts, else the code of what is wrong."""
    try:
        path_to_root(chain.certificates, ROOTS, datetime.now(UTC), purposes=[purpose])
    except InputError as error:
        assert error.code
        return error.code
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_equal_envoys(envoy: Envoy, name: str) -> None:
    """Envoy accepts a chain, from a client and from a server, exactly when the product does."""
    chain = CASES[name]
    ours = {purpose: verdict(chain, purpose) for purpose in Purpose}
    theirs = {Purpose.CLIENT: envoy.accepts_client(chain), Purpose.SERVER: envoy.accepts_server(name)}
    if chain.stricter:
        assert set(ours.values()) == {chain.stricter} and all(theirs.values())
    else:
        assert {purpose: code == "" for purpose, code in ours.items()} == theirs, ours
