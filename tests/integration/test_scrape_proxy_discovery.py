"""The scrape proxy while its targets come, go and contradict each other, and for several trust domains."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.addresses import loopback
from support.forgery import Forge
from support.mesh import meshscrape
from support.polling import eventually
from support.scrape_proxy import JOB, SCRAPER, RunningProxy, credentials, group, running_proxy
from support.targets import Target, tls_target

HTTPBIN = "spiffe://cluster.local/ns/default/sa/httpbin"
# Targets that come each second, the least that is promised, and for how long.
RATE, LEAST_RATE, CHURN_SECONDS = 20, 10, 4.0


@pytest.fixture
def forge() -> Forge:
    return Forge()


@pytest.fixture
def target(tmp_path: Path, forge: Forge) -> Iterator[Target]:
    """A target that is what it is expected to be."""
    with tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, tmp_path) as served:
        yield served


@pytest.fixture
def proxy(tmp_path: Path, forge: Forge, target: Target) -> Iterator[RunningProxy]:
    """A proxy that knows the target."""
    directory = str(credentials(tmp_path / "scraper", forge))
    with running_proxy(tmp_path, [directory], [group(target.authority, HTTPBIN)]) as running:
        yield running


def test_a_new_target_is_announced_once_it_can_be_scraped(
    proxy: RunningProxy, target: Target, tmp_path: Path, forge: Forge
) -> None:
    """HTTP SD tells nothing that the proxy would still refuse; a new identity needs no restart."""
    other = "spiffe://cluster.local/ns/default/sa/other"
    with tls_target(Target(loopback()), forge.leaf(other), forge.root, tmp_path) as new:
        proxy.announce([group(target.authority, HTTPBIN), group(new.authority, other, namespace="default")])
        eventually(lambda: new.authority in proxy.announced())
        assert proxy.scrape(new.authority).status == 200
        assert proxy.scrape(target.authority).status == 200


def test_a_target_that_is_gone_is_unknown_at_once(proxy: RunningProxy, target: Target) -> None:
    """Neither announced nor reachable through the proxy, although a connection to it is open."""
    assert proxy.scrape(target.authority).status == 200
    proxy.announce_and_wait([])
    assert proxy.http_sd() == []
    assert proxy.scrape(target.authority).reason == "unknown-target"


def test_target_with_a_new_identity_is_checked_again(proxy: RunningProxy, target: Target) -> None:
    """The open connection to the old identity is not used for the new expectation."""
    assert proxy.scrape(target.authority).status == 200
    proxy.announce([group(target.authority, f"{HTTPBIN}-v2")])
    refused = eventually(lambda: (seen := proxy.scrape(target.authority)).status == 503 and seen)
    assert refused.reason == "wrong-identity"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[{",
        b'{"targets": []}',
        b'[{"targets": ["10.0.0.1:15092"]}]',
        b'[{"targets": ["name:15092"], "labels": {"__meshscrape_spiffe_id": "spiffe://a/ns/b/sa/c"}}]',
        b'[{"targets": ["10.0.0.1:15092"], "labels": {"__meshscrape_spiffe_id": "spiffe://unknown/ns/b/sa/c"}}]',
        b'[{"targets": ["10.0.0.1:1"], "labels": {"__meshscrape_spiffe_id": "spiffe://cluster.local/ns/b/sa/c"}},'
        b' {"targets": ["10.0.0.1:1"], "labels": {"__meshscrape_spiffe_id": "spiffe://cluster.local/ns/b/sa/d",'
        b' "__metrics_path__": "/x"}}]',
    ],
    ids=["empty", "cut off", "no list", "nobody expected", "a name", "no credentials", "two identities"],
)
def test_a_file_that_cannot_be_used_changes_nothing(
    proxy: RunningProxy, target: Target, content: bytes
) -> None:
    """The old targets stay, the metrics and stderr say so, and the next good file is used."""
    proxy.file.write_bytes(content)
    eventually(
        lambda: (
            proxy.metric("meshscrape_scrape_proxy_source_failures_total")
            + proxy.metric("meshscrape_scrape_proxy_reload_failures_total")
        )
    )
    up, current = (
        proxy.metric("meshscrape_scrape_proxy_source_up"),
        proxy.metric("meshscrape_scrape_proxy_current"),
    )
    assert up == 0 or current == 0
    assert str(proxy.file) in proxy.said()
    assert proxy.announced() == [target.authority]
    assert proxy.scrape(target.authority).status == 200
    proxy.announce_and_wait([])
    assert proxy.metric("meshscrape_scrape_proxy_source_up") == 1
    assert proxy.metric("meshscrape_scrape_proxy_current") == 1


def test_contradicting_sources_block_no_other_target(tmp_path: Path, forge: Forge, target: Target) -> None:
    """Where two identities are expected nobody is scraped; what is withdrawn elsewhere loses its route."""
    other = tmp_path / "other.json"
    other.write_text("[]")
    directory = str(credentials(tmp_path / "scraper", forge))
    both = [group(target.authority, HTTPBIN), group("127.9.9.9:15092", HTTPBIN)]
    with running_proxy(tmp_path, [directory], both, "--targets", str(other)) as running:
        other.write_text(json.dumps([group(target.authority, f"{HTTPBIN}-v2")]))
        eventually(lambda: running.announced() == ["127.9.9.9:15092"] and not running.http_sd("other"))
        assert running.scrape(target.authority).reason == "unknown-target"
        assert running.metric("meshscrape_scrape_proxy_current") == 0
        assert "two identities" in running.said()
        running.announce([group(target.authority, HTTPBIN)])
        eventually(lambda: running.announced() == [])
        assert running.scrape("127.9.9.9:15092").reason == "unknown-target"
        other.write_text("[]")
        eventually(lambda: running.announced() == [target.authority])
        assert running.scrape(target.authority).status == 200
        assert running.metric("meshscrape_scrape_proxy_current") == 1


def test_contradicting_sources_at_the_start_block_no_other_target(
    tmp_path: Path, forge: Forge, target: Target
) -> None:
    """The proxy starts; nobody is scraped at the contested address until one source gives way."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps([group("127.9.9.9:15092", f"{HTTPBIN}-v2")]))
    directory = str(credentials(tmp_path / "scraper", forge))
    both = [group(target.authority, HTTPBIN), group("127.9.9.9:15092", HTTPBIN)]
    with running_proxy(tmp_path, [directory], both, "--targets", str(other)) as running:
        assert (running.announced(), running.http_sd("other")) == ([target.authority], [])
        assert running.scrape(target.authority).status == 200
        assert running.scrape("127.9.9.9:15092").reason == "unknown-target"
        assert running.metric("meshscrape_scrape_proxy_current") == 0
        other.write_text("[]")
        eventually(lambda: "127.9.9.9:15092" in running.announced())
        assert running.metric("meshscrape_scrape_proxy_current") == 1


