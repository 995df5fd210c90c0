"""Plans whose Prometheus scrapes through a scrape proxy in its pod."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe import observe
from meshscrape.plan.model import Plan
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    meta,
    namespace,
    peer_authentication,
    service,
)
from support.planning import changed, codes, planned, refs, settled, template
from support.scraping_objects import plain_prometheus, pod_monitor

IMAGE = "registry.example/meshscrape:1"
PROXY: dict[str, Any] = {"scrape_proxy": True, "proxy_image": IMAGE}
SIDECARS = ["scrape-proxy-agent", "scrape-proxy-envoy", "scrape-proxy"]
UNVERIFIED = ("insecure_skip_verify", "insecureSkipVerify")


def mesh(*more: Any, **workload: Any) -> Inventory:
    """A mesh with one workload, and more."""
    return cluster(control_plane("1.31.0"), injected_namespace(), deployment(**workload), *more)


def operator_of(version: str) -> dict[str, Any]:
    """The Operator's own Deployment."""
    found = deployment("prometheus-operator", "monitoring")
    (container,) = found["spec"]["template"]["spec"]["containers"]
    container["image"] = f"quay.io/prometheus-operator/prometheus-operator:v{version}"
    return found


def operated(version: str = "0.85.0") -> Inventory:
    """A mesh that a Prometheus of the Operator reads in plaintext."""
    server = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": meta("k8s", "monitoring"),
        "spec": {
            "serviceAccountName": "prometheus-k8s",
            "podMonitorSelector": {},
            "podMonitorNamespaceSelector": {},
        },
    }
    monitor = pod_monitor("envoy-stats-monitor", secure=False)
    return mesh(namespace("monitoring"), operator_of(version), server, monitor)


def written(plan: Plan) -> str:
    """All objects that a plan creates or changes, as text."""
    return yaml.safe_dump_all([change.after for change in plan.changes if change.after])


def unverified(plan: Plan) -> bool:
    """Whether a plan writes a job or class that does not verify its targets."""
    return any(word in written(plan) for word in UNVERIFIED)


def verified(inventory: Inventory, plan: Plan) -> set[Ref]:
    """The workloads that a job through a scrape proxy reads after the plan."""
    after = observe(plan.apply(inventory))
    return {ref for job in after.scrape_jobs if job.verified for ref in job.ports_after}


@pytest.mark.parametrize(
    ("inventory", "prometheus"),
    [(mesh(plain_prometheus()), "existing"), (mesh(namespace("monitoring")), "addon"),
     (mesh(namespace("monitoring")), "operator"), (operated(), "existing")],
    ids=["existing", "addon", "operator", "existing-operator"],
)  # fmt: skip
def test_every_prometheus_scrapes_through_a_proxy_that_verifies(
    inventory: Inventory, prometheus: str
) -> None:
    """The plan settles, secures and hardens the workload, and nothing in it skips a verification."""
    plan = settled(inventory, prometheus=prometheus, prometheus_namespace="monitoring", **PROXY)
    assert not unverified(plan)
    assert "http://127.0.0.1:15094" in written(plan)
    web = next(ref for ref in plan.modes if ref.namespace == "default")
    assert web in verified(inventory, plan)
    assert any(change.phase == "hardening" and change.ref == web for change in plan.changes), refs(plan)
    assert not plan.gates or all(gate.planned for gate in plan.gates)


def test_an_existing_prometheus_gets_sidecars_and_only_the_token() -> None:
    """Native sidecars of the image, volumes in memory, rights to list and watch pods; no sidecar of Istio."""
    plan = settled(mesh(plain_prometheus()), **PROXY)
    found = template(plan, name="prometheus")
    assert "annotations" not in found["metadata"]
    assert found["metadata"]["labels"] == {"app": "prometheus"}
    sidecars = found["spec"]["initContainers"]
    assert [each["name"] for each in sidecars] == SIDECARS
    assert {each["image"] for each in sidecars} == {IMAGE}
    assert {each["restartPolicy"] for each in sidecars} == {"Always"}
    assert "exec" in sidecars[2]["startupProbe"]
    volumes = {each["name"]: each for each in found["spec"]["volumes"]}
    assert volumes["scrape-proxy"]["emptyDir"]["medium"] == "Memory"
    assert volumes["scrape-proxy-token"]["emptyDir"]["medium"] == "Memory"
    mounts = {each["name"]: each for each in found["spec"]["containers"][0]["volumeMounts"]}
    assert set(mounts) == {"config", "scrape-proxy-token"}
    assert mounts["scrape-proxy-token"]["readOnly"] is True
    config = yaml.safe_load(changed(plan, "ConfigMap", "prometheus")["data"]["prometheus.yml"])
    (own,) = [job for job in config["scrape_configs"] if job["job_name"] == "meshscrape-scrape-proxy"]
    assert own["static_configs"] == [{"targets": ["127.0.0.1:15095"]}]
    role = changed(plan, "ClusterRole")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    (subject,) = changed(plan, "ClusterRoleBinding")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "prometheus", "namespace": "monitoring"}


