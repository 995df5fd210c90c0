"""Explain a pod of a cluster by its objects and by what was seen of it."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.verify.explain.pod import explain_pod, find_pod
from meshscrape.verify.findings import CheckResult
from meshscrape.verify.kubernetes import title_of
from support.objects import cluster, control_plane, deployment, injected_namespace, pod_of, proxy_config

SECURE = {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}


def mesh(*, current: bool = True, secure: bool = True) -> Observation:
    """A workload and its pod; the pod may be older than the template."""
    settings = SECURE if secure else {}
    web = deployment("web", annotations=proxy_config(settings) if secure else None)
    pod = pod_of(web, variables=settings if current else {}, name="web-1")
    return observe(cluster(control_plane(), injected_namespace(), web, pod))


def test_a_target_that_is_up_is_healthy() -> None:
    seen = mesh()
    workload, pod = find_pod(seen, "default/web-1")
    up = CheckResult(
        "prometheus-target",
        title_of(workload),
        f"https://{pod.ip}:15092/stats/prometheus",
        "passed",
        "up",
        "",
    )
    (found,) = explain_pod(seen, workload, pod, [up])
    assert found.broken is None
    assert found.target.url == f"https://{pod.ip}:15092/stats/prometheus"
    assert [step.name for step in found.steps] == ["proxy", "secure port", "pod", "scrape job", up.check]


def test_the_first_broken_step_ends_the_explanation() -> None:
    seen = mesh()
    workload, pod = find_pod(seen, "default/web-1")
    results = [
        CheckResult(check, title_of(workload), "web-1:15092", "failed", "HTTP 200", "none", "close it")
        for check in ("plain-http", "no-certificate")
    ]
    (found,) = explain_pod(seen, workload, pod, results)
    assert found.broken is not None and found.broken.name == "plain-http"
    assert found.steps[-1] is found.broken


def test_a_pod_without_a_secure_port_is_broken() -> None:
    seen = mesh(secure=False)
    (found,) = explain_pod(seen, *find_pod(seen, "default/web-1"), [])
    assert found.broken is not None and found.broken.name == "secure port"


@pytest.mark.parametrize("text", ["web-1", "default/", "default/absent"])
def test_an_unknown_pod_is_an_error(text: str) -> None:
    with pytest.raises(InputError):
        find_pod(mesh(), text)