def test_source_of_an_unknown_trust_domain_blocks_no_other_source(
    tmp_path: Path, forge: Forge, target: Target
) -> None:
    """It keeps its last targets; another source's targets still go."""
    other = tmp_path / "other.json"
    other.write_text("[]")
    directory = str(credentials(tmp_path / "scraper", forge))
    groups = [group(target.authority, HTTPBIN)]
    with running_proxy(tmp_path, [directory], groups, "--targets", str(other)) as running:
        other.write_text(json.dumps([group("127.9.9.9:15092", "spiffe://elsewhere/ns/a/sa/b")]))
        eventually(lambda: running.metric("meshscrape_scrape_proxy_source_up", source=str(other)) == 0)
        running.announce_and_wait([])
        assert running.scrape(target.authority).reason == "unknown-target"
        assert "no credentials for the trust domain elsewhere" in running.said()


def test_a_file_that_is_gone_changes_nothing(proxy: RunningProxy, target: Target) -> None:
    """Removing the file is not the way to remove targets; its return is noticed."""
    proxy.file.unlink()
    eventually(lambda: proxy.metric("meshscrape_scrape_proxy_source_failures_total"))
    assert proxy.scrape(target.authority).status == 200
    proxy.announce_and_wait([])


class Churn:
    """Targets with identities of their own that come and go beside `stable` groups, `RATE` each second.

    How many change is read off the clock: after a slow change more of them are due. A change's targets
    replace those of the change before, so as many go as come.
    """

    def __init__(self, proxy: RunningProxy, stable: Sequence[dict[str, Any]]) -> None:
        self._proxy, self._stable = proxy, stable
        self._began = time.monotonic()
        self.came = 0
        self.changes = 0

    @property
    def seconds(self) -> float:
        """How long it has gone on."""
        return time.monotonic() - self._began

    def change(self) -> None:
        """Wait until targets are due, announce them, and wait until HTTP SD tells exactly them."""
        due = eventually(lambda: int(self.seconds * RATE) - self.came, what="the next target")
        passing = [self._passing(number) for number in range(self.came, self.came + due)]
        self._proxy.announce_and_wait([*self._stable, *passing])
        self.came += due
        self.changes += 1

    def _passing(self, number: int) -> dict[str, Any]:
        address = f"127.9.{number // 250}.{number % 250 + 1}:15092"
        return group(address, f"spiffe://cluster.local/ns/n{number}/sa/s")


