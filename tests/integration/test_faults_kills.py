"""kill -9 of each part of a mesh under scraping by Prometheus: it comes back, alone and without orphans."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from meshscrape.spiffe.certificates import make_csr
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.spiffe.keys import generate_key
from meshscrape.system.ca_client import create_certificate
from meshscrape.system.proc import child_named
from support.kills import BACK_WITHIN, assert_whole, kill, pids, programs, prometheus_pid
from support.mesh import SECURE, Up, prometheus_manifest, running_up, workload_manifest, write_mesh
from support.polling import eventually
from support.scrapes import WORKLOADS, Watch

WEB, PROMETHEUS = "default/web", "istio-system/prometheus"
OTHERS = ("default/shop", "default/cart")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Three workloads and Prometheus, which scrapes twice a second through its proxy."""
    directory = tmp_path_factory.mktemp("mesh")
    names = [title.partition("/")[2] for title in (WEB, *OTHERS)]
    webs = [workload_manifest(name, metadata=SECURE) for name in names]
    manifest = write_mesh(directory / "mesh.yaml", prometheus_manifest(), *webs)
    with running_up(directory / "state", str(manifest), "--scrape-interval", "500ms", "--quiet") as up:
        up.wait_for_phase()
        yield up


def assert_lossless(watch: Watch, of: str, targets: int) -> None:
    """Each of so many targets is scraped again and again, and since the watch began no scrape has failed."""
    eventually(lambda: watch.account(of).scrapes >= 3 * targets, within=BACK_WITHIN, what="scrapes")
    account = watch.account(of)
    assert account.targets == targets
    assert account.failed == 0
    assert account.fewest_samples > 0


def until_scraped(up: Up, of: str, targets: int) -> None:
    """Wait until each of so many targets has been scraped twice from now on."""
    began = time.time()

    def again() -> bool:
        window = f"{{{of}}}[{int((time.time() - began) * 1000) + 1}ms]"
        return [each["value"][1] for each in up.query(f"count(sum_over_time(up{window}) >= 2)")] == [
            str(targets)
        ]

    eventually(again, within=BACK_WITHIN, what="scrapes again")


def test_killed_envoy_comes_back_in_time(mesh: Up) -> None:
    """The agent starts another Envoy with the same certificate; nobody else loses a scrape."""
    watch, before, whole = Watch(mesh), pids(mesh, WEB), programs(mesh)
    serial = mesh.workload(WEB)["certificate"]["serial"]
    kill(before["envoy"])
    eventually(lambda: pids(mesh, WEB)["envoy"] not in (None, before["envoy"]), within=BACK_WITHIN)
    until_scraped(mesh, 'workload="web"', 2)
    assert pids(mesh, WEB)["agent"] == before["agent"]
    assert mesh.workload(WEB)["certificate"]["serial"] == serial
    assert_whole(mesh, whole)
    assert_lossless(watch, 'workload=~"shop|cart"', 4)


def test_killed_agent_comes_back_in_time(mesh: Up) -> None:
    """Its Envoy goes with it; the next one uses the certificate on disk; nobody else loses a scrape."""
    watch, before, whole = Watch(mesh), pids(mesh, WEB), programs(mesh)
    serial = mesh.workload(WEB)["certificate"]["serial"]
    kill(before["agent"])
    eventually(lambda: not os.path.exists(f"/proc/{before['envoy']}"), within=BACK_WITHIN, what="Envoy's end")
    after = eventually(
        lambda: pids(mesh, WEB)["envoy"] not in (None, before["envoy"]) and pids(mesh, WEB),
        within=BACK_WITHIN,
        what="its pids in the status",
    )
    until_scraped(mesh, 'workload="web"', 2)
    assert not {after["agent"], after["envoy"]} & {before["agent"], before["envoy"]}
    assert mesh.workload(WEB)["certificate"]["serial"] == serial
    assert_whole(mesh, whole)
    assert_lossless(watch, 'workload=~"shop|cart"', 4)


