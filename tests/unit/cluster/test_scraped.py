"""Which targets are up, from the answers of several Prometheus."""

from __future__ import annotations

from typing import Any

from meshscrape.cluster.scraped import (
    expected_targets,
    health_by_target,
    left_targets,
    prometheus_pods,
    prometheus_selectors,
)
from support.examples import secured
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    observed,
    only,
    pod_of,
    proxy_config,
)
from support.scraping_objects import plain_prometheus


def answer(**health: str) -> dict[str, Any]:
    """What `/api/v1/targets` says of addresses, spelled with _ for dots."""
    targets = [
        {"scrapeUrl": f"https://{name.replace('_', '.').strip('.')}:15092/stats/prometheus", "health": state}
        for name, state in health.items()
    ]
    return {"data": {"activeTargets": targets}}


def test_a_target_is_up_when_each_replica_that_has_it_says_so() -> None:
    first, second = answer(_10_0_0_1="up", _10_0_0_2="down"), answer(_10_0_0_1="up", _10_0_0_2="up")
    assert health_by_target([first, second]) == {"10.0.0.1:15092": "up", "10.0.0.2:15092": "down"}
    assert health_by_target([second, first]) == {"10.0.0.1:15092": "up", "10.0.0.2:15092": "down"}


def test_shards_have_different_targets() -> None:
    found = health_by_target([answer(_10_0_0_1="up"), answer(_10_0_0_2="up")])
    assert set(found) == {"10.0.0.1:15092", "10.0.0.2:15092"}


def with_pod(app: str, address: str, *, ready: bool = True) -> list[Any]:
    """The example, with one pod of a workload in place of the pods that it has."""
    objects = [item for item in secured() if item["kind"] != "Pod"]
    owner = only(item for item in objects if item["kind"] == "Deployment" and item["metadata"]["name"] == app)
    pod = pod_of(owner, ip=address, variables={"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"})
    pod["status"]["conditions"] = [{"type": "Ready", "status": str(ready)}]
    return [*objects, pod]


def test_waits_for_the_ready_pods_that_a_job_scrapes_over_mutual_tls() -> None:
    for ready, expected in ((True, {"10.0.0.1:15092"}), (False, set())):
        observation = observed(with_pod("httpbin", "10.0.0.1", ready=ready))
        found = expected_targets(observation, [workload.ref for workload in observation.workloads], "mtls")
        assert set(found) == expected


def test_waits_for_no_target_of_a_scraper_that_cannot_be_asked() -> None:
    observation = observed(with_pod("httpbin", "10.0.0.1"))
    refs = [workload.ref for workload in observation.workloads]
    scrapers = [scraper.ref for scraper in observation.scrapers]
    assert expected_targets(observation, refs, "mtls")
    assert expected_targets(observation, refs, "mtls", scrapers) == {}


def test_asks_the_ready_pods_of_prometheus_and_names_one_without_any() -> None:
    for ready, expected in ((True, (1, [])), (False, (0, ["prometheus"]))):
        objects = with_pod("prometheus", "10.0.0.9", ready=ready)
        pods, others = prometheus_pods(observed(objects), cluster(objects))
        assert (len(pods), [ref.name for ref in others]) == expected


def test_on_the_way_back_it_waits_for_plaintext_targets_and_for_the_end_of_the_secure_ones() -> None:
    web = deployment("web", annotations=proxy_config({"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}))
    pod = pod_of(web, ip="10.0.0.1", variables={"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"})
    pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    observation = observed(control_plane(), injected_namespace(), web, pod, plain_prometheus())
    refs = [workload.ref for workload in observation.workloads]
    returned = expected_targets(observation, refs, "plaintext")
    assert set(returned) == {"10.0.0.1:15020"}
    assert left_targets(observation, returned) == {"10.0.0.1:15092"}
    assert left_targets(observation, {}) == frozenset()


def test_selects_the_pods_of_prometheus_also_after_a_restart() -> None:
    objects = [*control_plane(), *plain_prometheus()]
    (found,) = prometheus_selectors(observed(objects), cluster(objects))
    namespace, selector = found
    (workload,) = (each for each in plain_prometheus() if each["kind"] == "Deployment")
    expected = workload["spec"]["selector"]["matchLabels"]
    assert (namespace, selector) == ("monitoring", ",".join(f"{k}={v}" for k, v in expected.items()))
