"""Pitfalls of a Prometheus with a mesh certificate, of its jobs and their relabeling."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import load_inventory
from meshscrape.observe import observe
from support.objects import (
    Object,
    config_map,
    control_plane,
    namespace,
    observed,
    only,
    pitfalls,
    proxy_config,
)
from support.scraping_objects import (
    SECURE_PORT,
    operated_prometheus,
    plain_prometheus,
    prometheus,
    secure_job,
)
from support.upstream import SAMPLES, needs_upstream

INBOUND = "traffic.sidecar.istio.io/includeInboundPorts"
OUTBOUND = "traffic.sidecar.istio.io/includeOutboundIPRanges"
MOUNT = "sidecar.istio.io/userVolumeMount"


def annotated(**changes: Any) -> dict[str, str]:
    """The annotations of a Prometheus with certificates, right unless changed: metadata, fields, mount, …"""
    metadata = {"OUTPUT_CERTS": "/etc/istio-certs", **changes.pop("metadata", {})}
    fields = changes.pop("fields", {"holdApplicationUntilProxyStarts": True})
    mount = changes.pop("mount", {"istio-certs": {"mountPath": "/etc/istio-certs"}})
    found = {INBOUND: "", OUTBOUND: "", MOUNT: json.dumps(mount), **proxy_config(metadata, **fields)}
    return {key: value for key, value in (found | changes).items() if value is not None}


def with_annotations(**changes: Any) -> list[Object]:
    return [*control_plane(), *prometheus(secure_job(), annotations=annotated(**changes))]


def test_a_prometheus_done_right() -> None:
    """Certificates in memory, no interception, started after the proxy: nothing to say."""
    assert observed(with_annotations()).pitfalls == ()


@needs_upstream
def test_the_pitfalls_of_istios_own_sample() -> None:
    """Upstream's add-on for secure metrics has a good number of them."""
    name = "prometheus-secure-metrics.yaml"
    with (SAMPLES / name).open() as lines:
        found = observe(load_inventory(load_manifests(lines, name)), istio_version="1.31.0").pitfalls
    assert {each.code for each in found} == {
        "certificates-late", "inbound-capture-ports-ignored", "prometheus-intercepted",
        "output-certs-on-disk", "relabel-phase", "relabel-path", "relabel-ipv6", "relabel-labels",
        "relabel-duplicates", "user-volume-list",
    }  # fmt: skip


def test_both_add_ons_at_once_are_refused() -> None:
    """Istio's two Prometheus add-ons have the same names: given together, the contradiction is named."""
    one, other = prometheus(secure_job()), prometheus()
    with pytest.raises(Exception, match="is also in"):
        observed(one, other)


def test_inbound_capture_ports_ignored() -> None:
    """The variable of the sample is read by no version of Istio."""
    metadata = {"INBOUND_CAPTURE_PORTS": ""}
    assert (
        INBOUND in only(pitfalls("inbound-capture-ports-ignored", with_annotations(metadata=metadata))).remedy
    )
    assert pitfalls("inbound-capture-ports-ignored", with_annotations()) == []


@pytest.mark.parametrize("name", [INBOUND, OUTBOUND])
def test_prometheus_intercepted(name: str) -> None:
    """Both annotations must be there, empty."""
    pitfall = only(pitfalls("prometheus-intercepted", with_annotations(**{name: None})))
    assert name in pitfall.remedy
    assert only(pitfalls("prometheus-intercepted", with_annotations(**{name: "*"})))
    assert pitfalls("prometheus-intercepted", with_annotations()) == []


def test_scraper_unreachable_in_mesh() -> None:
    """Not intercepted, but labelled as one that takes mTLS: clients with a sidecar cannot reach it."""
    code, labels = "scraper-unreachable-in-mesh", {"sidecar.istio.io/inject": "true"}
    pitfall = only(pitfalls(code, control_plane(), prometheus(secure_job(), labels=labels)))
    assert "security.istio.io/tlsMode" in pitfall.remedy
    assert pitfalls(code, with_annotations()) == []
    intercepted = annotated(**{INBOUND: None})
    assert (
        pitfalls(code, control_plane(), prometheus(secure_job(), labels=labels, annotations=intercepted))
        == []
    )


