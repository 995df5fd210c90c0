"""Plans whose Prometheus scrapes through a scrape proxy in its pod."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory, Manifest, Ref
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
from support.planning import changed, codes, planned, ref, refs, settled, template
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


def in_namespaces(*names: str) -> tuple[dict[str, Any], ...]:
    """A Prometheus in plaintext whose jobs find pods in these namespaces only."""
    objects = plain_prometheus()
    (config,) = [each for each in objects if each["kind"] == "ConfigMap"]
    content = yaml.safe_load(config["data"]["prometheus.yml"])
    for job in content["scrape_configs"]:
        for discovery in job.get("kubernetes_sd_configs", ()):
            discovery["namespaces"] = {"names": list(names)}
    config["data"]["prometheus.yml"] = yaml.safe_dump(content)
    return tuple(objects)


def granted(plan: Plan) -> set[tuple[str, str, str]]:
    """Action, kind and namespace of each role and binding of a plan."""
    return {
        (change.action, change.ref.kind, change.ref.namespace)
        for change in plan.changes
        if change.ref.group == "rbac.authorization.k8s.io"
    }


def arguments(plan: Plan) -> list[str]:
    """The arguments of the container that follows pods."""
    return next(
        list(each["args"])
        for each in template(plan, name="prometheus")["spec"]["initContainers"]
        if each["name"] == "scrape-proxy"
    )


def test_jobs_in_namespaces_give_the_proxy_roles_there_only() -> None:
    """It lists and watches pods where the jobs find them, and has no right anywhere else."""
    inventory = mesh(in_namespaces("default", "shop"))
    plan = settled(inventory, **PROXY)
    assert granted(plan) == {
        ("create", kind, namespace) for kind in ("Role", "RoleBinding") for namespace in ("default", "shop")
    }
    words = arguments(plan)
    assert [words[at + 1] for at, word in enumerate(words) if word == "--namespace"] == ["default", "shop"]
    assert verified(inventory, plan) == {ref("Deployment", "httpbin")}


def test_a_job_in_every_namespace_gives_the_proxy_a_cluster_role() -> None:
    """One job without namespaces is enough, and the roles of an earlier plan go."""
    narrow = mesh(in_namespaces("default"))
    narrowed = settled(narrow, **PROXY).apply(narrow)
    config = Ref("", "ConfigMap", "monitoring", "prometheus")
    manifest = narrowed.get(config)
    assert manifest is not None
    text = str(manifest.data["data"]["prometheus.yml"])
    wide = {**manifest.data, "data": {"prometheus.yml": _everywhere(text)}}
    plan = settled(narrowed.changed([Manifest(config, wide)], ()), **PROXY)
    assert granted(plan) == {
        ("create", "ClusterRole", ""), ("create", "ClusterRoleBinding", ""),
        ("delete", "Role", "default"), ("delete", "RoleBinding", "default"),
    }  # fmt: skip
    assert "--namespace" not in arguments(plan)


def _everywhere(text: str) -> str:
    content = yaml.safe_load(text)
    for job in content["scrape_configs"]:
        for discovery in job.get("kubernetes_sd_configs", ()):
            discovery.pop("namespaces", None)
    return yaml.safe_dump(content)


def test_monitors_in_namespaces_give_the_operators_proxy_roles_there_only() -> None:
    """A monitor's namespaceSelector counts as a job's namespaces."""
    inventory = operated()
    (monitor,) = inventory.of_kind("PodMonitor")
    data = {
        **monitor.data,
        "spec": {**monitor.data["spec"], "namespaceSelector": {"matchNames": ["default"]}},
    }
    plan = settled(inventory.changed([Manifest(monitor.ref, data)], ()), **PROXY)
    assert granted(plan) == {("create", kind, "default") for kind in ("Role", "RoleBinding")}


def test_a_proxy_that_does_not_know_the_jobs_namespace_verifies_nothing() -> None:
    """A job in more namespaces than the proxy follows is not counted as scraped through it."""
    inventory = mesh(in_namespaces("default"))
    after = settled(inventory, **PROXY).apply(inventory)
    prometheus = Ref("apps", "Deployment", "monitoring", "prometheus")
    manifest = after.get(prometheus)
    assert manifest is not None
    text = yaml.safe_dump(manifest.data).replace("- default\n", "- elsewhere\n")
    other = after.changed([Manifest(prometheus, yaml.safe_load(text))], ())
    assert any(job.verified for job in observe(after).scrape_jobs)
    assert not any(job.verified for job in observe(other).scrape_jobs)


def test_a_csi_volume_brings_the_certificate_instead_of_an_agent() -> None:
    """csi-driver-spiffe: no agent, no token for istiod, and a key that the proxy's group can read."""
    plan = settled(mesh(plain_prometheus()), proxy_certificates="csi-driver-spiffe", **PROXY)
    spec = template(plan, name="prometheus")["spec"]
    assert [each["name"] for each in spec["initContainers"]] == SIDECARS[1:]
    for container in spec["initContainers"]:
        assert {
            "name": "scrape-proxy-spiffe",
            "mountPath": "/var/run/secrets/spiffe.io",
            "readOnly": True,
        } in (container["volumeMounts"])
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert set(volumes) == {"config", "scrape-proxy", "scrape-proxy-token", "scrape-proxy-spiffe"}
    assert volumes["scrape-proxy-spiffe"]["csi"]["driver"] == "spiffe.csi.cert-manager.io"
    assert "startupProbe" in spec["initContainers"][-1]
    assert "certificates-from-files" in codes(plan)
    assert not unverified(plan)


