"""The scrape proxy's processes: killed, each alone; and a real Prometheus of one's own in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshscrape.local.binaries import find_prometheus
from meshscrape.prometheus.config import CA_JOB
from meshscrape.prometheus.targets import JOBS
from meshscrape.system.files import publish
from support.addresses import free_port, loopback
from support.forgery import Forge
from support.mesh import (
    EXAMPLE,
    SECURE,
    Up,
    meshscrape,
    prometheus_manifest,
    running_up,
    workload_manifest,
    write_mesh,
)
from support.polling import eventually
from support.scrape_proxy import JOB, READY, SCRAPER, RunningProxy, credentials, group, running_proxy
from support.targets import Target, tls_target

HTTPBIN = "spiffe://cluster.local/ns/default/sa/httpbin"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[tuple[Target, Forge]]:
    """A target that is what it is expected to be, and its CA."""
    forge = Forge()
    with tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, tmp_path) as served:
        yield served, forge


def _proxy(directory: Path, target: Target, forge: Forge) -> contextlib.AbstractContextManager[RunningProxy]:
    own = str(credentials(directory / "scraper", forge))
    return running_proxy(directory, [own], [group(target.authority, HTTPBIN)])


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_killed_envoy_comes_back_with_its_routes(tmp_path: Path, target: tuple[Target, Forge]) -> None:
    """By itself, with a new process, counted; later changes of targets still reach it."""
    served, forge = target
    with _proxy(tmp_path, served, forge) as proxy:
        killed = proxy.envoy_pid()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: not _runs(killed))
        eventually(lambda: proxy.scrape(served.authority).status == 200)
        assert proxy.envoy_pid() != killed
        assert proxy.metric("meshscrape_scrape_proxy_envoy_restarts_total") == 1
        eventually(lambda: proxy.metric("meshscrape_scrape_handshakes_total", target=served.authority) == 1)
        proxy.announce_and_wait([])
        assert proxy.scrape(served.authority).reason == "unknown-target"


def test_targets_that_change_while_envoy_is_away_reach_the_next_one(
    tmp_path: Path, target: tuple[Target, Forge]
) -> None:
    """A change during the restart is neither lost nor announced too early."""
    served, forge = target
    other = "spiffe://cluster.local/ns/default/sa/other"
    with (
        _proxy(tmp_path, served, forge) as proxy,
        tls_target(Target(loopback()), forge.leaf(other), forge.root, tmp_path) as new,
    ):
        os.kill(proxy.envoy_pid(), signal.SIGKILL)
        proxy.announce([group(served.authority, HTTPBIN), group(new.authority, other)])
        eventually(lambda: new.authority in proxy.announced())
        assert proxy.scrape(new.authority).status == 200


def test_a_killed_proxy_takes_its_envoy_along_and_starts_again(
    tmp_path: Path, target: tuple[Target, Forge]
) -> None:
    """No orphan holds the port; the next proxy uses the same directory and the same token."""
    served, forge = target
    with _proxy(tmp_path, served, forge) as proxy:
        token, envoy = proxy.token, proxy.envoy_pid()
        proxy.process.kill()
        proxy.process.wait(10)
        eventually(lambda: not _runs(envoy))
        proxy.start()
        assert proxy.token == token
        assert proxy.scrape(served.authority).status == 200


def test_a_stopped_proxy_leaves_no_process_and_no_socket(
    tmp_path: Path, target: tuple[Target, Forge]
) -> None:
    """TERM ends Envoy too; what held the token for Envoy is gone."""
    served, forge = target
    with _proxy(tmp_path, served, forge) as proxy:
        envoy = proxy.envoy_pid()
        assert proxy.stop() == 0
        assert not _runs(envoy)
        left = {path.name for path in proxy.state.iterdir()}
        assert not left & {"admin.sock", "access.pipe", "ecds-token.json"}


def test_proxy_ends_with_envoys_message_when_envoy_cannot_run(tmp_path: Path) -> None:
    """Restarts are bounded; the last output is shown."""
    broken = tmp_path / "envoy"
    broken.write_text("#!/bin/sh\necho no such instruction >&2\nexit 3\n")
    broken.chmod(0o755)
    file = tmp_path / f"{JOB}.json"
    file.write_text("[]")
    address = loopback()
    done = meshscrape(
        "proxy", "--dir", str(tmp_path / "p"), "--targets", str(file),
        "--credentials", str(credentials(tmp_path / "scraper", Forge())),
        "--listen", f"{address}:15094", "--discovery", f"{address}:15095",
        env={**os.environ, "MESHSCRAPE_ENVOY": str(broken)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such instruction" in done.stderr


def test_credentials_that_envoy_rejects_are_not_ready(tmp_path: Path, target: tuple[Target, Forge]) -> None:
    """A key of another certificate: the proxy ends with Envoy's own words, and was never ready."""
    served, forge = target
    own, other = forge.leaf(SCRAPER), forge.leaf(SCRAPER)
    files = {"cert-chain.pem": own.chain, "key.pem": other.key, "root-cert.pem": forge.root}
    publish(tmp_path / "scraper", files)
    address, file = loopback(), tmp_path / f"{JOB}.json"
    file.write_text(json.dumps([group(served.authority, HTTPBIN)]))
    done = meshscrape(
        "proxy", "--dir", str(tmp_path / "p"), "--targets", str(file),
        "--credentials", str(tmp_path / "scraper"),
        "--listen", f"{address}:15094", "--discovery", f"{address}:15095",
    )  # fmt: skip
    assert done.returncode == 2
    assert "KEY_VALUES_MISMATCH" in done.stderr and str(tmp_path / "scraper") in done.stderr
    assert READY not in done.stderr
    assert not served.seen