def test_churn_drops_no_scrape_of_the_others(
    proxy: RunningProxy, target: Target, tmp_path: Path, forge: Forge
) -> None:
    """At least 10 targets a second come, and as many go, while others are scraped without a pause."""
    done = threading.Event()
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, tmp_path))
            for _ in range(2)
        ]
        stable = [target, *others]
        groups = [group(each.authority, HTTPBIN) for each in stable]
        proxy.announce_and_wait(groups)

        def scrape() -> list[int]:
            outcomes: list[int] = []
            while not done.is_set():
                outcomes += [proxy.scrape(each.authority).status for each in stable]
            return outcomes

        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(done.set)
        scraping = pool.submit(scrape)
        churn = Churn(proxy, groups)
        while churn.seconds < CHURN_SECONDS:
            churn.change()
        rate = churn.came / churn.seconds
        done.set()
        outcomes = scraping.result()
        connections = [each.connections for each in stable]
    failed = sum(status != 200 for status in outcomes)
    print(
        f"{rate:.1f} targets/s came and went in {churn.changes} changes; "
        f"{len(outcomes)} scrapes of {len(stable)} others, {failed} failed"
    )
    assert rate >= LEAST_RATE
    assert failed == 0
    assert len(outcomes) > churn.changes
    assert connections == [1] * len(stable)


def test_metrics_forget_targets_that_are_gone(proxy: RunningProxy, target: Target) -> None:
    """No series of a target outlives it: churn does not fill the memory."""
    proxy.scrape(target.authority)
    eventually(lambda: proxy.metric("meshscrape_scrape_requests_total", target=target.authority))
    proxy.announce_and_wait([])
    assert target.authority not in proxy.own("/metrics").body


