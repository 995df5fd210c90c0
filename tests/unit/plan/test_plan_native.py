"""Plans in native mode: annotations of sidecars, ports under STRICT, who is refused."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    namespace,
    peer_authentication,
)
from support.planning import annotations, codes, proxy_config, refs, settled
from support.scraping_objects import plain_prometheus

EXCLUDE = "traffic.sidecar.istio.io/excludeInboundPorts"
CONFIG = "proxy.istio.io/config"


def shop(**workload: object) -> list[dict[str, object]]:
    return [*control_plane("1.31.0"), injected_namespace(), deployment(**workload)]  # type: ignore[arg-type]


def test_a_sidecar_opens_its_merged_port() -> None:
    """A proxy of 1.31 gets the variable, and nothing but its Deployment changes."""
    plan = settled(cluster(shop()), prometheus="none", harden=False)
    assert proxy_config(plan) == {"proxyMetadata": {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}}
    assert refs(plan) == [("listeners", "update", "Deployment/httpbin")]
    assert plan.changes[0].restarts == ("Deployment default/httpbin",)


def test_the_users_own_proxy_config_is_kept() -> None:
    """Trap 1: the annotation is one string; other fields, comments and order in it stay."""
    own = '# ours\nconcurrency: 2  # two\nproxyMetadata:\n  # dns\n  DNS: "true"\ntracing: {}\n'
    plan = settled(cluster(shop(annotations={CONFIG: own})), prometheus="none", harden=False)
    assert annotations(plan)[CONFIG] == own.replace(
        '"true"\n', '"true"\n  ENVOY_SECURE_MERGED_METRICS_PORT: "15092"\n'
    )


@pytest.mark.parametrize("spelled", ['{"concurrency": 2}', "{concurrency: 2}", "concurrency: 2", ""])
def test_every_spelling_of_proxy_config_is_merged(spelled: str) -> None:
    """Trap 1: JSON, flow style, no line end, and nothing at all."""
    plan = settled(cluster(shop(annotations={CONFIG: spelled})), prometheus="none", harden=False)
    expected = {"proxyMetadata": {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}}
    assert proxy_config(plan) == ({"concurrency": 2} if spelled else {}) | expected


def test_a_broken_proxy_config_is_refused_not_replaced() -> None:
    """Trap 1: what cannot be read is left alone, with the reason."""
    plan = settled(cluster(shop(annotations={CONFIG: "a: [b"})), prometheus="none")
    assert plan.changes == ()
    assert "never-starts" in codes(plan)


def test_under_strict_the_ports_are_excluded_from_capture() -> None:
    """Trap 2: the port joins the ports that are excluded already."""
    own = {EXCLUDE: "9999, 3306"}
    objects = [*shop(annotations=own), peer_authentication("STRICT")]
    plan = settled(cluster(objects), prometheus="none", harden=False)
    assert annotations(plan)[EXCLUDE] == "9999,3306,15092"


def test_a_configured_port_under_strict_gets_its_exclusion() -> None:
    """Trap 2: a workload that only lacks the exclusion gets just that."""
    own = {CONFIG: 'proxyMetadata: {ENVOY_SECURE_MERGED_METRICS_PORT: "15092"}'}
    objects = [*shop(annotations=own), peer_authentication("STRICT")]
    plan = settled(cluster(objects), prometheus="none", harden=False)
    assert annotations(plan) == own | {EXCLUDE: "15092"}


def test_a_configured_port_under_permissive_is_left_alone() -> None:
    """Trap 2: without STRICT it works as it is, so nothing restarts."""
    own = {CONFIG: 'proxyMetadata: {ENVOY_SECURE_MERGED_METRICS_PORT: "15092"}'}
    assert settled(cluster(shop(annotations=own)), prometheus="none", harden=False).changes == ()


def test_the_mesh_wide_exclusions_go_into_the_annotation() -> None:
    """Trap 2: the annotation replaces the injector's own list, so that list goes into it."""
    own = {"global": {"tag": "1.31.0", "proxy": {"excludeInboundPorts": "8888"}}}
    plane = control_plane("1.31.0", values=own)
    plan = settled(cluster(plane, injected_namespace(), deployment()), prometheus="none", harden=False)
    assert annotations(plan)[EXCLUDE] == "8888,15092"


@pytest.mark.parametrize(
    "own",
    [{"traffic.sidecar.istio.io/includeInboundPorts": ""}, {"sidecar.istio.io/interceptionMode": "NONE"}],
)
def test_workload_without_capture_needs_no_exclusion(own: dict[str, str]) -> None:
    """Trap 2: ports that are not captured are not excluded either."""
    objects = [*shop(annotations=own), peer_authentication("STRICT")]
    assert EXCLUDE not in annotations(settled(cluster(objects), prometheus="none", harden=False))


def test_a_list_that_captures_the_port_is_answered_by_an_exclusion() -> None:
    """Trap 2: with an explicit list, only what it names is captured."""
    own = {"traffic.sidecar.istio.io/includeInboundPorts": "8080,15092"}
    objects = [*shop(annotations=own), peer_authentication("STRICT")]
    plan = settled(cluster(objects), prometheus="none", harden=False, envoy_port=15091)
    assert annotations(plan)[EXCLUDE] == "15092"


