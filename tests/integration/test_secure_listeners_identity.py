"""Who may scrape: names on certificates, the allow list while Envoy runs, rotation, scrapers from outside."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from meshscrape.envoy.bootstrap import bootstrap, dynamic_files
from meshscrape.envoy.names import SCRAPERS_FILE
from meshscrape.envoy.options import SCRAPERS_BUNDLE, SecretFiles
from meshscrape.system.files import write_atomic
from support.envoy import running_envoy, start_envoy, write_resources
from support.forgery import Forge
from support.polling import eventually
from support.sidecar import (
    ALLOW,
    SCRAPER,
    SERVER,
    Sidecar,
    proxy_options,
    publish_credentials,
    running_sidecar,
)
from support.wire import Wire, alert, ask

OTHER = "spiffe://cluster.local/ns/default/sa/other"
PATH = "/stats/prometheus"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    allow = f"{ALLOW},dns:prometheus.example.com,spiffe:spiffe://partner.example/*"
    with running_sidecar(tmp_path_factory.mktemp("sidecar"), scrapers=allow) as running:
        yield running


ACCEPTED = {
    "the listed workload": ((SCRAPER,), ()),
    "the listed workload with a DNS name": ((SCRAPER,), ("anything.example",)),
    "the listed DNS name": ((), ("prometheus.example.com",)),
    "a workload of the listed trust domain": (("spiffe://partner.example/ns/a/sa/b",), ()),
}
REFUSED = {
    "another workload": ((OTHER,), ()),
    "nobody": ((), ()),
    "two URI SANs, the listed one first": ((SCRAPER, OTHER), ()),
    "two URI SANs, the listed one last": ((OTHER, SCRAPER), ()),
    "the listed URI SAN twice": ((SCRAPER, SCRAPER), ()),
    "a DNS SAN that spells the ID": ((), (SCRAPER,)),
    "another workload, with a DNS SAN that spells the ID": ((OTHER,), (SCRAPER,)),
    "a URI SAN that spells the DNS name": (("prometheus.example.com",), ()),
    "a longer path": ((f"{SCRAPER}/x",), ()),
    "a longer name": ((f"{SCRAPER}x",), ()),
    "a trailing slash": ((f"{SCRAPER}/",), ()),
    "a trailing newline": ((f"{SCRAPER}\n",), ()),
    "a trailing space": ((f"{SCRAPER} ",), ()),
    "a trailing NUL": ((f"{SCRAPER}\0",), ()),
    "other case of the trust domain": (("spiffe://CLUSTER.local/ns/istio-system/sa/prometheus",), ()),
    "other case of the scheme": (("SPIFFE://cluster.local/ns/istio-system/sa/prometheus",), ()),
    "other case of the path": (("spiffe://cluster.local/ns/istio-system/sa/Prometheus",), ()),
    "an escaped letter": (("spiffe://cluster.local/ns/istio-system/sa/%70rometheus",), ()),
    "a longer trust domain": (("spiffe://cluster.local.evil/ns/istio-system/sa/prometheus",), ()),
    "a dot segment": (("spiffe://cluster.local/ns/x/../istio-system/sa/prometheus",), ()),
    "a comma-joined pair in one SAN": ((f"{SCRAPER},{OTHER}",), ()),
    "a query": ((f"{SCRAPER}?x",), ()),
    "two DNS SANs, one listed": ((), ("prometheus.example.com", "other.example.com")),
    "a subdomain of the DNS name": ((), ("x.prometheus.example.com",)),
    "a wildcard that covers the DNS name": ((), ("*.example.com",)),
    "another case of the DNS name": ((), ("Prometheus.example.com",)),
    "an unlisted workload with the listed DNS name": ((OTHER,), ("prometheus.example.com",)),
    "a trust domain that ends like the listed one": (("spiffe://evil.partner.example/ns/a/sa/b",), ()),
    "a trust domain where a dot is another letter": (("spiffe://partnerXexample/ns/a/sa/b",), ()),
    "the listed trust domain without a path": (("spiffe://partner.example",), ()),
    "the listed trust domain with an empty path": (("spiffe://partner.example/",), ()),
    "two workloads of the listed trust domain": (
        ("spiffe://partner.example/ns/a/sa/b", "spiffe://partner.example/ns/a/sa/c"),
        (),
    ),
    "the listed trust domain and another": (("spiffe://partner.example/ns/a/sa/b", OTHER), ()),
    "an empty URI SAN and the listed DNS name": (("",), ("prometheus.example.com",)),
}


@pytest.mark.parametrize("names", ACCEPTED.values(), ids=ACCEPTED)
def test_listed_names_are_admitted(sidecar: Sidecar, names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    """Each kind of entry lets exactly its own in."""
    uris, dns = names
    context = sidecar.forge.leaf(*uris, dns=dns).client_context()
    assert ask(sidecar.pod, 15091, PATH, context).status == 200


@pytest.mark.parametrize("port", [15091, 15092])
@pytest.mark.parametrize("names", REFUSED.values(), ids=REFUSED)
def test_look_alikes_are_refused(
    sidecar: Sidecar, names: tuple[tuple[str, ...], tuple[str, ...]], port: int
) -> None:
    """A certificate of the mesh's own CA whose names merely resemble a listed one gets 403."""
    uris, dns = names
    context = sidecar.forge.leaf(*uris, dns=dns).client_context()
    assert ask(sidecar.pod, port, PATH, context).status == 403


