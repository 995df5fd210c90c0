"""verify from inside a live cluster in the modes whose listeners are Istio's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance import shop
from conformance.kube import Kube
from conformance.live import Live
from support.documents import faults

Row = Callable[..., None]
YES = ("--yes", "--yes-interruption")
IMAGE = "docker.io/meshscrape/meshscrape:test"
OUTSIDE = "strangers"
INSIDE = ("verify", "--kubernetes", "--image", IMAGE, "--stranger-namespace", OUTSIDE, "-n", shop.NAMESPACE)
# docs/verify.md: what Istio does differently. Its ports of native mode have no allow list.
NOTED: dict[str, set[str]] = {
    "native": {"unlisted-workload", "session-resumption", "methods", "paths"},
    "legacy": {"session-resumption", "methods", "paths"},
}
# The listeners of a Sidecar have no deadline for the handshake.
FOUND: dict[str, set[str]] = {"native": set(), "legacy": {"silent-connection"}}
PASSED = (
    "scraper-admitted", "server-certificate", "plain-http", "no-certificate", "other-ca",
    "expired-certificate", "legacy-tls", "plaintext-closed", "exposed-admin", "prometheus-target",
)  # fmt: skip


@pytest.mark.whole
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", sorted(NOTED))
def test_jobs_prove_what_other_modes_can(kube: Kube, meshscrape: Path, mode: str, row: Row) -> None:
    """Only known findings. The stranger's namespace injects sidecars; its Job gets none, so it ends."""
    live = Live(meshscrape, kube.kubeconfig)
    with (
        kube.namespace(OUTSIDE, **shop.INJECTED),
        shop.shop(kube, strict=True),
        shop.found(kube, "existing") as prometheus,
    ):
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        applied = live.run("apply", "--mode", mode, "-n", shop.NAMESPACE, *YES)
        assert applied.returncode == 0, (applied.stdout, applied.stderr)
        done = live.run(*INSIDE, "-o", "json")
        assert done.returncode == (1 if FOUND[mode] else 0), (done.stdout, done.stderr)
        report = json.loads(done.stdout)
        assert {finding["check"] for finding in report["findings"]} == FOUND[mode]
        assert faults(report, "VerifyReport") == []
        outcomes: dict[str, set[str]] = {}
        for check in report["checks"]:
            outcomes.setdefault(check["check"], set()).add(check["outcome"])
        assert {check: outcomes.get(check) for check in PASSED} == {check: {"passed"} for check in PASSED}
        noted = {check for check, told in outcomes.items() if "noted" in told} - {"not-checked"}
        assert noted <= NOTED[mode], outcomes
        assert ("unlisted-workload" in noted) is (mode == "native"), outcomes
        row(
            f"verify --kubernetes --image: {mode} mode, a stranger's namespace with injection",
            f"{sum(check['outcome'] == 'passed' for check in report['checks'])} checks passed; "
            f"findings: {', '.join(sorted(FOUND[mode])) or 'none'}; "
            f"notes: {', '.join(sorted(noted))}",
            Prometheus=prometheus.version(),
        )
