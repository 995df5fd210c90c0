"""Whether a plan's Prometheus scrapes through a scrape proxy, and which CA that asks."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.kube.objects import Inventory
from meshscrape.observe import observe
from meshscrape.observe.model import Scraper
from meshscrape.plan.edited_objects import EditedObjects
from meshscrape.plan.model import Intent, Refused
from meshscrape.plan.scrape_proxy import access_for, ca_address, note_transport, proxy_for, proxy_in
from meshscrape.plan.workloads import Context
from meshscrape.prometheus.scrape_proxy_pod import CSI_DRIVER, CSI_FILES
from support.objects import cluster, control_plane, deployment, injected_namespace, pod_of
from support.planning import ref
from support.scraping_objects import plain_prometheus

PROXY: dict[str, Any] = {"scrape_proxy": True, "proxy_image": "registry.example/meshscrape:1"}
SCRAPER = Scraper(
    ref("Deployment", "prometheus", "monitoring"), "deployment", "monitoring", "prometheus", "", "", False
)
OPERATED = Scraper(ref("Prometheus", "k8s", "monitoring"), "operator", "monitoring", "k8s", "", "", False)


def operator_of(version: str) -> dict[str, Any]:
    """The Operator's own Deployment."""
    made = deployment("prometheus-operator", "monitoring")
    (container,) = made["spec"]["template"]["spec"]["containers"]
    container["image"] = f"quay.io/prometheus-operator/prometheus-operator:v{version}"
    return made


def context_of(*objects: Any, **intent: Any) -> Context:
    inventory: Inventory = cluster(control_plane(), injected_namespace(), plain_prometheus(), *objects)
    observation = observe(inventory)
    return Context(observation, inventory, Intent(**intent), EditedObjects(inventory), observation)


@pytest.mark.parametrize(
    ("version", "direct"), [("0.79.2", True), ("0.80.0", False), ("0.85.0", False), ("", False)]
)
def test_only_an_old_operators_prometheus_scrapes_directly(version: str, direct: bool) -> None:
    """Another Prometheus of the cluster has its proxy all the same."""
    context = context_of(*([operator_of(version)] if version else []), **PROXY)
    assert (proxy_for(context, operated=True) is None) is direct
    assert (access_for(context, OPERATED) is None) is direct
    assert (proxy_in(context, OPERATED) is None) is direct
    assert proxy_for(context, operated=False) and access_for(context, SCRAPER) and proxy_in(context, SCRAPER)
    for operated in (True, False):
        note_transport(context, None, operated=operated)
    codes = [note.code for note in context.draft.notes]
    assert codes == [*(["scrape-proxy-operator"] if direct else []), "native-sidecars-unknown"]


@pytest.mark.parametrize(
    "intent", [{}, {"scrape_proxy": True}, {**PROXY, "scrape_proxy": False}], ids=["none", "no image", "off"]
)
def test_files_of_a_pod_without_a_proxy_are_not_looked_for(intent: dict[str, Any]) -> None:
    """It has none unless it is wanted and its image is known; a note tells which of them it is."""
    context = context_of(proxy_certificates="/nowhere", **intent)
    assert proxy_in(context, SCRAPER) is access_for(context, SCRAPER) is None
    note_transport(context, None, operated=False)
    (note,) = context.draft.notes
    assert note.code == ("proxy-image-missing" if intent == {"scrape_proxy": True} else "targets-unverified")


def test_the_certificate_comes_from_the_source_that_is_asked_for() -> None:
    """An agent asks the CA, a volume of the CSI driver has files; an unknown directory is refused."""
    assert getattr(proxy_in(context_of(**PROXY), SCRAPER), "files", "refused") is None
    driver = proxy_in(context_of(**PROXY, proxy_certificates=CSI_DRIVER), SCRAPER)
    assert getattr(driver, "files", "refused") == CSI_FILES
    assert isinstance(proxy_in(context_of(**PROXY, proxy_certificates="/nowhere"), SCRAPER), Refused)


def sidecar(policy: str | None, kind: str = "Pod", api: str = "v1") -> dict[str, Any]:
    """A pod with an init container that is restarted, or is not."""
    container = {"name": "a", **({"restartPolicy": policy} if policy else {})}
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"initContainers": [{"name": "b"}, container]},
    }


@pytest.mark.parametrize(
    ("pod", "known"),
    [
        (sidecar("Always"), True),
        (sidecar("OnFailure"), False),
        (sidecar(None), False),
        (sidecar("Always", api="elsewhere.io/v1"), False),
        (sidecar("Always", kind="Machine"), False),
    ],
    ids=["native sidecar", "another policy", "init container", "another group", "another kind"],
)
def test_a_pod_with_a_native_sidecar_shows_that_the_cluster_knows_them(pod: Any, known: bool) -> None:
    context = context_of(pod, **PROXY)
    note_transport(context, SCRAPER.ref, operated=False)
    assert [note.code for note in context.draft.notes] == ([] if known else ["native-sidecars-unknown"])


def address(*objects: Any) -> str:
    inventory = cluster(*objects)
    return ca_address(observe(inventory), inventory)


@pytest.mark.parametrize(
    ("revision", "expected"),
    [("default", "istiod.istio-system.svc:15012"), ("canary", "istiod-canary.istio-system.svc:15012")],
)
def test_the_ca_is_istiod_of_the_revision(revision: str, expected: str) -> None:
    assert address(control_plane(revision=revision)) == expected


def told(name: str, ca: str) -> dict[str, Any]:
    """A pod whose proxy is told an address of the CA, or none."""
    return pod_of(deployment(name), name=name, variables={"CA_ADDR": ca} if ca else {})


def test_the_ca_of_an_external_control_plane_is_what_most_proxies_are_told() -> None:
    """Of two with as many, the first by name; without any, istiod in the root namespace."""
    external = control_plane(istiod=False)
    alien = {
        "apiVersion": "elsewhere.io/v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": "default"},
    }
    pods = [
        told("1", "b:1"),
        told("2", "a:1"),
        told("3", ""),
        pod_of(deployment("4"), name="4", injected=False),
    ]
    for planes in (external, []):
        assert address(*planes, pods, alien) == "a:1"
        assert address(*planes, pods, told("5", "b:1")) == "b:1"
        assert address(*planes, deployment()) == "istiod.istio-system.svc:15012"
    assert address(control_plane(), pods) == "istiod.istio-system.svc:15012"