@pytest.mark.parametrize("labels", [{}, {"sidecar.istio.io/inject": "false"}])
def test_output_certs_not_injected(labels: dict[str, str]) -> None:
    """Without a proxy nobody writes the certificates."""
    parts = [*control_plane(), *prometheus(secure_job(), labels=labels)]
    assert only(pitfalls("output-certs-not-injected", parts)).severity == "error"
    assert pitfalls("output-certs-not-injected", with_annotations()) == []


def test_output_certs_not_mounted() -> None:
    """The proxy needs a volume where it writes."""
    elsewhere = {"istio-certs": {"mountPath": "/elsewhere"}}
    assert only(pitfalls("output-certs-not-mounted", with_annotations(mount=elsewhere)))
    assert only(pitfalls("output-certs-not-mounted", with_annotations(**{MOUNT: None})))
    assert pitfalls("output-certs-not-mounted", with_annotations(mount=[
        {"name": "istio-certs", "mountPath": "/etc/istio-certs/"},
    ])) == []  # fmt: skip


def test_own_proxy_container_may_mount_the_volume() -> None:
    """A container istio-proxy in the template mounts as well as the annotation does."""
    proxy = {
        "name": "istio-proxy", "image": "auto",
        "volumeMounts": [{"name": "istio-certs", "mountPath": "/etc/istio-certs"}],
    }  # fmt: skip
    parts = prometheus(secure_job(), annotations=annotated(**{MOUNT: None}), proxy=proxy)
    assert pitfalls("output-certs-not-mounted", control_plane(), parts) == []


def test_output_certs_read_only() -> None:
    """A read-only mount of the proxy cannot be written to."""
    mount = {"istio-certs": {"mountPath": "/etc/istio-certs", "readOnly": True}}
    assert only(pitfalls("output-certs-read-only", with_annotations(mount=mount)))
    assert pitfalls("output-certs-read-only", with_annotations()) == []


@pytest.mark.parametrize(
    ("volume", "code"),
    [
        ({"secret": {"secretName": "istio.default"}}, "output-certs-volume"),
        ({"hostPath": {"path": "/certs"}}, "output-certs-volume"),
        ({"emptyDir": {}}, "output-certs-on-disk"),
    ],
)
def test_volumes_of_certificates(volume: dict[str, Any], code: str) -> None:
    """What is no emptyDir cannot be written by the proxy; on disk the key is stored."""
    parts = [*control_plane(), *prometheus(secure_job(), volume=volume)]
    assert only(pitfalls(code, parts))
    assert pitfalls(code, with_annotations()) == []


def test_a_volume_by_annotation() -> None:
    """A volume that userVolume declares counts as declared."""
    parts = prometheus(secure_job(), annotations=annotated(**{
        MOUNT: json.dumps({"certs": {"mountPath": "/etc/istio-certs"}}),
        "sidecar.istio.io/userVolume": json.dumps({"certs": {"emptyDir": {"medium": "Memory"}}}),
    }))  # fmt: skip
    assert pitfalls("output-certs-volume", control_plane(), parts) == []
    # Prometheus' own container does not have it, though.
    assert only(pitfalls("certificates-not-in-scraper", control_plane(), parts))


def test_certificates_not_in_scraper() -> None:
    """The scraper's own container must mount the volume too, wherever it likes."""
    assert only(
        pitfalls("certificates-not-in-scraper", control_plane(), prometheus(secure_job(), mount=None))
    )
    elsewhere = prometheus(secure_job(directory="/etc/prom-certs"), mount="/etc/prom-certs")
    assert observed(control_plane(), elsewhere).pitfalls == ()


def test_tls_files_elsewhere() -> None:
    """Paths in the job are those of the scraper's container."""
    code = "tls-files-elsewhere"
    parts = [*control_plane(), *prometheus(secure_job(directory="/etc/prom-certs"))]
    pitfall = only(pitfalls(code, parts))
    assert "/etc/prom-certs/key.pem" in pitfall.text and "/etc/istio-certs" in pitfall.text
    assert pitfalls(code, with_annotations()) == []


