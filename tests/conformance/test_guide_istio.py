"""Istio's guide to secure metrics, step by step: what it says happens, and where something else does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance import prober, samples, shop
from conformance.cluster import programs
from conformance.cluster.istio import Installer
from conformance.kube import Kube, until
from conformance.prober import Prober, anonymous, plain, secure
from conformance.prometheus import Prometheus

SPACE = "guide"
LISTENERS = [  # as the guide prints them, but for the width of its columns
    "0.0.0.0 15090 ALL Inline Route: /stats/prometheus*",
    "0.0.0.0 15091 Trans: tls Inline Route: /stats/prometheus*",
    "0.0.0.0 15092 Trans: tls Inline Route: /stats/prometheus*, /metrics*",
]
Row = Callable[..., None]


@dataclass(frozen=True)
class Guide:
    """What the guide has set up."""

    kube: Kube
    prometheus: Prometheus
    scraper: Prober  # with Prometheus' own identity
    stranger: Prober

    def httpbin(self) -> str:
        """Return the address of httpbin's pod."""
        return self.kube.address(SPACE, "app=httpbin")


@pytest.fixture(scope="module")
def guide(kube: Kube) -> Iterator[Guide]:
    """Provide httpbin with both secure ports, and Istio's sample of a Prometheus with a certificate."""
    with (
        kube.namespace(SPACE, **shop.INJECTED),
        shop.addon(kube, secure=True) as prometheus,
        shop.probers(kube, "outside-guide") as stranger,
    ):
        account, service, deployment = samples.httpbin()
        ports = samples.proxy_metadata(**samples.SECURE_PORTS)
        deployment = samples.annotate(
            deployment, **{"proxy.istio.io/config": ports, "prometheus.io/path": "/stats/prometheus"}
        )
        kube.apply([account, service, deployment], "-n", SPACE)
        kube.rollout(SPACE, "deployment/httpbin")
        scraper = prober.start(kube, "istio-system", "scraper", account="prometheus")
        yield Guide(kube, prometheus, scraper, stranger)
        kube("-n", "istio-system", "delete", "pod", "scraper")


def test_sidecar_serves_both_secure_ports(guide: Guide, row: Row) -> None:
    """Both ports answer a certificate of the mesh, refuse a client without one, and refuse plain HTTP."""
    address = guide.httpbin()
    for port in (15091, 15092):
        requests = [secure(address, port), anonymous(address, port), plain(address, port)]
        # The sidecar takes plain HTTP in, and its own secure listener closes what it passes on.
        assert guide.scraper.outcomes(*requests) == [200, "tls", 503], port
    merged = guide.scraper.ask(secure(address, 15092, keep=10**7))[0]["body"]
    assert "istio_agent_scrapes_total" in merged and "envoy_server_live" in merged
    row("Istio's guide: httpbin with 15091 and 15092", "certificate 200, none: TLS alert, plain HTTP: 503")


def test_secure_ports_have_no_allow_list(guide: Guide, row: Row) -> None:
    """Any workload of the mesh may read the native ports."""
    address = guide.httpbin()
    assert guide.stranger.outcomes(secure(address, 15091), secure(address, 15092)) == [200, 200]
    row(
        "Istio's guide: another workload reads httpbin's secure ports",
        "200: Istio's ports have no allow list",
    )


def test_injector_announces_merged_port_only(guide: Guide, row: Row) -> None:
    """The injector writes the annotation of the merged port, never that of Envoy's own."""
    (pod,) = guide.kube.pods(SPACE, "app=httpbin")
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.istio.io/secure-port"] == "15092"
    assert "prometheus.istio.io/secure-envoy-port" not in annotations
    row("Istio's guide: announcement by the injector", "secure-port is written, secure-envoy-port is not")


def test_sample_prometheus_scrapes_httpbin(guide: Guide, row: Row) -> None:
    """Istio's sample Prometheus has httpbin's merged port up over HTTPS."""
    (target,) = guide.prometheus.wait_for_up({guide.httpbin()}, "istio-secure-merged-metrics")
    assert target["scrapeUrl"].startswith("https://") and target["scrapeUrl"].endswith(
        ":15092/stats/prometheus"
    )
    row(
        "Istio's guide: its sample Prometheus with OUTPUT_CERTS",
        "target up over HTTPS",
        Prometheus=guide.prometheus.version(),
    )


