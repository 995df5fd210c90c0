"""The verbs on a live cluster: observe and plan without files, apply, and apply after it was killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance import shop
from conformance.kube import Kube, until
from conformance.live import Live
from conformance.watch import Watch

Row = Callable[..., None]
OPTIONS = ("--mode", "native", "-n", shop.NAMESPACE)


@pytest.mark.timeout(1200)
def test_apply_takes_shop_behind_mutual_tls(kube: Kube, meshscrape: Path, tmp_path: Path, row: Row) -> None:
    """One command applies every phase; no scrape is lost, and there is nothing to do after it."""
    live = Live(meshscrape, kube.kubeconfig)
    with shop.shop(kube, strict=True), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        refused = live.run("apply", *OPTIONS)
        assert (refused.returncode, refused.stderr.count("--yes")) == (2, 1), refused.stderr
        checked = live.run("apply", *OPTIONS, "--dry-run")
        assert checked.returncode == 0, checked.stderr
        watch = Watch(kube, prometheus)
        done = live.run("apply", *OPTIONS, "--yes", "--yes-interruption")
        assert done.returncode == 0, (done.stdout, done.stderr)
        watch.look("apply")
        targets = prometheus.wait_for_up(set(shop.addresses(kube).values()))
        assert all(target["scrapeUrl"].startswith("https://") for target in targets)
        again = live.run("plan", *OPTIONS)
        assert again.returncode == 0, again.stdout
        seen = json.loads(live.run("observe", "-o", "json").stdout)
        hardened = [each for each in seen["workloads"] if each["object"]["namespace"] == shop.NAMESPACE]
        assert hardened
        row(
            "apply on the live cluster: native, Prometheus existing",
            f"--dry-run accepted, every phase applied, {len(targets)} targets up over HTTPS, {watch.lost()}"
            "planned again: nothing to do",
            Prometheus=prometheus.version(),
        )


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_apply_goes_on_after_it_was_killed(kube: Kube, meshscrape: Path, row: Row) -> None:
    """A run that is killed in the middle of a phase leaves nothing that a second run does not finish."""
    live = Live(meshscrape, kube.kubeconfig)
    with shop.shop(kube, strict=False), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        first = live.start("apply", *OPTIONS, "--yes", "--yes-interruption")
        assert first.stderr is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(first.stderr.readline, "")), daemon=True)
        reader.start()
        until(lambda: any("waiting for" in line for line in lines), "the first rollout")
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        held = live.run("apply", *OPTIONS, "--yes", "--yes-interruption")
        assert (held.returncode, "changes this cluster now" in held.stderr) == (1, True), held.stderr
        until(lambda: _lease_expired(live), "the killed run's Lease expires")
        targets = prometheus.wait_for_up(set(shop.addresses(kube).values()))
        assert all(target["scrapeUrl"].startswith("https://") for target in targets)
        row("apply killed in its first phase", "refused while the Lease lasts; run again: finished")


def _lease_expired(live: Live) -> bool:
    """Return whether apply runs to its end; while another holds the Lease it is refused."""
    done = live.run("apply", *OPTIONS, "--yes", "--yes-interruption")
    assert done.returncode == 0 or "changes this cluster now" in done.stderr, (done.stdout, done.stderr)
    return done.returncode == 0
