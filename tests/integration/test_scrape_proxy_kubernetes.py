"""The scrape proxy with the pods of a cluster: what it says when it must not, or cannot, list them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from meshscrape.prometheus.targets import MERGED_JOB
from meshscrape.system.files import publish
from support.addresses import loopback
from support.applications import applications
from support.forgery import Forge
from support.kubernetes_api import POD, kubeconfig, lists_pods
from support.mesh import meshscrape
from support.polling import eventually
from support.scrape_proxy import RunningProxy, credentials
from support.targets import Target, tls_target

WEB = "spiffe://cluster.local/ns/shop/sa/web"
FORBIDDEN = {"message": "pods is forbidden: User web cannot list resource pods", "reason": "Forbidden"}


def refused(directory: Path, *options: str) -> str:
    """Start the proxy, expect that it could not run, and return its one line."""
    scraper = credentials(directory / "scraper", Forge())
    listen = ["--listen", f"{loopback()}:15094", "--discovery", f"{loopback()}:15095"]
    given = options if "--credentials" in options else ("--credentials", str(scraper), *options)
    done = meshscrape("proxy", "--dir", str(directory / "proxy"), *listen, "--wait", "0", *given)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("meshscrape: ")]
    return line


def test_a_missing_right_to_list_pods_is_one_line(tmp_path: Path) -> None:
    """At the first start there are no other targets, so the proxy ends."""
    with applications(address := loopback(), {"api": lists_pods(403, FORBIDDEN)}) as ports:
        url = f"http://{address}:{ports['api']}"
        assert "cannot list resource pods" in refused(tmp_path, *kubeconfig(tmp_path, url))


def test_an_api_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    """Nothing listens there."""
    assert "127.9.9.8:6443" in refused(tmp_path, *kubeconfig(tmp_path, "http://127.9.9.8:6443"))


def test_a_token_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """The file of the user's token is missing."""
    options = kubeconfig(tmp_path, "http://127.9.9.8:6443", tokenFile=str(tmp_path / "no-token"))
    assert "no-token" in refused(tmp_path, *options)


def test_pods_of_a_trust_domain_without_credentials_are_one_line(tmp_path: Path) -> None:
    """The trust domain of the pods is another one than that of the certificate."""
    with applications(address := loopback(), {"api": lists_pods()}) as ports:
        options = kubeconfig(tmp_path, f"http://{address}:{ports['api']}")
        line = refused(tmp_path, *options, "--trust-domain", "other.example")
    assert "other.example" in line


def test_an_empty_credentials_directory_is_one_line(tmp_path: Path) -> None:
    """The line names the directory."""
    empty = tmp_path / "empty"
    empty.mkdir()
    options = kubeconfig(tmp_path, "http://127.9.9.8:6443")
    assert str(empty) in refused(tmp_path, "--credentials", str(empty), *options)


def test_a_certificate_without_a_spiffe_id_is_one_line(tmp_path: Path) -> None:
    """Then the trust domain of the pods is not known."""
    forge, directory = Forge(), tmp_path / "nameless"
    pair = forge.leaf(dns=["prometheus.istio-system.svc"])
    publish(directory, {"cert-chain.pem": pair.chain, "key.pem": pair.key, "root-cert.pem": forge.root})
    options = kubeconfig(tmp_path, "http://127.9.9.8:6443")
    line = refused(tmp_path, "--credentials", str(directory), *options)
    assert str(directory / "cert-chain.pem") in line
    assert "URI name" in line


def test_a_right_that_was_taken_away_is_not_ready_although_old_targets_are_known(tmp_path: Path) -> None:
    """A start with the targets of an earlier run scrapes them, but is not ready."""
    forge = Forge()
    proxy = RunningProxy(tmp_path, loopback(), [str(credentials(tmp_path / "scraper", forge))])
    proxy.announce([])
    with applications(address := loopback(), {"api": lists_pods()}) as ports:
        proxy.start(*kubeconfig(tmp_path, f"http://{address}:{ports['api']}"))
        assert proxy.check() == 0
        assert proxy.scrape("127.9.9.9:15092").reason == "unreachable"
        assert proxy.stop() == 0
    with applications(address := loopback(), {"api": lists_pods(403, FORBIDDEN)}) as ports:
        proxy.launch(*kubeconfig(tmp_path, f"http://{address}:{ports['api']}"))
        try:
            eventually(lambda: "cannot list resource pods" in proxy.own("/healthz/ready").body)
            assert proxy.check() == 1
            assert proxy.scrape("127.9.9.9:15092").reason == "unreachable"
            assert proxy.metric("meshscrape_scrape_proxy_source_up", source=f"pods of {tmp_path}") == 0
        finally:
            assert proxy.stop() == 0


@pytest.mark.parametrize("status", [500, 503])
def test_an_api_server_in_trouble_leaves_the_last_targets_ready(tmp_path: Path, status: int) -> None:
    """Waiting helps there: Prometheus may start against the targets of an earlier run."""
    forge = Forge()
    proxy = RunningProxy(tmp_path, loopback(), [str(credentials(tmp_path / "scraper", forge))])
    proxy.announce([])
    with applications(address := loopback(), {"api": lists_pods()}) as ports:
        proxy.start(*kubeconfig(tmp_path, f"http://{address}:{ports['api']}"))
        assert proxy.stop() == 0
    with applications(address := loopback(), {"api": lists_pods(status, {"message": "trouble"})}) as ports:
        proxy.start(*kubeconfig(tmp_path, f"http://{address}:{ports['api']}"))
        try:
            assert proxy.check() == 0
            assert proxy.scrape("127.9.9.9:15092").reason == "unreachable"
        finally:
            assert proxy.stop() == 0