def test_two_trust_domains_each_have_their_own_roots_and_certificate(tmp_path: Path) -> None:
    """One proxy, two meshes: each target sees the client certificate of its own mesh."""
    east, west = Forge("east"), Forge("west")
    ids = {"east": "spiffe://east.example/ns/a/sa/app", "west": "spiffe://west.example/ns/a/sa/app"}
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(tls_target(Target(loopback()), east.leaf(ids["east"]), east.root, tmp_path))
        two = stack.enter_context(tls_target(Target(loopback()), west.leaf(ids["west"]), west.root, tmp_path))
        # The other mesh's CA vouches for an ID of this one: its word counts in its own trust domain alone.
        forged = stack.enter_context(
            tls_target(Target(loopback()), east.leaf(ids["west"]), west.root, tmp_path)
        )
        scrapers = {name: f"spiffe://{name}.example/ns/monitoring/sa/prometheus" for name in ("east", "west")}
        directories = [
            f"{name}.example={credentials(tmp_path / name, forge, scrapers[name])}"
            for name, forge in (("east", east), ("west", west))
        ]
        groups = [
            group(one.authority, ids["east"]),
            group(two.authority, ids["west"]),
            group(forged.authority, ids["west"]),
        ]
        running = stack.enter_context(running_proxy(tmp_path, directories, groups))
        assert running.scrape(one.authority).status == 200
        assert running.scrape(two.authority).status == 200
        assert one.seen[-1].client == scrapers["east"]
        assert two.seen[-1].client == scrapers["west"]
        assert running.scrape(forged.authority).reason == "untrusted-certificate"
        assert not forged.seen


def test_yaml_files_and_several_jobs(tmp_path: Path, forge: Forge, target: Target) -> None:
    """A YAML file is as good; each file is a job; `JOB=FILE` names it."""
    file = tmp_path / "more.yml"
    file.write_text(
        f"- targets: ['127.9.9.9:15092', '[::1]:15092']\n"
        f"  labels: {{__meshscrape_spiffe_id: '{HTTPBIN}', namespace: default}}\n"
    )
    directory = str(credentials(tmp_path / "scraper", forge))
    groups = [group(target.authority, HTTPBIN)]
    with running_proxy(tmp_path, [directory], groups, "--targets", f"named={file}") as running:
        assert running.announced() == [target.authority]
        (first, second) = running.http_sd("named")
        assert (first["targets"], second["targets"]) == (["127.9.9.9:15092"], ["[::1]:15092"])
        assert first["labels"]["namespace"] == "default"
        assert running.scrape("[::1]:15092").reason == "unreachable"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "0.0.0.0:15094"], "0.0.0.0:15094"),
        (["--discovery", "[::]:15095"], "[::]:15095"),
        (["--listen", "localhost:15094"], "localhost"),
        (["--targets", "/nowhere.json"], "/nowhere.json"),
        (["--credentials", "west=/nowhere"], "/nowhere"),
    ],
)
def test_unusable_options_are_one_line(tmp_path: Path, forge: Forge, arguments: list[str], said: str) -> None:
    """Exit code 2 and one line: also for addresses that others can reach, unless --remote is said."""
    file = tmp_path / f"{JOB}.json"
    file.write_text("[]")
    own = ["--credentials", str(credentials(tmp_path / "scraper", forge, SCRAPER)), "--targets", str(file)]
    given = {"--listen": f"{loopback()}:15094", "--discovery": f"{loopback()}:15095"} | {
        name: value for name, value in zip(arguments[::2], arguments[1::2], strict=True) if "list" in name
    }
    rest = [] if "--listen" in arguments else arguments
    listen = [part for pair in given.items() for part in pair]
    done = meshscrape("proxy", "--dir", str(tmp_path / "p"), *own, *listen, *rest, "--wait", "0")
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_a_token_that_others_can_read_is_refused(tmp_path: Path, forge: Forge) -> None:
    """A token file with a mode wider than 0600 is no secret."""
    token, file = tmp_path / "token", tmp_path / f"{JOB}.json"
    token.write_text("x" * 43)
    token.chmod(0o644)
    file.write_text("[]")
    own = ["--credentials", str(credentials(tmp_path / "scraper", forge)), "--targets", str(file)]
    done = meshscrape("proxy", "--dir", str(tmp_path / "p"), *own, "--token-file", str(token))
    assert done.returncode == 2
    assert str(token) in done.stderr and "x" * 43 not in done.stderr
