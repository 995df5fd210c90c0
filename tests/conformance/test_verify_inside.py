"""verify from inside a live cluster: Jobs as the scraper and as a stranger, and nothing left of them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance import shop
from conformance.kube import Kube, until
from conformance.live import Live
from conformance.prometheus import Prometheus
from support.documents import faults

Row = Callable[..., None]
YES = ("--yes", "--yes-interruption")
IMAGE = "docker.io/meshscrape/meshscrape:test"
OUTSIDE = "strangers"
MADE = ("jobs", "pods", "configmaps", "serviceaccounts")
LABEL = "app.kubernetes.io/name=meshscrape-verify"
INSIDE = ("verify", "--kubernetes", "--image", IMAGE, "--stranger-namespace", OUTSIDE, "-n", shop.NAMESPACE)
PROVED = (
    "scraper-admitted", "server-certificate", "plain-http", "no-certificate", "other-ca",
    "expired-certificate",
    "session-resumption", "unlisted-workload", "legacy-tls", "methods", "plaintext-closed", "exposed-admin",
    "prometheus-target",
)  # fmt: skip


@pytest.fixture(scope="module")
def secured(kube: Kube, meshscrape: Path) -> Iterator[tuple[Live, Prometheus]]:
    """The shop in bootstrap mode, and a namespace that admits restricted pods only."""
    live = Live(meshscrape, kube.kubeconfig)
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    with (
        kube.namespace(OUTSIDE, **restricted),
        shop.shop(kube, strict=True),
        shop.found(kube, "existing") as prometheus,
    ):
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        done = live.run("apply", "--mode", "bootstrap", "-n", shop.NAMESPACE, *YES)
        assert done.returncode == 0, (done.stdout, done.stderr)
        yield live, prometheus


def left(kube: Kube) -> list[str]:
    """What the verifiers' Jobs left in the cluster."""
    named = []
    for kind in MADE:
        items = kube.get(kind, "-A", "-l", LABEL)["items"]
        named += [f"{kind} {each['metadata']['namespace']}/{each['metadata']['name']}" for each in items]
    return named


def report(live: Live, code: int, *words: str) -> Any:
    """The document of a verification from inside that ends with a code."""
    done = live.run(*INSIDE, "-o", "json", *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    document = json.loads(done.stdout)
    assert faults(document, "VerifyReport") == []
    return document


@pytest.mark.timeout(900)
def test_jobs_prove_a_secured_shop_and_leave_nothing(
    kube: Kube, secured: tuple[Live, Prometheus], tmp_path: Path, row: Row
) -> None:
    """No finding; the allow list is proved with another workload's certificate; the page has the picture."""
    live, prometheus = secured
    page = tmp_path / "mesh.html"
    clean = report(live, 0, "--html", str(page))
    by_check: dict[str, set[str]] = {}
    for each in clean["checks"]:
        by_check.setdefault(each["check"], set()).add(each["outcome"])
    # Istio's bootstrap lets Envoy ignore a fragment, so `/stats/prometheus#...` gets the metrics: a note.
    assert by_check.pop("paths") == {"noted"}
    assert {check: by_check.get(check) for check in PROVED} == {check: {"passed"} for check in PROVED}
    pods = {pod["metadata"]["name"] for pod in kube.pods(shop.NAMESPACE)}
    places = {each["target"].partition(":")[0] for each in clean["checks"] if each["check"] == "plain-http"}
    assert places == pods
    assert {each["role"] for each in clean["certificates"]} == {"server", "scraper", "root"}
    assert clean["scraper"].endswith("/ns/istio-system/sa/prometheus")
    assert left(kube) == []
    text = page.read_text()
    assert "<svg" in text and all(name in text for name in pods)
    # Each pod's secure port is drawn with what the scraper got.
    assert text.count("✓ scraped (") == len(pods)
    assert "open to every client" not in text
    row(
        "verify --kubernetes --image: Jobs as the scraper and as a stranger",
        f"{sum(each['outcome'] == 'passed' for each in clean['checks'])} checks passed, no finding, in a "
        "namespace of restricted pods; nothing of them is left",
        Prometheus=prometheus.version(),
    )


@pytest.mark.timeout(300)
def test_interrupted_run_leaves_nothing(kube: Kube, secured: tuple[Live, Prometheus], row: Row) -> None:
    """Ctrl-C while the Jobs run: the exit code says so, and everything is removed."""
    live, _ = secured
    process = live.start(*INSIDE)
    until(lambda: left(kube), "the Jobs are made")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), errors
    until(lambda: left(kube) == [], "nothing is left")
    row("verify --kubernetes --image, interrupted", "exit code 130; Jobs, pods and what they need are gone")