@pytest.mark.parametrize("victim", ["guard", "application"])
def test_killed_application_comes_back_in_time(mesh: Up, victim: str) -> None:
    """It comes back, also when its guard dies, and Envoy's metrics are scraped all the while."""
    watch, before, whole = Watch(mesh), pids(mesh, WEB), programs(mesh)
    (guard,) = before["application"]
    application = child_named(guard)
    assert application is not None
    kill(guard if victim == "guard" else application)
    eventually(lambda: pids(mesh, WEB)["application"] not in ([], [None], [guard]), within=BACK_WITHIN)
    eventually(lambda: not os.path.exists(f"/proc/{application}"), within=BACK_WITHIN, what="its end")
    assert_whole(mesh, whole)
    assert_lossless(watch, 'workload=~"web|shop|cart"', 6)


def test_killed_ca_comes_back_in_time(mesh: Up) -> None:
    """It issues again, with the same root; no scrape of anybody fails."""
    watch, whole, before = Watch(mesh), programs(mesh), mesh.document()["ca"]
    root = Path(before["rootCertificate"]).read_bytes()
    kill(before["pid"])
    eventually(lambda: issued(mesh), within=BACK_WITHIN, what="a certificate")
    eventually(
        lambda: mesh.document()["ca"]["pid"] not in (None, before["pid"]), what="its pid in the status"
    )
    assert Path(before["rootCertificate"]).read_bytes() == root
    assert_whole(mesh, whole)
    assert_lossless(watch, 'workload=~"web|shop|cart"', 6)


def issued(up: Up) -> bool:
    """Whether the CA gives a workload a certificate now."""
    entry, ca = up.workload(WEB), up.document()["ca"]
    csr = make_csr(generate_key(), SpiffeId.parse(entry["spiffeId"]))
    token, roots = Path(entry["token"]).read_text(), Path(ca["rootCertificate"]).read_bytes()
    asking = create_certificate(
        ca["address"], roots, csr, timedelta(hours=1), token=token, client_credentials=None, deadline=2
    )
    try:
        return bool(asyncio.run(asking)[0])
    except Exception:
        return False


def test_killed_prometheus_comes_back_in_time(mesh: Up) -> None:
    """It comes back with what it had recorded, and scrapes everybody; no workload notices."""
    watch, whole, document = Watch(mesh), programs(mesh), mesh.document()
    kept = {title: pids(mesh, title) for title in (WEB, *OTHERS)}
    eventually(lambda: watch.account('workload="web"').scrapes >= 4, what="scrapes to remember")
    remembered = watch.account('workload=~"web|shop|cart"').scrapes
    kill(prometheus_pid(mesh))
    eventually(
        lambda: watch.account('workload=~"web|shop|cart"').scrapes > remembered + 12,
        within=BACK_WITHIN,
        what="more scrapes than before",
    )
    assert watch.account().failed == 0
    assert {title: pids(mesh, title) for title in kept} == kept
    assert mesh.document()["scrapeProxy"]["pids"] == document["scrapeProxy"]["pids"]
    assert_whole(mesh, whole)


@pytest.mark.parametrize("victim", ["envoy", "proxy"])
def test_killed_scrape_proxy_comes_back_in_time(mesh: Up, victim: str) -> None:
    """Either half comes back, the proxy after its Envoy's end; all are scraped again, none restarts."""
    mesh.wait_until_up()
    whole, kept = programs(mesh), {title: pids(mesh, title) for title in (WEB, *OTHERS)}
    before = mesh.document()["scrapeProxy"]["pids"]
    token = Path(mesh.document()["scrapeProxy"]["tokenFile"]).read_text()
    kill(before[victim])
    eventually(lambda: not os.path.exists(f"/proc/{before['envoy']}"), within=BACK_WITHIN, what="Envoy's end")
    assert_whole(mesh, whole)
    until_scraped(mesh, WORKLOADS, 7)

    def replaced() -> dict[str, int] | None:
        now: dict[str, int] = mesh.document()["scrapeProxy"]["pids"]
        return now if all(now.values()) and now["envoy"] != before["envoy"] else None

    after = eventually(replaced, what="a new Envoy in the status document")
    assert (after["proxy"] == before["proxy"]) is (victim == "envoy")
    assert {title: pids(mesh, title) for title in kept} == kept
    assert Path(mesh.document()["scrapeProxy"]["tokenFile"]).read_text() == token