@pytest.mark.parametrize("prometheus", ["addon", "operator"])
def test_a_new_prometheus_takes_its_certificate_from_the_csi_driver(prometheus: str) -> None:
    """The same for a Prometheus that the plan writes."""
    intent = {"prometheus": prometheus, "prometheus_namespace": "monitoring", **PROXY}
    plan = settled(mesh(namespace("monitoring")), proxy_certificates="csi-driver-spiffe", **intent)
    assert "scrape-proxy-agent" not in written(plan)
    assert "spiffe.csi.cert-manager.io" in written(plan)
    with pytest.raises(InputError, match="no directory of certificate files"):
        planned(mesh(), proxy_certificates="/etc/certs", **intent)


def helped(*, native: bool, mounted: str = "/run/spiffe") -> list[dict[str, Any]]:
    """A Prometheus with a spiffe-helper beside it."""
    objects = plain_prometheus()
    spec = objects[0]["spec"]["template"]["spec"]
    helper = {"name": "spiffe-helper", "image": "spiffe-helper", "volumeMounts": [
        {"name": "svid", "mountPath": mounted}]}  # fmt: skip
    if native:
        spec["initContainers"] = [{**helper, "restartPolicy": "Always"}]
    else:
        spec["containers"].append(helper)
    spec["volumes"].append({"name": "svid", "emptyDir": {"medium": "Memory"}})
    return objects


@pytest.mark.parametrize("native", [True, False])
def test_files_of_another_container_are_mounted_where_it_has_them(native: bool) -> None:
    """Without a startup probe where the writer starts later: each would wait for the other."""
    plan = settled(mesh(helped(native=native)), proxy_certificates="/run/spiffe", **PROXY)
    spec = template(plan, name="prometheus")["spec"]
    own = {each["name"]: each for each in spec["initContainers"] if each["name"] in SIDECARS}
    assert list(own) == SIDECARS[1:]
    for container in own.values():
        assert {"name": "svid", "mountPath": "/run/spiffe", "readOnly": True} in container["volumeMounts"]
    words = own["scrape-proxy"]["args"]
    assert words[words.index("--credentials") + 1] == "/run/spiffe"
    assert ("startupProbe" in own["scrape-proxy"]) is native
    assert ("starts-before-certificates" in codes(plan)) is not native
    assert [each["name"] for each in spec["initContainers"]][-2:] == SIDECARS[1:]