def test_inbound_capture_ports_has_no_effect(guide: Guide, row: Row) -> None:
    """The sample sets INBOUND_CAPTURE_PORTS; the injected pod still intercepts every inbound port."""
    (pod,) = guide.kube.pods("istio-system", shop.PROMETHEUS)
    (init,) = [c for c in pod["spec"]["initContainers"] if c["name"] == "istio-init"]
    arguments = init["args"]
    assert arguments[arguments.index("-b") + 1] == "*"
    row("Istio's guide: INBOUND_CAPTURE_PORTS of the sample", "no effect: all inbound ports are intercepted")


def test_hardening_closes_plaintext_ports(guide: Guide, row: Row) -> None:
    """METRICS_LOCALHOST_ACCESS_ONLY closes 15020 and 15090; the secure ports stay up."""
    kube, address = guide.kube, guide.httpbin()
    assert guide.stranger.outcomes(plain(address, 15020), plain(address, 15090)) == [200, 200]
    before = kube.get("-n", SPACE, "deployment", "httpbin")["spec"]["template"]["metadata"]["annotations"]
    _configure(kube, **samples.SECURE_PORTS, METRICS_LOCALHOST_ACCESS_ONLY="true")
    try:
        address = guide.httpbin()
        assert guide.stranger.outcomes(plain(address, 15020), plain(address, 15090)) == [403, "refused"]
        assert guide.scraper.outcomes(secure(address, 15091), secure(address, 15092)) == [200, 200]
        guide.prometheus.wait_for_up({address}, "istio-secure-merged-metrics")
    finally:
        _annotate(kube, before["proxy.istio.io/config"])
    row(
        "Istio's guide: METRICS_LOCALHOST_ACCESS_ONLY",
        "15020: 403, 15090: refused, secure ports 200, target up",
    )


def test_strict_mtls_breaks_native_ports_unless_excluded(guide: Guide, row: Row) -> None:
    """Under STRICT the sidecar decrypts first: the native ports need excludeInboundPorts."""
    kube = guide.kube
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": prober.named(SPACE, "default"),
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    kube.apply(policy)
    try:
        request = secure(guide.httpbin(), 15092)
        until(lambda: guide.scraper.outcomes(request) != [200], "STRICT takes effect")
        patch = {"traffic.sidecar.istio.io/excludeInboundPorts": "15091,15092"}
        _patch(kube, patch)
        assert guide.scraper.outcomes(secure(guide.httpbin(), 15092)) == [200]
        _patch(kube, dict.fromkeys(patch))
    finally:
        kube("-n", SPACE, "delete", "peerauthentication", "default")
    row("Istio's guide: the native ports under STRICT", "broken; with excludeInboundPorts 200")


def test_gateway_annotations_open_no_port(guide: Guide, row: Row) -> None:
    """`infrastructure.annotations` announces a secure port on a Gateway API gateway, and opens none."""
    kube = guide.kube
    gateway = samples.gateway()[0]
    gateway["spec"]["infrastructure"] = {
        "annotations": {
            "proxy.istio.io/config": samples.proxy_metadata(**samples.SECURE_PORTS),
            "prometheus.istio.io/secure-port": "15092",
        }
    }
    kube.apply(gateway, "-n", SPACE)
    selector = "gateway.networking.k8s.io/gateway-name=httpbin-gateway"
    try:
        until(
            lambda: kube.has("-n", SPACE, "deployment", "httpbin-gateway-istio"), "istiod makes the gateway"
        )
        kube.rollout(SPACE, "deployment/httpbin-gateway-istio")
        (pod,) = kube.pods(SPACE, selector)
        assert pod["metadata"]["annotations"]["prometheus.istio.io/secure-port"] == "15092"
        assert guide.scraper.outcomes(secure(pod["status"]["podIP"], 15092)) == ["refused"]
    finally:
        kube("-n", SPACE, "delete", "gateways.gateway.networking.k8s.io", "httpbin-gateway")
    row(
        "Istio's guide: a Gateway's infrastructure.annotations",
        "the port is announced and refused: none is opened",
    )


