"""The scrape proxy's Envoy as a process of its own: neither process takes the other along."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.addresses import loopback
from support.forgery import Forge
from support.polling import eventually
from support.scrape_proxy import RunningProxy, credentials, group
from support.targets import Target, tls_target

HTTPBIN = "spiffe://cluster.local/ns/default/sa/httpbin"
ROUTES = ("--role", "routes")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Target, Forge, RunningProxy]]:
    """A target, its CA, and a running proxy whose two processes are apart."""
    forge = Forge()
    with tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, tmp_path) as target:
        proxy = RunningProxy(tmp_path, loopback(), [str(credentials(tmp_path / "scraper", forge))])
        proxy.announce([group(target.authority, HTTPBIN)])
        envoy = proxy.start_envoy()
        try:
            proxy.start(*ROUTES)
            yield target, forge, proxy
        finally:
            for process in (proxy.process, envoy):
                if process.poll() is None:
                    process.kill()
                process.wait(10)


def test_no_scrape_is_lost_when_python_dies(served: tuple[Target, Forge, RunningProxy]) -> None:
    """Killed, away for many scrapes, and started again; every scrape in between is answered."""
    target, _, proxy = served
    answers: list[int] = []
    stop = threading.Event()
    token = proxy.token

    def scrape() -> None:
        while not stop.is_set():
            answers.append(proxy.scrape(target.authority, token=token).status)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        eventually(lambda: len(answers) > 50)
        proxy.process.kill()
        proxy.process.wait(10)
        gone = len(answers)
        eventually(lambda: len(answers) > gone + 200)
        proxy.start(*ROUTES)
        back = len(answers)
        eventually(lambda: len(answers) > back + 50)
    finally:
        stop.set()
        thread.join()
    assert set(answers) == {200}
    eventually(lambda: proxy.metric("meshscrape_scrape_requests_total", target=target.authority) > 0)


def test_restarted_process_updates_the_routes_of_the_running_envoy(
    served: tuple[Target, Forge, RunningProxy], tmp_path: Path
) -> None:
    """A target that went meanwhile is refused, and a new one is scraped."""
    target, forge, proxy = served
    proxy.process.kill()
    proxy.process.wait(10)
    other = "spiffe://cluster.local/ns/default/sa/other"
    with tls_target(Target(loopback()), forge.leaf(other), forge.root, tmp_path) as new:
        proxy.announce([group(new.authority, other)])
        proxy.start(*ROUTES)
        assert proxy.scrape(new.authority).status == 200
        assert proxy.scrape(target.authority).reason == "unknown-target"


def test_an_envoy_that_starts_without_python_has_the_last_routes(
    served: tuple[Target, Forge, RunningProxy],
) -> None:
    """Its files suffice: routes, identities, token and the names of the credentials."""
    target, _, proxy = served
    proxy.process.kill()
    proxy.process.wait(10)
    token = proxy.token
    (old,) = [int(each.name) for each in Path("/proc").iterdir() if _is_envoy_of(each, proxy.state)]

    os.kill(old, signal.SIGKILL)
    eventually(lambda: not any(_is_envoy_of(each, proxy.state) for each in Path("/proc").iterdir()))
    envoy = proxy.start_envoy()
    try:
        eventually(lambda: _status(proxy, target, token) == 200)
    finally:
        envoy.kill()
        envoy.wait(10)


def _status(proxy: RunningProxy, target: Target, token: str) -> int:
    try:
        return proxy.scrape(target.authority, token=token).status
    except OSError:
        return 0


def _is_envoy_of(process: Path, directory: Path) -> bool:
    try:
        named = (process / "comm").read_text().strip() == "envoy"
        running = (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return named and running and (process / "cwd").readlink() == directory
    except OSError:
        return False


def test_a_probe_tells_whether_the_proxy_is_ready(served: tuple[Target, Forge, RunningProxy]) -> None:
    """`--check` succeeds for a ready proxy; it fails when the process is gone, and for another token."""
    _, _, proxy = served
    assert proxy.check() == 0
    other = proxy.directory / "other-token"
    other.write_text("another-token-than-the-proxys")
    assert proxy.check("--token-file", str(other)) == 1
    proxy.process.kill()
    proxy.process.wait(10)
    assert proxy.check() == 1


def test_a_shared_token_is_readable_by_every_user(tmp_path: Path) -> None:
    """The containers of one pod run as different users; nobody but the owner can change the token."""
    forge = Forge()
    proxy = RunningProxy(tmp_path, loopback(), [str(credentials(tmp_path / "scraper", forge))])
    proxy.announce([])
    token = tmp_path / "volume/token"
    token.parent.mkdir()
    proxy.start("--token-file", str(token), "--share-token")
    try:
        assert token.stat().st_mode & 0o777 == 0o644
    finally:
        assert proxy.stop() == 0


@pytest.mark.parametrize("timeout", ["0.3", "1"])
def test_a_scrape_ends_with_the_timeout_of_prometheus(
    served: tuple[Target, Forge, RunningProxy], timeout: str
) -> None:
    """A target that is too slow is a timeout for the scrape that cannot wait, long before the proxy's own."""
    target, _, proxy = served
    target.released = threading.Event()
    headers = {"Host": target.authority, "Authorization": f"Bearer {proxy.token}"}
    url = f"http://{target.authority}/stats/prometheus"
    try:
        answer = proxy.request("GET", url, {**headers, "X-Prometheus-Scrape-Timeout-Seconds": timeout})
        assert (answer.status, answer.reason) == (504, "timeout")
    finally:
        target.released.set()


@pytest.mark.parametrize("timeout", ["", "0", "-1", "1e-9", "soon", "999999999999", "0x1", "nan"])
def test_a_timeout_that_cannot_be_meant_changes_nothing(
    served: tuple[Target, Forge, RunningProxy], timeout: str
) -> None:
    """The proxy's own limit holds, and a client cannot set it by Envoy's header either."""
    target, _, proxy = served
    headers = {
        "Host": target.authority,
        "Authorization": f"Bearer {proxy.token}",
        "X-Prometheus-Scrape-Timeout-Seconds": timeout,
        "X-Envoy-Upstream-Rq-Timeout-Ms": "1",
    }
    assert proxy.request("GET", f"http://{target.authority}/stats/prometheus", headers).status == 200
    assert "x-envoy-upstream-rq-timeout-ms" not in target.seen[-1].headers