def test_credentials_that_envoy_rejects_later_are_reported_once(
    tmp_path: Path, target: tuple[Target, Forge]
) -> None:
    """Without a target there is nothing to reject; the first target brings it to light, in the log."""
    served, forge = target
    own, other = forge.leaf(SCRAPER), forge.leaf(SCRAPER)
    files = {"cert-chain.pem": own.chain, "key.pem": other.key, "root-cert.pem": forge.root}
    publish(tmp_path / "scraper", files)
    with running_proxy(tmp_path, [str(tmp_path / "scraper")], []) as proxy:
        proxy.announce_and_wait([group(served.authority, HTTPBIN)])
        assert proxy.scrape(served.authority).reason == "no-scraper-certificate"
        eventually(lambda: "KEY_VALUES_MISMATCH" in proxy.said(), within=30)
        publish(tmp_path / "scraper", {**files, "key.pem": own.key})
        eventually(lambda: proxy.scrape(served.authority).status == 200)
        assert proxy.said().count("KEY_VALUES_MISMATCH") == 1


@pytest.mark.parametrize("option", ["--listen", "--discovery"])
def test_a_taken_port_is_named(tmp_path: Path, target: tuple[Target, Forge], option: str) -> None:
    """A second proxy at an address of the first says who has the port, and the first one goes on."""
    served, forge = target
    with _proxy(tmp_path, served, forge) as proxy:
        taken = {"--listen": proxy.listen, "--discovery": proxy.discovery}
        (other,) = taken.keys() - {option}
        done = meshscrape(
            "proxy", "--dir", str(tmp_path / "second"), "--targets", str(proxy.file),
            "--credentials", str(tmp_path / "scraper"),
            option, taken[option], other, f"{loopback()}:{free_port()}",
        )  # fmt: skip
        assert done.returncode == 2
        assert "taken" in done.stderr and option in done.stderr
        assert proxy.scrape(served.authority).status == 200