def test_classic_gateway_opens_ports_by_patch(
    guide: Guide, installer: Installer, tmp_path: Path, row: Row
) -> None:
    """The guide's patch of a classic gateway's Deployment opens both secure ports and announces one."""
    kube = guide.kube
    installer.ingress_gateway()
    try:
        container = {
            "name": "istio-proxy",
            "env": [{"name": name, "value": value} for name, value in samples.SECURE_PORTS.items()],
        }
        annotations = {
            "prometheus.istio.io/secure-port": "15092",
            "prometheus.istio.io/secure-envoy-port": "15091",
            "prometheus.io/path": "/stats/prometheus",
        }
        template = {"metadata": {"annotations": annotations}, "spec": {"containers": [container]}}
        patch = json.dumps({"spec": {"template": template}})
        name = "deployment/istio-ingressgateway"
        kube("-n", "istio-system", "patch", name, "--type=strategic", "-p", patch)
        kube.rollout("istio-system", name)
        address = kube.address("istio-system", "istio=ingressgateway")
        for port in (15091, 15092):
            requests = [secure(address, port), anonymous(address, port), plain(address, port)]
            assert guide.scraper.outcomes(*requests) == [200, "tls", "closed"], port
        (pod,) = kube.pods("istio-system", "istio=ingressgateway")
        assert _listeners(kube, "istio-system", pod["metadata"]["name"], tmp_path) == LISTENERS

        def up() -> bool:
            jobs = {t["labels"]["job"]: t["health"] for t in guide.prometheus.of({address})}
            secured = ("istio-secure-merged-metrics", "istio-secure-envoy-metrics")
            return all(jobs.get(job) == "up" for job in secured)

        until(up, "both jobs have the gateway up", detail=lambda: guide.prometheus.of({address}))
    finally:
        installer.remove_ingress_gateway()
    row(
        "Istio's guide: patch of the classic gateway's Deployment",
        "both ports open, listed as the guide prints them, both jobs have it up",
    )


def test_sidecar_lists_its_secure_listeners(guide: Guide, tmp_path: Path, row: Row) -> None:
    """`istioctl proxy-config listeners` prints of a sidecar what the guide prints."""
    (pod,) = guide.kube.pods(SPACE, "app=httpbin")
    assert _listeners(guide.kube, SPACE, pod["metadata"]["name"], tmp_path) == LISTENERS
    row(
        "Istio's guide: `istioctl proxy-config listeners` of the sidecar",
        "15090, 15091 and 15092 as the guide prints them",
    )


def _listeners(kube: Kube, namespace: str, pod: str, directory: Path) -> list[str]:
    """Return what `istioctl proxy-config listeners` prints of a proxy's metrics ports.

    It reads the proxy's configuration from a file: its own way there, port forwarding, is not part of every
    cluster.
    """
    dump = directory / "config_dump.json"
    words = ("exec", pod, "-c", "istio-proxy", "--", "pilot-agent", "request", "GET", "config_dump")
    dump.write_text(kube("-n", namespace, *words))
    command = [str(programs.built("istioctl")), "proxy-config", "listeners", "--file", str(dump)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [" ".join(line.split()) for line in listed.splitlines()]
    return [line for line in lines if re.search("15090|15091|15092", line)]


def _configure(kube: Kube, **values: str) -> None:
    _annotate(kube, samples.proxy_metadata(**values))


def _annotate(kube: Kube, text: str) -> None:
    _patch(kube, {"proxy.istio.io/config": text})


def _patch(kube: Kube, annotations: dict[str, str] | dict[str, None]) -> None:

    value = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    kube("-n", SPACE, "patch", "deployment", "httpbin", "--type=merge", "-p", json.dumps(value))
    kube.rollout(SPACE, "deployment/httpbin")