@pytest.mark.whole
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("docker.io/nobody/absent:1", "its image cannot be pulled (ErrImagePull)"),
        ("docker.io/kennethreitz/httpbin:1", "it has not ended within 10 s: its pod is Running"),
        ("docker.io/library/python:3", "it ended with 2: "),
    ],
    ids=["missing", "endless", "another"],
)
def test_image_of_no_use_is_one_line(
    kube: Kube, secured: tuple[Live, Prometheus], image: str, said: str
) -> None:
    """And nothing is left of the attempt."""
    live, _ = secured
    _fails_in_one_line(live, said, image)
    assert left(kube) == []


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_refused_pod_is_one_line(kube: Kube, secured: tuple[Live, Prometheus]) -> None:
    """An admission plugin refuses the stranger's pod, and says why."""
    live, _ = secured
    kube("-n", OUTSIDE, "create", "quota", "none", "--hard=pods=0")
    try:
        until(lambda: kube.get("-n", OUTSIDE, "quota", "none").get("status"), "the quota is in force")
        _fails_in_one_line(live, "its pod is refused: pods", IMAGE)
        assert left(kube) == []
    finally:
        kube("-n", OUTSIDE, "delete", "quota", "none")


def _fails_in_one_line(live: Live, said: str, image: str) -> None:
    done = live.run(*(image if word == IMAGE else word for word in INSIDE), "--timeout", "10")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert said in line


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_missing_rights_are_named_before_anything_is_made(
    kube: Kube, secured: tuple[Live, Prometheus], meshscrape: Path, tmp_path: Path, row: Row
) -> None:
    """One line for each right; with what `rbac` prints, the same user can run it."""
    live, _ = secured
    account = f"{OUTSIDE}/operator"
    kube("-n", OUTSIDE, "create", "serviceaccount", "operator")
    reading = live.plain("rbac", "verify", "--service-account", account)
    kube.apply(reading)
    token = kube("-n", OUTSIDE, "create", "token", "operator").strip()
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["users"] = [{"name": "operator", "user": {"token": token}}]
    config["contexts"][0]["context"]["user"] = "operator"
    config["current-context"] = config["contexts"][0]["name"]
    own = tmp_path / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    user = Live(meshscrape, own)
    try:
        refused = user.run(*INSIDE)
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        missing = [line for line in refused.stderr.splitlines() if "no right to" in line]
        assert f"meshscrape: no right to create jobs.batch in {OUTSIDE}" in missing
        assert "meshscrape: no right to get pods/log in istio-system" in missing
        assert left(kube) == []
        spaces = ("-n", OUTSIDE, "-n", "istio-system")
        kube.apply(live.plain("rbac", "verify-image", "--service-account", account, *spaces))
        allowed = user.run(*INSIDE)
        assert allowed.returncode == 0, (allowed.stdout, allowed.stderr)
        row(
            "verify --kubernetes --image with a user of its own",
            f"{len(missing)} missing rights named; with what `rbac` prints it runs",
        )
    finally:
        for kind in ("clusterrole", "clusterrolebinding"):
            kube("delete", kind, "meshscrape-verify", "--ignore-not-found")
        for kind in ("role", "rolebinding"):
            kube("-n", "istio-system", "delete", kind, "meshscrape-verify-image", "--ignore-not-found")