def test_identities_of_another_shape_are_expected_by_a_template(tmp_path: Path) -> None:
    """A mesh whose IDs are not Istio's; a pod that the template gives no ID is no target."""
    forge = Forge()
    proxy = RunningProxy(tmp_path, loopback(), [str(credentials(tmp_path / "scraper", forge))])
    proxy.announce([])
    address = loopback()
    meta = {**POD["metadata"], "labels": {"app": "shop-web"}}
    status = {**POD["status"], "podIP": address, "podIPs": [{"ip": address}]}
    other = {**POD, "metadata": {**POD["metadata"], "uid": "2"}}
    document = {
        "metadata": {"resourceVersion": "7"},
        "items": [{**POD, "metadata": meta, "status": status}, other],
    }
    identity = "spiffe://cluster.local/k8s/shop/shop-web"
    with (
        applications(api := loopback(), {"api": lists_pods(document=document)}) as ports,
        tls_target(Target(address), forge.leaf(identity), forge.root, tmp_path) as target,
    ):
        options = kubeconfig(tmp_path, f"http://{api}:{ports['api']}")
        proxy.start(*options, "--id-template", "/k8s/{namespace}/{label:app}")
        try:
            assert proxy.scrape(target.authority).status == 200
            assert proxy.scrape("127.9.9.9:15092").reason == "unknown-target"
        finally:
            assert proxy.stop() == 0


def test_a_pod_that_is_not_ready_has_a_route_but_is_not_announced(tmp_path: Path) -> None:
    """A scrape that comes the moment it is ready finds the route; Prometheus is not sent there before."""
    forge = Forge()
    proxy = RunningProxy(tmp_path, loopback(), [str(credentials(tmp_path / "scraper", forge))])
    proxy.announce([])
    address = loopback()
    status = {"phase": "Pending", "podIP": address, "podIPs": [{"ip": address}]}
    document = {"metadata": {"resourceVersion": "7"}, "items": [{**POD, "status": status}]}
    with (
        applications(api := loopback(), {"api": lists_pods(document=document)}) as ports,
        tls_target(Target(address), forge.leaf(WEB), forge.root, tmp_path) as target,
    ):
        proxy.start(*kubeconfig(tmp_path, f"http://{api}:{ports['api']}"))
        try:
            assert proxy.scrape(target.authority).status == 200
            assert proxy.http_sd(MERGED_JOB) == []
            assert proxy.metric("meshscrape_scrape_proxy_targets", job=MERGED_JOB) == 0
        finally:
            assert proxy.stop() == 0


def on_the_node(name: str, port: int, address: str) -> dict[str, Any]:
    """A pod with the node's network, of the ServiceAccount `name`, with its secure port."""
    meta = {"name": name, "namespace": "shop", "uid": name}
    meta |= {"annotations": {"prometheus.istio.io/secure-port": str(port)}}
    spec = {**POD["spec"], "serviceAccountName": name, "hostNetwork": True}
    status = {**POD["status"], "hostIP": address, "podIP": address, "podIPs": [{"ip": address}]}
    return {"metadata": meta, "spec": spec, "status": status}


def test_pods_with_the_nodes_network_are_told_apart_by_their_ports(tmp_path: Path) -> None:
    """They share an address. Where two announce the same port, neither is scraped; the others are."""
    forge, address = Forge(), loopback()
    proxy = RunningProxy(tmp_path, loopback(), [str(credentials(tmp_path / "scraper", forge))])
    proxy.announce([])
    pods = {"first": 15092, "second": 15192, "third": 15292, "fourth": 15292}
    items = [on_the_node(name, port, address) for name, port in pods.items()]
    document = {"metadata": {"resourceVersion": "7"}, "items": items}
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(applications(api := loopback(), {"api": lists_pods(document=document)}))
        targets = {}
        for name in ("first", "second", "third"):
            own = tmp_path / name
            own.mkdir()
            pair = forge.leaf(f"spiffe://cluster.local/ns/shop/sa/{name}")
            target = Target(address, name.encode(), port=pods[name])
            targets[name] = stack.enter_context(tls_target(target, pair, forge.root, own))
        proxy.start(*kubeconfig(tmp_path, f"http://{api}:{ports['api']}"))
        try:
            assert proxy.scrape(targets["first"].authority).body == "first"
            assert proxy.scrape(targets["second"].authority).body == "second"
            assert proxy.scrape(targets["third"].authority).reason == "unknown-target"
            assert proxy.metric("meshscrape_scrape_proxy_current") == 0
        finally:
            assert proxy.stop() == 0


def test_a_template_that_can_yield_no_id_is_one_line(tmp_path: Path) -> None:
    """A name that is not a fact about a pod."""
    options = kubeconfig(tmp_path, "http://127.9.9.8:6443")
    assert "{name}" in refused(tmp_path, *options, "--id-template", "/ns/{name}")