def test_separate_prometheus_scrapes_two_meshes(tmp_path: Path) -> None:
    """One unmodified Prometheus, two trust domains, and an impostor: up, up, down; by its own account."""
    east, west = Forge("east"), Forge("west")
    ids = ["spiffe://east.example/ns/a/sa/app", "spiffe://west.example/ns/a/sa/app"]
    with contextlib.ExitStack() as stack:

        def served(forge: Forge, identity: str) -> Target:
            return stack.enter_context(
                tls_target(Target(loopback()), forge.leaf(identity), forge.root, tmp_path)
            )

        good = [served(east, ids[0]), served(west, ids[1])]
        impostor = served(east, "spiffe://east.example/ns/a/sa/impostor")
        own = [str(credentials(tmp_path / name, forge)) for name, forge in (("east", east), ("west", west))]
        domains = [f"{name}.example={path}" for name, path in zip(("east", "west"), own, strict=True)]
        groups = [
            group(good[0].authority, ids[0], mesh="east"),
            group(good[1].authority, ids[1], mesh="west"),
            group(impostor.authority, ids[0], mesh="impostor"),
        ]
        proxy = stack.enter_context(running_proxy(tmp_path, domains, groups))
        url = stack.enter_context(_prometheus(tmp_path, proxy))
        seen = {"east": "1", "west": "1", "impostor": "0"}
        eventually(lambda: _values(url, f'up{{job="{JOB}"}}', "mesh") == seen, within=60)
        eventually(lambda: set(_values(url, "shown", "mesh")) == {"east", "west"}, what="samples")
        refused = f'meshscrape_scrape_refusals_total{{target="{impostor.authority}"}}'
        eventually(lambda: "wrong-identity" in _values(url, refused, "reason"))
        assert not impostor.seen


@contextlib.contextmanager
def _prometheus(directory: Path, proxy: RunningProxy) -> Iterator[str]:
    found = find_prometheus(os.environ)
    if found is None:
        pytest.skip("no Prometheus here: make setup fetches one")
    written = meshscrape(
        "prometheus-config", "--proxy", proxy.listen, "--discovery", proxy.discovery, "--job", JOB,
        "--token-file", str(proxy.token_file), "--scrape-interval", "500ms",
    )  # fmt: skip
    config = directory / "prometheus.yml"
    config.write_text(written.stdout)
    address = f"127.0.0.1:{free_port()}"
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(found.server), f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait(10)


def _values(url: str, query: str, label: str) -> dict[str, str]:
    with urllib.request.urlopen(f"{url}/api/v1/query?query={urllib.parse.quote(query)}", timeout=5) as answer:
        document: dict[str, Any] = json.load(answer)
    return {each["metric"][label]: each["value"][1] for each in document["data"]["result"]}


def test_up_scrapes_directly_on_request(tmp_path: Path) -> None:
    """--direct: no scrape proxy, https targets, and a warning."""
    with running_up(tmp_path / "state", str(EXAMPLE), "--direct", "--scrape-interval", "1s") as up:
        up.wait_for_phase("Ready")
        up.wait_until_up()
        assert up.document()["scrapeProxy"] is None
        secure = [each for each in up.active_targets() if each["labels"]["job"] != CA_JOB]
        assert secure and all(each["scrapeUrl"].startswith("https://") for each in secure)
        assert "warning" in up.errors.read_text()
        assert "insecure_skip_verify" in up.run("prometheus-config").stdout


def _announced(up: Up) -> set[str]:
    """The workloads in HTTP SD of the mesh's own proxy."""
    proxy = up.document()["scrapeProxy"]
    assert proxy, "not there yet"
    token = Path(proxy["tokenFile"]).read_text().strip()
    found: set[str] = set()
    for job in JOBS:
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"{proxy['httpSd']}/{job}", headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            found |= {each["labels"]["workload"] for each in json.load(answer)}
    return found


def test_only_workloads_that_were_ready_are_targets(tmp_path: Path) -> None:
    """One whose application never listens is none; one that is removed is none any more, without a route."""
    manifest = tmp_path / "mesh.yaml"
    good = workload_manifest("good", metadata=SECURE)
    # It declares a port that nothing listens on.
    waiting = workload_manifest("waiting", metadata=SECURE, port=8000)
    write_mesh(manifest, prometheus_manifest(), good, waiting)
    with running_up(tmp_path / "state", "--scrape-interval", "1s", str(manifest)) as up:
        eventually(lambda: _announced(up) == {"good"}, within=60)
        assert not up.workload("default/waiting")["ready"]
        address = up.workload("default/good")["address"]
        write_mesh(manifest, prometheus_manifest(), waiting)
        eventually(lambda: _announced(up) == set(), within=60)
        proxy = up.document()["scrapeProxy"]
        token = Path(proxy["tokenFile"]).read_text().strip()
        request = urllib.request.Request(f"http://{address}:15092/stats/prometheus")
        request.set_proxy(proxy["address"], "http")
        request.add_header("Authorization", f"Bearer {token}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        assert refused.value.headers["x-meshscrape-refusal"] == "unknown-target"