def test_a_prometheus_in_the_mesh_keeps_its_interception() -> None:
    """The proxy's user is not intercepted, so nothing of the pod's own traffic changes."""
    injected = plain_prometheus(annotations={"sidecar.istio.io/inject": "true"})
    injected[0]["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] = "true"
    plan = settled(mesh(injected), **PROXY)
    assert "interception-ends" not in codes(plan)
    assert "traffic.sidecar.istio.io/includeOutboundIPRanges" not in written(plan)
    assert any(change.phase == "hardening" for change in plan.changes)


@pytest.mark.parametrize("intent", [{}, {"scrape_proxy": True}, {"prometheus": "addon"}])
def test_plan_notes_unverified_targets_without_a_proxy(intent: dict[str, Any]) -> None:
    """Direct jobs come with one note: not asked for, or no image."""
    plan = settled(mesh(plain_prometheus(), namespace("istio-system")), **intent)
    assert unverified(plan)
    assert len(codes(plan) & {"targets-unverified", "proxy-image-missing"}) == 1


def test_a_new_prometheus_goes_through_a_proxy_by_default_and_directly_on_request() -> None:
    """The image is all that a new Prometheus needs; `--no-scrape-proxy` is still possible."""
    inventory = mesh(namespace("istio-system"))
    assert not unverified(settled(inventory, prometheus="addon", proxy_image=IMAGE))
    direct = settled(inventory, prometheus="addon", proxy_image=IMAGE, scrape_proxy=False)
    assert unverified(direct)
    assert "targets-unverified" in codes(direct)


def test_an_old_operator_scrapes_directly() -> None:
    """Scrape classes without `authorization` cannot carry the token."""
    plan = settled(operated("0.78.2"), **PROXY)
    assert "scrape-proxy-operator" in codes(plan)
    assert unverified(plan)
    assert "http://127.0.0.1:15094" not in written(plan)


def test_a_direct_prometheus_moves_to_a_proxy() -> None:
    """Jobs of an earlier plan are replaced in place, their certificates' paths included."""
    inventory = mesh(plain_prometheus())
    direct = planned(inventory)
    assert unverified(direct)
    after = direct.apply(inventory)
    plan = settled(after, **PROXY)
    config = yaml.safe_load(changed(plan, "ConfigMap", "prometheus")["data"]["prometheus.yml"])
    secure = [job for job in config["scrape_configs"] if job["job_name"].startswith("istio-secure")]
    assert secure
    assert all("tls_config" not in job and job["proxy_url"] for job in secure)


def test_an_applications_own_port_is_scraped_through_the_proxy() -> None:
    """Metrics that are not merged have a job of their own, and it is verified like the others."""
    own = {
        "prometheus.istio.io/merge-metrics": "false",
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9080",
    }
    exposed = service(target=9080, port_name="http-web")
    inventory = mesh(plain_prometheus(), exposed, peer_authentication("STRICT"), port=9080, annotations=own)
    plan = settled(inventory, **PROXY)
    assert not unverified(plan)
    assert "istio-secure-application-metrics" in written(plan)


def test_the_agent_asks_the_istiod_of_the_revision() -> None:
    """The address of the CA follows the control plane that injects."""
    plan = settled(mesh(plain_prometheus()), **PROXY)
    agent = template(plan, name="prometheus")["spec"]["initContainers"][0]
    told = {each["name"]: each.get("value") for each in agent["env"]}
    assert told["CA_ADDR"] == "istiod.istio-system.svc:15012"
    assert told["TRUST_DOMAIN"] == "cluster.local"
    # As the API server stores an empty value: without one.
    assert told["INBOUND_CAPTURE_PORTS"] is None