def test_a_proxy_waits_for_no_files_that_may_come_later() -> None:
    """An init container that prepares the volume is not the writer; a probe of an earlier plan goes."""
    probing = planned(mesh(helped(native=True)), proxy_certificates="/run/spiffe", **PROXY)
    mount = {"name": "svid", "mountPath": "/run/spiffe"}
    early = template(probing, name="prometheus")["spec"]["initContainers"]
    objects = helped(native=False)
    spec = objects[0]["spec"]["template"]["spec"]
    prepares = {"name": "prepare", "image": "busybox", "volumeMounts": [mount]}
    spec["initContainers"] = [prepares, *(each for each in early if each["name"] in SIDECARS)]
    plan = settled(mesh(objects), proxy_certificates="/run/spiffe", **PROXY)
    after = {each["name"]: each for each in template(plan, name="prometheus")["spec"]["initContainers"]}
    assert "startupProbe" in next(each for each in early if each["name"] == "scrape-proxy")
    assert "startupProbe" not in after["scrape-proxy"]
    assert "starts-before-certificates" in codes(plan)


def test_files_of_an_istio_proxy_are_those_of_its_own_volume() -> None:
    """OUTPUT_CERTS of the pod's istio-proxy, which the injector mounts by an annotation."""
    notes = {
        "sidecar.istio.io/inject": "true",
        "sidecar.istio.io/nativeSidecar": "true",
        "proxy.istio.io/config": "proxyMetadata:\n  OUTPUT_CERTS: /etc/istio-output-certs\n",
        "sidecar.istio.io/userVolumeMount": '{"certs": {"mountPath": "/etc/istio-output-certs"}}',
    }
    objects = plain_prometheus(annotations=notes)
    objects[0]["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] = "true"
    objects[0]["spec"]["template"]["spec"]["volumes"].append(
        {"name": "certs", "emptyDir": {"medium": "Memory"}}
    )
    plan = settled(mesh(objects), proxy_certificates="/etc/istio-output-certs", **PROXY)
    routes = template(plan, name="prometheus")["spec"]["initContainers"][-1]
    assert {"name": "certs", "mountPath": "/etc/istio-output-certs", "readOnly": True} in routes[
        "volumeMounts"
    ]
    assert "startupProbe" in routes


def test_a_directory_that_no_container_has_is_refused() -> None:
    """The scraper stays as it is, and so do the plaintext ports that it reads."""
    plan = settled(mesh(helped(native=True)), proxy_certificates="/run/typo", **PROXY)
    assert "certificates-not-mounted" in written_codes(plan)
    assert not [change for change in plan.changes if change.ref.name == "prometheus"]
    assert not [change for change in plan.changes if change.phase == "hardening"]


def written_codes(plan: Plan) -> set[str]:
    """The codes of a plan's notes, and of what its gates wait for."""
    return codes(plan) | {missing.code for gate in plan.gates for missing in gate.waits_for}


def test_another_source_of_certificates_replaces_the_first() -> None:
    """No container and no volume of the agent is left, and the way back leaves nothing either."""
    inventory = mesh(plain_prometheus())
    first = settled(inventory, **PROXY).apply(inventory)
    plan = settled(first, proxy_certificates="csi-driver-spiffe", **PROXY)
    spec = template(plan, name="prometheus")["spec"]
    assert [each["name"] for each in spec["initContainers"]] == SIDECARS[1:]
    assert "scrape-proxy-istio-token" not in [each["name"] for each in spec["volumes"]]


@pytest.mark.parametrize(
    ("prometheus", "kind", "scale"),
    [("addon", "Deployment", {"replicas": 2}), ("operator", "Prometheus", {"replicas": 2, "shards": 3})],
)
def test_a_prometheus_of_the_plan_keeps_the_scale_that_it_was_given(
    prometheus: str, kind: str, scale: dict[str, int]
) -> None:
    """A second plan changes nothing; one that changes its pods leaves their number alone."""
    where = {"prometheus": prometheus, "prometheus_namespace": "monitoring"}
    inventory = mesh(namespace("monitoring"))
    first = planned(inventory, **where)
    after = first.apply(inventory)
    made = next(each for each in after if each.ref.kind == kind and each.ref.namespace == "monitoring")
    scaled = after.replace(
        Manifest(made.ref, {**made.data, "spec": {**made.data["spec"], **scale}}, made.where)
    )
    assert refs(planned(scaled, **where)) == []
    proxied = settled(scaled, **where, **PROXY)
    spec = changed(proxied, kind)["spec"]
    assert {key: spec[key] for key in scale} == scale