def test_the_announcement_of_the_merged_port_is_the_injectors() -> None:
    """Trap 3: secure-port is written at injection; secure-envoy-port never, so that one is planned."""
    plan = settled(cluster(shop()), prometheus="none", harden=False, envoy_port=15091)
    assert annotations(plan)["prometheus.istio.io/secure-envoy-port"] == "15091"
    assert "prometheus.istio.io/secure-port" not in annotations(plan)
    assert annotations(plan)[EXCLUDE] == "15091,15092"


def test_a_stale_announcement_is_corrected() -> None:
    """Trap 3: the injector leaves a value alone that is there, such as 15091 from the older recipe."""
    own = {"prometheus.istio.io/secure-port": "15091"}
    plan = settled(cluster(shop(annotations=own)), prometheus="none", harden=False)
    assert annotations(plan)["prometheus.istio.io/secure-port"] == "15092"


def test_an_unknown_version_is_not_guessed() -> None:
    """Without anything that tells the version, the workload is refused, and the option is named."""
    plan = settled(cluster(injected_namespace(), deployment()), prometheus="none")
    assert plan.changes == ()
    assert "version-unknown" in codes(plan)


def test_native_is_refused_for_older_proxies() -> None:
    """Forced native mode on 1.30 would be ignored silently by the proxy, so it is refused."""
    objects = [*control_plane("1.30.3"), injected_namespace(), deployment()]
    plan = settled(cluster(objects), prometheus="none", mode="native")
    assert plan.changes == ()
    assert "native-too-old" in codes(plan)


def test_a_port_of_the_application_is_not_taken() -> None:
    """A workload whose application listens on 15092 itself is refused, with the option that helps."""
    plan = settled(cluster(shop(port=15092)), prometheus="none")
    assert plan.changes == ()
    assert "port-taken" in codes(plan)


def test_namespaces_and_selectors_choose() -> None:
    """Only chosen workloads are planned for."""
    objects = [*shop(), injected_namespace("other"), deployment("b", "other"), deployment("c")]
    by_name = settled(cluster(objects), prometheus="none", harden=False, namespaces=("other",))
    by_label = settled(
        cluster(objects), prometheus="none", harden=False, selector={"matchLabels": {"app": "c"}}
    )
    assert refs(by_name) == [("listeners", "update", "Deployment/b")]
    assert refs(by_label) == [("listeners", "update", "Deployment/c")]


def test_standalone_pods_and_jobs_are_reported_not_touched() -> None:
    """Trap 11: nothing makes them anew, and nothing of the user's is deleted."""
    pod = deployment("lonely")["spec"]["template"]
    alone = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "lonely", "namespace": "default"},
        "spec": pod["spec"],
    }
    job = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once", "namespace": "default"},
        "spec": {"template": deployment("once")["spec"]["template"]},
    }  # fmt: skip
    plan = settled(cluster(*control_plane(), injected_namespace(), alone, job), prometheus="none")
    assert plan.changes == ()
    assert "standalone" in codes(plan)


def test_ambient_workloads_are_out_of_scope() -> None:
    """Trap 13: they have no sidecar; that is said, not planned around."""
    objects = [*control_plane(), namespace(labels={"istio.io/dataplane-mode": "ambient"}), deployment()]
    plan = settled(cluster(objects), prometheus="none")
    assert plan.changes == ()
    assert "ambient" in codes(plan)


def test_a_users_own_proxy_container_is_set_too() -> None:
    """Variables on a container istio-proxy of the pod win over the annotation: they are changed there."""
    made = deployment()
    own = {"name": "istio-proxy", "image": "auto", "env": [
        {"name": "ENVOY_SECURE_MERGED_METRICS_PORT", "value": "0"}, {"name": "MINE", "value": "x"}
    ]}  # fmt: skip
    made["spec"]["template"]["spec"]["containers"].append(own)
    plan = settled(cluster(control_plane(), injected_namespace(), made), prometheus="none", harden=False)
    (_, proxy) = plan.changes[0].after["spec"]["template"]["spec"]["containers"]  # type: ignore[index]
    assert proxy["env"] == [
        {"name": "ENVOY_SECURE_MERGED_METRICS_PORT", "value": "15092"}, {"name": "MINE", "value": "x"}
    ]  # fmt: skip


@pytest.mark.parametrize("port", [15090, 15020, 15006])
def test_reserved_ports_are_refused(port: int) -> None:
    """The data plane's own ports cannot be taken for anything else."""
    with pytest.raises(InputError, match="reserved"):
        settled(cluster(shop()), merged_port=port)


def test_one_port_for_both_is_refused() -> None:
    """Two listeners on one port keep Envoy from starting."""
    with pytest.raises(InputError, match="both ports are 15092"):
        settled(cluster(shop()), envoy_port=15092)


def test_planning_one_namespace_after_another_loses_nothing() -> None:
    """The jobs are of all namespaces: a plan for the next one does not take the first one's targets away."""
    inventory = cluster(shop(), injected_namespace("other"), deployment("b", "other"), plain_prometheus())
    first = settled(inventory, namespaces=("default",))
    second = settled(first.apply(inventory), namespaces=("other",))
    assert [name for _, _, name in refs(second)] == ["Deployment/b", "Deployment/b"]


def test_native_mode_notes_that_every_workload_may_read() -> None:
    """Istio's own listeners have no allow list."""
    assert "native-no-allow-list" in codes(settled(cluster(shop()), prometheus="none"))
