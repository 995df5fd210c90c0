"""Another root for a running mesh: stage by stage, with kills in between, and without a failed scrape."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscrape.ca.roots import published_bundle, read_rotation
from meshscrape.ca.rotation import RotationStage
from support.mesh import (
    MESHSCRAPE,
    SECURE,
    Up,
    meshscrape,
    prometheus_manifest,
    running_up,
    workload_manifest,
    write_mesh,
)
from support.polling import eventually
from support.scrape_proxy import running_proxy
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(180)
SPREAD = 'MESHSCRAPE_RENEWAL_SPREAD: "500ms"'


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two workloads and Prometheus; each test leaves it with one root and every target up."""
    directory = tmp_path_factory.mktemp("rotation")
    prometheus = prometheus_manifest().replace("proxyMetadata:", f"proxyMetadata:\n            {SPREAD}")
    webs = [workload_manifest(name, metadata=(*SECURE, SPREAD)) for name in ("web", "shop")]
    manifest = write_mesh(directory / "mesh.yaml", prometheus, *webs)
    with running_up(directory / "state", str(manifest), "--scrape-interval", "500ms", "--quiet") as up:
        up.wait_for_phase()
        up.wait_until_up()
        yield up


def rotate(mesh: Up, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`meshscrape ca rotate` to its end."""
    return meshscrape("ca", "rotate", "--state", str(mesh.state), "--timeout", "60s", *arguments)


def rotating(mesh: Up, *arguments: str) -> subprocess.Popen[bytes]:
    """The same, while it runs."""
    command = [*MESHSCRAPE, "ca", "rotate", "--state", str(mesh.state), "--timeout", "60s", *arguments]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def ca_of(mesh: Up) -> Path:
    return mesh.state / "ca"


def kept_credentials(mesh: Up, directory: Path) -> Path:
    """A copy of what Prometheus has now: the old root's, once that is withdrawn."""
    shutil.copytree(mesh.workload("istio-system/prometheus")["outputCertificates"], directory)
    return directory


def scrape(mesh: Up, credentials: Path, trusted: Path) -> int:
    """The status of a scrape with these credentials in a new connection; ssl.SSLError when TLS refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(trusted / "root-cert.pem")
    context.load_cert_chain(credentials / "cert-chain.pem", credentials / "key.pem")
    address = mesh.workload("default/web")["address"]
    connection = http.client.HTTPSConnection(address, 15092, timeout=5, context=context)
    try:
        connection.request("GET", "/stats/prometheus")
        return connection.getresponse().status
    finally:
        connection.close()


def kill_ca(mesh: Up) -> int:
    pid = int(mesh.document()["ca"]["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_rotation_loses_no_scrape_although_the_ca_is_killed_in_every_stage(
    mesh: Up, tmp_path: Path
) -> None:
    """kill -9 of the CA in each of the stages: it goes on where it was, and Prometheus loses nothing."""
    watch = Watch(mesh)
    before, old = published_bundle(ca_of(mesh)), kept_credentials(mesh, tmp_path / "old")
    present = Path(mesh.workload("istio-system/prometheus")["outputCertificates"])
    assert scrape(mesh, old, present) == 200
    running = rotating(mesh)
    killed = []
    for stage in (RotationStage.DISTRIBUTE, RotationStage.ISSUE, RotationStage.WITHDRAW):
        eventually(lambda stage=stage: _stage(mesh) is stage, what=f"stage {stage}")
        killed.append(kill_ca(mesh))
        eventually(lambda: mesh.document()["ca"]["pid"] not in (None, *killed), what="another CA")
    assert running.wait(60) == 0
    after = published_bundle(ca_of(mesh))
    assert len(after) == 1
    assert after != before
    assert read_rotation(ca_of(mesh)) is None
    with pytest.raises((ssl.SSLError, ConnectionError)):
        scrape(mesh, old, present)
    with pytest.raises(ssl.SSLCertVerificationError):
        scrape(mesh, present, old)
    assert scrape(mesh, present, present) == 200
    eventually(lambda: watch.account().scrapes > 50, what="scrapes to count")
    account = watch.account()
    print(account)
    assert account.failed == 0
    assert account.fewest_samples > 0
    assert account.targets >= 4


def _stage(mesh: Up) -> RotationStage | None:
    rotation = read_rotation(ca_of(mesh))
    return rotation.stage if rotation else None


def test_an_abort_goes_back_and_loses_no_scrape(mesh: Up) -> None:
    """After certificates of the new root are in use, --abort brings the old root back, alone."""
    watch = Watch(mesh)
    before = published_bundle(ca_of(mesh))
    assert rotate(mesh, "--to", "issue", "-q").returncode == 0
    new = published_bundle(ca_of(mesh))[0]
    assert new not in before
    aborted = rotate(mesh, "--abort")
    assert aborted.returncode == 0, aborted.stderr
    assert "abort, issue: " in aborted.stderr
    assert published_bundle(ca_of(mesh)) == before
    assert not list((ca_of(mesh) / "rotation").iterdir())
    again = rotate(mesh, "--abort")
    assert (again.returncode, "nothing to abort" in again.stderr) == (0, True)
    account = watch.account()
    assert (account.failed, account.fewest_samples > 0) == (0, True)


def test_stages_can_be_taken_one_by_one_and_repeated(mesh: Up) -> None:
    """--to stops after a stage is confirmed; the same again changes nothing; a killed command goes on."""
    watch = Watch(mesh)
    first = rotate(mesh, "--to", "distribute", "-q", "-o", "json")
    record = json.loads(first.stdout)["rotation"]
    assert record["stage"] == "distribute"
    assert published_bundle(ca_of(mesh)) == (record["old"], record["new"])
    again = rotate(mesh, "--to", "distribute", "-q", "-o", "json")
    assert json.loads(again.stdout)["rotation"] == record
    shown = rotate(mesh, "--show")
    assert (shown.returncode, shown.stdout.splitlines()[0].startswith("distribute: ")) == (0, True)
    # Without its CA the mesh serves on, and nobody can follow.
    with stopped(mesh.document()["ca"]["pid"]):
        running = rotating(mesh, "--to", "issue")
        eventually(lambda: _stage(mesh) is RotationStage.ISSUE, what="the next stage")
        refused = rotate(mesh)
        assert refused.returncode == 2
        assert f"a rotation already runs here (pid {running.pid})" in refused.stderr
        running.kill()
        running.wait(10)
    done = rotate(mesh)
    assert done.returncode == 0, done.stderr
    assert published_bundle(ca_of(mesh)) == (record["new"],)
    assert "done: the only root is" in done.stderr
    account = watch.account()
    assert (account.failed, account.fewest_samples > 0) == (0, True)


def test_lagging_workload_is_named_and_stops_the_rotation(mesh: Up) -> None:
    """With a stopped agent no stage ends: exit code 1, the workload's name, and the old root still serves."""
    before = published_bundle(ca_of(mesh))
    with stopped(mesh.workload("default/web")["pids"]["agent"]):
        stuck = meshscrape("ca", "rotate", "--state", str(mesh.state), "--timeout", "4s", "-q")
    assert stuck.returncode == 1
    assert "stage distribute is not confirmed after 4 s" in stuck.stderr
    assert "default/web (credentials): does not trust the new root yet" in stuck.stderr
    assert "default/shop" not in stuck.stderr
    assert _stage(mesh) is RotationStage.DISTRIBUTE
    assert rotate(mesh, "--abort", "-q").returncode == 0
    assert published_bundle(ca_of(mesh)) == before


def test_rotation_waits_for_a_separate_scraper(mesh: Up, tmp_path: Path) -> None:
    """Another scrape proxy, which the mesh does not know, with copied credentials: both are named."""
    before = published_bundle(ca_of(mesh))
    copied = kept_credentials(mesh, tmp_path / "copied")
    with running_proxy(tmp_path, [str(copied)], (), "--mesh", str(mesh.state)) as second:
        envoy = second.state / "admin.sock"
        named = ("--state", str(mesh.state), "--envoy", str(envoy), "--credentials", str(copied))
        stuck = meshscrape("ca", "rotate", *named, "--timeout", "2s", "-q")
        assert stuck.returncode == 1
        assert f"{envoy} (Envoy): does not trust the new root yet" in stuck.stderr
        assert f"{copied} (copied): does not trust the new root yet" in stuck.stderr
        assert _stage(mesh) is RotationStage.DISTRIBUTE
        assert rotate(mesh, "--abort", "-q").returncode == 0
    assert published_bundle(ca_of(mesh)) == before


def test_separate_scraper_follows_the_rotation(mesh: Up, tmp_path: Path) -> None:
    """Another scrape proxy that reads what the agent publishes follows, and scrapes before and after."""
    before = published_bundle(ca_of(mesh))
    published = mesh.workload("istio-system/prometheus")["outputCertificates"]
    target = f"{mesh.workload('default/web')['address']}:15092"
    with running_proxy(tmp_path, [published], (), "--mesh", str(mesh.state)) as second:
        assert second.scrape(target).status == 200
        done = rotate(mesh, "--envoy", str(second.state / "admin.sock"), "--credentials", published)
        assert done.returncode == 0, done.stderr
        assert second.scrape(target).status == 200
    assert published_bundle(ca_of(mesh)) != before
