"""What to do next about each workload."""

from __future__ import annotations

from typing import Any

import pytest

from support.objects import (
    LOCALHOST_ONLY,
    SECURE,
    control_plane,
    deployment,
    namespace,
    observed,
    pod_of,
    proxy_config,
)
from support.scraping_objects import kubernetes_pods, plain_prometheus, prometheus, secure_job

PLANE = [*control_plane(), namespace("default", istio_injection="enabled"), namespace("monitoring")]
SECURED = deployment(annotations=proxy_config(SECURE))


def step(*parts: Any, name: str = "httpbin") -> str:
    found = observed(PLANE, *parts)
    return next(text for ref, text in found.next_steps.items() if ref.name == name)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([deployment()], "open a secure port"),
        ([SECURED], "scrape the secure port"),
        ([SECURED, prometheus(secure_job())], "close 15090 and 15020"),
        ([SECURED, prometheus(secure_job(), kubernetes_pods())], "leave the plaintext job"),
        ([deployment(annotations=proxy_config(SECURE | LOCALHOST_ONLY)), prometheus(secure_job())], "done"),
        ([SECURED, pod_of(deployment())], "restart"),
        ([deployment(annotations=proxy_config({"DISABLE_ENVOY": "true"}))], "no Envoy"),
        (
            [deployment(annotations={"traffic.sidecar.istio.io/excludeInboundPorts": "*"})],
            "annotation-refused",
        ),
        ([deployment(labels={"sidecar.istio.io/inject": "false"})], "--inject"),
    ],
)
def test_next_step_is_the_first_one_not_done(parts: list[Any], words: str) -> None:
    """Errors come first, then the steps of a plan in their order."""
    assert words in step(*parts)


def test_a_scraper_needs_a_certificate() -> None:
    """Its own metrics are not the point; whether it can scrape is."""
    assert "certificate" in step(plain_prometheus(), name="prometheus")
    assert step(prometheus(secure_job()), name="prometheus").startswith("done")


def test_a_template_of_another_controller_is_changed_at_its_owner() -> None:
    """A change of the Deployment would be taken back."""
    owned = deployment()
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": "serving.knative.dev/v1", "kind": "Revision", "name": "hello", "controller": True}
    ]
    assert step(owned) == "change Revision hello"
