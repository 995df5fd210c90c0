"""verify and explain on a live cluster, without an image: through the API server and Prometheus' API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import shop
from conformance.kube import Kube, until
from conformance.live import Live

Row = Callable[..., None]
YES = ("--yes", "--yes-interruption")


def report(live: Live, code: int) -> Any:
    """The document of a verification that ends with a code."""
    done = live.run("verify", "--kubernetes", "-n", shop.NAMESPACE, "-o", "json")
    document = json.loads(done.stdout)
    assert done.returncode == code, (document["findings"], done.stderr)
    return document


def outcomes(document: Any, check: str) -> list[str]:
    """The outcomes of one check."""
    return [each["outcome"] for each in document["checks"] if each["check"] == check]


@pytest.mark.timeout(2400)
def test_verify_tells_a_secured_shop_from_one_with_a_hole(kube: Kube, meshscrape: Path, row: Row) -> None:
    """No finding after apply; a reopened port, a lost target and a missing right are found."""
    live = Live(meshscrape, kube.kubeconfig)
    with shop.shop(kube, strict=True), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        bare = live.run("verify", "--kubernetes", "-n", shop.NAMESPACE)
        assert (bare.returncode, len(bare.stderr.splitlines())) == (2, 1), bare.stderr
        done = live.run("apply", "--mode", "native", "-n", shop.NAMESPACE, *YES)
        assert done.returncode == 0, (done.stdout, done.stderr)
        clean = report(live, 0)
        for check in ("plain-http", "no-certificate", "plaintext-closed", "prometheus-target"):
            found = outcomes(clean, check)
            assert found and set(found) == {"passed"}, (check, clean["checks"])
        (left,) = (each for each in clean["checks"] if each["check"] == "not-checked")
        assert "unlisted-workload" in left["seen"]
        pod = next(
            each["metadata"]["name"]
            for each in kube.pods(shop.NAMESPACE)
            if each["metadata"]["labels"].get("app") == "httpbin"
        )
        healthy = live.run("explain", "--kubernetes", f"{shop.NAMESPACE}/{pod}")
        assert healthy.returncode == 0, (healthy.stdout, healthy.stderr)
        config = kube.get("-n", "istio-system", "configmap", "prometheus")
        text = config["data"]["prometheus.yml"]
        broken = text.replace("/stats/prometheus", "/absent")
        assert broken != text
        patch = {"data": {"prometheus.yml": broken}}
        kube("-n", "istio-system", "patch", "configmap", "prometheus", "-p", json.dumps(patch))
        until(
            lambda: {t["health"] for t in prometheus.of(set(shop.addresses(kube).values()))} == {"down"},
            "every target is down",
        )
        lost = report(live, 1)
        assert set(outcomes(lost, "prometheus-target")) == {"failed"}
        sick = live.run("explain", "--kubernetes", f"{shop.NAMESPACE}/{pod}")
        assert sick.returncode == 1 and "prometheus-target" in sick.stdout, (sick.stdout, sick.stderr)
        row(
            "verify --kubernetes after apply, and with a broken scrape job",
            f"{sum(each['outcome'] == 'passed' for each in clean['checks'])} checks passed, no finding; "
            "the lost targets are found",
            Prometheus=prometheus.version(),
        )