def test_certificates_late() -> None:
    """Without an order of start the scrape pool may never have been created."""
    assert only(pitfalls("certificates-late", with_annotations(fields={}))).severity == "warning"
    native = {"sidecar.istio.io/nativeSidecar": "true"}
    assert pitfalls("certificates-late", with_annotations(fields={}, **native)) == []
    held = control_plane(mesh={"defaultConfig": {"holdApplicationUntilProxyStarts": True}})
    assert (
        pitfalls("certificates-late", held, prometheus(secure_job(), annotations=annotated(fields={}))) == []
    )


def test_scrape_configuration_unreadable() -> None:
    """A configuration that cannot be read is said to be unknown."""
    broken = config_map("prometheus", {"prometheus.yml": "scrape_configs: ["})
    assert only(pitfalls("scrape-configuration-unreadable", broken))
    assert pitfalls("scrape-configuration-unreadable", with_annotations()) == []


def test_the_operators_prometheus_is_judged_the_same() -> None:
    """podMetadata, volumes and mounts of a Prometheus object are what its pods get."""
    assert observed(control_plane(), operated_prometheus()).pitfalls == ()
    changed = operated_prometheus(volumes=[{"name": "istio-certs", "emptyDir": {}}], volumeMounts=[])
    found = {each.code for each in observed(control_plane(), changed).pitfalls}
    assert found == {"output-certs-on-disk", "certificates-not-in-scraper"}


# Relabeling


def job_without(*words: str) -> Object:
    """A secure job without the rules that have one of these words."""
    job = secure_job()
    job["relabel_configs"] = [
        rule for rule in job["relabel_configs"] if not any(word in json.dumps(rule) for word in words)
    ]
    return job


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (job_without("pod_phase"), "relabel-phase"),
        (secure_job(metrics_path="/metrics"), "relabel-path"),
        (job_without('"namespace"'), "relabel-labels"),
        (job_without("container_name", "container_port_number"), "relabel-duplicates"),
    ],
)
def test_relabeling_is_tried(job: Object, code: str) -> None:
    """Each fault of the widespread sample is found by trying the job on a pod that has it."""
    found = {each.code for each in observed(control_plane(), prometheus(job)).pitfalls}
    assert found == {code}


def test_relabel_ipv6() -> None:
    """An address rule that does not bracket is found."""
    job = job_without("[$1]", "([^:;]+)")
    job["relabel_configs"].append({
        "source_labels": ["__meta_kubernetes_pod_ip", SECURE_PORT], "regex": "(.+);(.+)",
        "target_label": "__address__", "replacement": "$1:$2",
    })  # fmt: skip
    assert "2001:db8::1:15092" in only(pitfalls("relabel-ipv6", control_plane(), prometheus(job))).text


def test_relabel_native_sidecars() -> None:
    """A job that drops init containers drops native sidecars."""
    job = secure_job()
    dropped = {"action": "drop", "source_labels": ["__meta_kubernetes_pod_container_init"], "regex": "true"}
    job["relabel_configs"].append(dropped)
    assert only(pitfalls("relabel-native-sidecars", control_plane(), prometheus(job)))
    assert pitfalls("relabel-native-sidecars", control_plane(), prometheus(secure_job())) == []


def test_jobs_that_are_not_for_secure_ports_are_not_judged() -> None:
    """Relabeling is judged where a job looks for secure ports."""
    job = copy.deepcopy(secure_job())
    job["relabel_configs"] = []
    assert not {
        each.code for each in observed(control_plane(), prometheus(job)).pitfalls if "relabel" in each.code
    }


def test_scraper_in_an_injected_namespace_is_intercepted() -> None:
    """A Prometheus in an injected namespace, without any setting for it, scrapes through its sidecar."""
    parts = [*control_plane(), namespace("monitoring", istio_injection="enabled"), *plain_prometheus()]
    pitfall = only(pitfalls("prometheus-intercepted", parts))
    assert pitfall.severity == "warning"
    outside = [*control_plane(), namespace("monitoring"), *plain_prometheus()]
    assert pitfalls("prometheus-intercepted", outside) == []


def test_remedy_for_a_forbidding_namespace_is_its_label() -> None:
    """Its label wins over the pod's, so the remedy names the namespace."""
    parts = [
        *control_plane(),
        namespace("istio-system", istio_injection="disabled"),
        *prometheus(secure_job()),
    ]
    remedy = only(pitfalls("output-certs-not-injected", parts)).remedy
    assert "istio-injection=disabled" in remedy and "istio-system" in remedy