def test_refusal_names_the_client_and_the_list(sidecar: Sidecar) -> None:
    """The 403 names the certificate's names, the list and its workload, as plain text."""
    answer = ask(sidecar.pod, 15091, PATH, sidecar.forge.leaf(OTHER).client_context())
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    for part in (OTHER, "MESHSCRAPE_SCRAPERS", "sidecar~httpbin-0.default"):
        assert part in answer.text


def test_a_refusal_never_becomes_markup(sidecar: Sidecar) -> None:
    """Names of a hostile certificate are shown as text that no browser runs."""
    hostile = sidecar.forge.leaf("spiffe://x/<script>alert(1)</script>").client_context()
    answer = ask(sidecar.pod, 15091, PATH, hostile)
    assert (answer.status, answer.headers["content-type"]) == (403, "text/plain; charset=utf-8")


def test_a_refusal_is_logged_on_one_line(sidecar: Sidecar) -> None:
    """The log has a JSON line with the refused name; a newline in a name cannot begin another line."""
    hostile = sidecar.forge.leaf('spiffe://x/y\n{"event":"forged"}').client_context()
    assert ask(sidecar.pod, 15091, PATH, hostile).status == 403
    eventually(lambda: "forged" in sidecar.envoy.output(), what="the log line")
    assert not any(line.startswith('{"event":"forged"') for line in sidecar.envoy.output().splitlines())


def test_refusals_are_counted_by_port(sidecar: Sidecar) -> None:
    """RBAC's and TLS's counters bear the name of the port."""
    ask(sidecar.pod, 15091, PATH, sidecar.forge.leaf(OTHER).client_context())
    stats = sidecar.envoy.stats("secure_metrics_15091")
    assert stats["http.secure_metrics_15091.rbac.denied"] > 0
    assert stats["listener.secure_metrics_15091.ssl.handshake"] > 0
    exposition = ask(sidecar.pod, 15090, PATH).text
    assert 'envoy_listener_ssl_handshake{envoy_listener_address="secure_metrics_15091"}' in exposition


def test_the_allow_list_changes_on_an_open_connection(tmp_path: Path) -> None:
    """A new list counts at the next request, also on connections that were opened under the old one."""
    with running_sidecar(tmp_path) as sidecar:
        context = sidecar.forge.leaf(SCRAPER).client_context()
        with Wire(sidecar.pod, 15091, context) as wire:
            assert wire.get(PATH).status == 200
            sidecar.allow(f"spiffe:{OTHER}")
            eventually(lambda: wire.get(PATH).status == 403, what="the refusal")
            sidecar.allow(ALLOW)
            eventually(lambda: wire.get(PATH).status == 200, what="the admission")
            sidecar.allow("")
            eventually(lambda: wire.get(PATH).status == 403, what="the refusal of everybody")


def test_without_a_list_every_client_is_refused(tmp_path: Path) -> None:
    """An empty list is not an open door."""
    with running_sidecar(tmp_path, scrapers="") as sidecar:
        assert ask(sidecar.pod, 15091, PATH, sidecar.forge.leaf(SCRAPER).client_context()).status == 403


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b'{"resources": []}', b'{"resources": [{"@type": "x"}]}', b'{"unknown": 1}'],
    ids=["empty", "not JSON", "no resource", "unknown type", "unknown key"],
)
def test_unusable_list_refuses_every_client(tmp_path: Path, content: bytes) -> None:
    """Envoy that starts with a broken list serves, and refuses everybody."""
    forge, options = Forge(), proxy_options(tmp_path)
    publish_credentials(options, forge.leaf(SERVER), forge.root)
    write_resources(Path(options.files_dir), dynamic_files(options, ()))
    (Path(options.files_dir) / SCRAPERS_FILE).write_bytes(content)
    with running_envoy(tmp_path, bootstrap(options)):
        context = forge.leaf(SCRAPER).client_context()
        answer = eventually(lambda: ask(options.pod_addresses[0], 15091, PATH, context))
        assert answer.status == 403


def test_without_the_lists_file_envoy_does_not_start(tmp_path: Path) -> None:
    """A missing file is an error that names it, not an open port."""
    forge, options = Forge(), proxy_options(tmp_path)
    publish_credentials(options, forge.leaf(SERVER), forge.root)
    write_resources(Path(options.files_dir), dynamic_files(options, ()))
    (Path(options.files_dir) / SCRAPERS_FILE).unlink()
    envoy = start_envoy(tmp_path, bootstrap(options))
    try:
        assert envoy.wait() != 0
        assert SCRAPERS_FILE in envoy.output()
    finally:
        envoy.stop()


def test_a_list_that_becomes_unusable_changes_nothing(tmp_path: Path) -> None:
    """A broken replacement leaves the last good list in force, and is counted."""
    with running_sidecar(tmp_path) as sidecar:
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        write_atomic(Path(sidecar.options.files_dir) / SCRAPERS_FILE, b'{"resources": [{"@type": "x"}]}')
        eventually(
            lambda: any(sidecar.envoy.stats("scrapers.*(failure|rejected|fail)$").values()),
            what="a counted failure",
        )
        assert ask(sidecar.pod, 15091, PATH, friend).status == 200
        assert ask(sidecar.pod, 15091, PATH, sidecar.forge.leaf(OTHER).client_context()).status == 403


def test_rotation_by_one_rename_is_picked_up(tmp_path: Path) -> None:
    """Envoy presents the new certificate after the switch of the credentials directory."""
    with running_sidecar(tmp_path) as sidecar:
        context = sidecar.forge.leaf(SCRAPER).client_context()
        renewed = sidecar.forge.leaf(SERVER, valid_until=timedelta(hours=5))
        serial = x509.load_pem_x509_certificate(renewed.chain).serial_number
        assert _served_serial(sidecar, context) != serial
        publish_credentials(sidecar.options, renewed, sidecar.forge.root)
        eventually(lambda: _served_serial(sidecar, context) == serial, what="the new certificate")


def test_a_new_root_is_trusted_and_an_old_one_dropped(tmp_path: Path) -> None:
    """Roots are read again by the same switch: first both, then the new one alone."""
    with running_sidecar(tmp_path) as sidecar:
        successor = Forge("successor")
        newcomer = successor.leaf(SCRAPER).client_context()
        veteran = sidecar.forge.leaf(SCRAPER).client_context()
        own = sidecar.forge.leaf(SERVER)
        assert alert(sidecar.pod, 15091, newcomer) == "TLSV1_ALERT_UNKNOWN_CA"
        publish_credentials(sidecar.options, own, sidecar.forge.root + successor.root)
        eventually(lambda: ask(sidecar.pod, 15091, PATH, newcomer).status == 200, what="the new root")
        assert ask(sidecar.pod, 15091, PATH, veteran).status == 200
        publish_credentials(sidecar.options, successor.leaf(SERVER), successor.root)
        eventually(
            lambda: alert(sidecar.pod, 15091, veteran, 0.5) == "TLSV1_ALERT_UNKNOWN_CA",
            what="the old root's end",
        )
        assert ask(sidecar.pod, 15091, PATH, newcomer).status == 200


def test_a_key_that_does_not_match_leaves_the_old_certificate(tmp_path: Path) -> None:
    """A broken rotation is not taken over: scrapes go on with the last good pair."""
    with running_sidecar(tmp_path) as sidecar:
        context = sidecar.forge.leaf(SCRAPER).client_context()
        serial = _served_serial(sidecar, context)
        mixed = replace(sidecar.forge.leaf(SERVER), key=sidecar.forge.leaf(SERVER).key)
        publish_credentials(sidecar.options, mixed, sidecar.forge.root)
        eventually(
            lambda: sidecar.envoy.stats("sds.certificate")["sds.certificate.key_rotation_failed"],
            what="a counted failure",
        )
        assert _served_serial(sidecar, context) == serial


def test_scrapers_from_outside_the_mesh(tmp_path: Path) -> None:
    """With a bundle for scrapers, a listed DNS name of that CA gets in, beside the mesh's own scraper."""
    outside = Forge("cert-manager")
    options = replace(
        proxy_options(tmp_path), secrets=SecretFiles(str(tmp_path / "credentials"), SCRAPERS_BUNDLE)
    )
    forge = Forge()
    with running_sidecar(
        tmp_path,
        forge=forge,
        options=options,
        scrapers=f"{ALLOW},dns:prometheus.example.com",
        scraper_roots=forge.root + outside.root,
    ) as sidecar:
        listed = outside.leaf(dns=["prometheus.example.com"]).client_context()
        unlisted = outside.leaf(dns=["other.example.com"]).client_context()
        assert ask(sidecar.pod, 15091, PATH, listed).status == 200
        assert ask(sidecar.pod, 15092, PATH, unlisted).status == 403
        assert ask(sidecar.pod, 15091, PATH, forge.leaf(SCRAPER).client_context()).status == 200
        stranger = Forge("third").leaf(dns=["prometheus.example.com"]).client_context()
        assert alert(sidecar.pod, 15091, stranger) == "TLSV1_ALERT_UNKNOWN_CA"


def _served_serial(sidecar: Sidecar, context: ssl.SSLContext) -> int:
    with Wire(sidecar.pod, 15091, context) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        der = wire.socket.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number
