"""The scrape proxy beside a Prometheus while its cluster changes: no scrape of what stays is lost."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance import api_gate, prober, proxied, scraper, shop
from conformance.kube import Kube, until
from conformance.prometheus import Prometheus
from conformance.proxied import ANNOUNCED, LIFETIME, MERGED, SPACE, Mesh, Variation
from conformance.scraper import Program
from meshscrape.cluster.api import SILENCE_SECONDS

Row = Callable[..., None]
pytestmark = [pytest.mark.whole, pytest.mark.timeout(900)]
RENEWALS = 3


@pytest.fixture(scope="module")
def mesh(kube: Kube, meshscrape: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A namespace with one Prometheus 3, whose proxy reaches the API server by a gate."""
    if not kube.capabilities.local_images:
        pytest.skip(
            "pods must reach the gate on this machine: only a cluster of processes has such a network"
        )
    with (
        api_gate.running(kube, tmp_path_factory.mktemp("gate")) as gate,
        proxied.mesh(kube, meshscrape, gate) as found,
    ):
        yield found


def test_both_ways_of_discovery_reach_every_kind_of_port(mesh: Mesh, row: Row) -> None:
    """HTTP SD and drop-in jobs of one Prometheus scrape secure ports and an application's own port."""
    with mesh.undisturbed() as tally:
        before = tally_of(mesh)
        until(lambda: tally_of(mesh) > before + 100, "a hundred more scrapes")
    row(
        "scrape proxy: drop-in jobs and HTTP SD, merged, Envoy's and an application's own port",
        f"{len(mesh.expected())} targets up, {tally.scrapes} scrapes, 0 lost",
        Prometheus=mesh.prometheus.version(),
    )


def tally_of(mesh: Mesh) -> float:
    """Return how many scrapes of its targets the proxy has counted."""
    return mesh.number("sum(meshscrape_scrape_requests_total)")


OTHERS = {
    "Prometheus 2": (proxied.PROMETHEUS_2, "prometheus"),
    "vmagent": (scraper.VMAGENT, "vmagent"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_scrapers_use_the_proxy_beside_them(
    mesh: Mesh, kube: Kube, meshscrape: Path, name: str, row: Row
) -> None:
    """Prometheus 2 and vmagent, each with a proxy of its own, have every target up."""
    program, package = OTHERS[name]
    if not _installed(program):
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    # Debian builds Prometheus 2 without Kubernetes discovery.
    drop_in = program is scraper.VMAGENT
    wanted = {each for each in mesh.expected() if drop_in or each[0].startswith(ANNOUNCED)}
    pod = name.lower().replace(" ", "-")
    with mesh.undisturbed() as tally:
        other = proxied.start(kube, meshscrape, mesh.gate, pod, program, drop_in=drop_in)
        try:
            mesh.up(other, wanted)
            if program is scraper.VMAGENT:
                until(lambda: _scrapes(other.text("/metrics")) > 50, "fifty scrapes")
                failed = re.findall(
                    r"^vm_promscrape_scrapes_failed_total (\d+)$", other.text("/metrics"), re.M
                )
                assert failed == ["0"]
                versions = {"vmagent": "of Debian"}
            else:
                hosts = set(mesh.steady.values())
                until(lambda: other.scrapes(hosts, 60) > 50, "fifty scrapes")
                assert not other.lost_scrapes(hosts, 60)
                versions = {"Prometheus": other.version()}
                assert other.version().startswith("2.")
        finally:
            kube("-n", SPACE, "delete", "pod", pod, "--timeout=120s")
    row(
        f"scrape proxy beside {name}, and Prometheus 3 with one of its own",
        f"{len(wanted)} targets up ({'drop-in and HTTP SD' if drop_in else 'HTTP SD'}), 0 scrapes lost; "
        f"Prometheus 3: {tally.scrapes} scrapes of the same targets, 0 lost",
        **versions,
    )


def _installed(program: Program) -> bool:
    if program is scraper.VMAGENT:
        return shutil.which("vmagent") is not None
    return proxied.prometheus_2_is_there()


def _scrapes(metrics: str) -> int:
    found = re.search(r'^vm_promscrape_scrapes_total\{status_code="200"\} (\d+)$', metrics, re.MULTILINE)
    return int(found[1]) if found else 0


def test_pods_that_come_go_restart_and_move(mesh: Mesh, kube: Kube, row: Row) -> None:
    """A pod comes, its proxy ends and starts again, it comes back at another address, and it goes."""
    with mesh.undisturbed() as tally:
        with mesh.guest("guest") as first:
            mesh.up(mesh.prometheus, proxied.endpoints(first))
            failed = mesh.before_first_success(first)
            assert failed["HTTP SD"] == 0, "announced before its route was live"
            place = ("-n", SPACE, "exec", "guest", "-c", "istio-proxy", "--")
            kube.run(*place, "curl", "-s", "-X", "POST", "http://127.0.0.1:15000/quitquitquit")
            until(lambda: _proxy_restarts(kube, "guest") > 0, "the kubelet starts the sidecar again")
            mesh.arrived("guest")
            mesh.up(mesh.prometheus, proxied.endpoints(first))
        with mesh.guest("guest") as second:
            assert second != first
            mesh.up(mesh.prometheus, proxied.endpoints(second))
            moved = mesh.before_first_success(second)
            assert moved["HTTP SD"] == 0, "announced before its route was live"
            until(lambda: not mesh.prometheus.of({first}), "the pod's old address is no target")
        until(lambda: not mesh.prometheus.of({second}), "the pod is no target")
    most = max(failed["drop-in"], moved["drop-in"])
    row(
        "scrape proxy: a pod comes, its sidecar restarts, it comes back at another address, goes",
        f"at most {most} scrapes failed before a new pod's first success (drop-in; HTTP SD: 0), "
        f"{tally.scrapes} scrapes of the other targets, 0 lost",
    )


def _proxy_restarts(kube: Kube, pod: str) -> int:
    status = kube.get("-n", SPACE, "pod", pod)["status"]
    found = [*status.get("initContainerStatuses", []), *status["containerStatuses"]]
    return sum(int(each["restartCount"]) for each in found if each["name"] == "istio-proxy")


def test_another_identity_at_a_known_address(mesh: Mesh, kube: Kube, row: Row) -> None:
    """A pod of another ServiceAccount takes an address while the proxy hears nothing of it: it is refused."""
    refused = (
        'sum(meshscrape_scrape_refusals_total{{reason="wrong-identity",'
        'target=~"{0}:.*",spiffe_id="spiffe://cluster.local/ns/proxied/sa/{1}"}})'
    )
    with mesh.undisturbed() as tally, contextlib.ExitStack() as pods:
        first = pods.enter_context(contextlib.ExitStack())
        address = first.enter_context(mesh.guest("first"))
        mesh.up(mesh.prometheus, proxied.endpoints(address))
        with mesh.gate.silent():
            first.close()
            second = pods.enter_context(contextlib.ExitStack())
            second.enter_context(mesh.guest("second", "impostor", address))
            until(lambda: mesh.number(refused.format(address, "guest")) > 0, "the impostor is refused")
            began, seen = mesh.prometheus.now(), mesh.number(refused.format(address, "guest"))
            until(lambda: mesh.number(refused.format(address, "guest")) >= seen + 8, "it is refused again")
            seconds = round(mesh.prometheus.now() - began)
            assert mesh.number(f'max(max_over_time(up{{instance=~"{address}:.*"}}[{seconds}s]))') == 0
            tried = mesh.number(f'sum(count_over_time(up{{instance=~"{address}:.*"}}[{seconds}s]))')
        mesh.up(mesh.prometheus, proxied.endpoints(address))
        _await_identity(mesh, address, "impostor")
        second.close()
        # The other way round, with nothing in between: the address changes its owner while the proxy looks.
        pods.enter_context(mesh.guest("third", "guest", address))
        mesh.up(mesh.prometheus, proxied.endpoints(address))
        _await_identity(mesh, address, "guest")
    row(
        "scrape proxy: an impostor at a known address, the watch of pods silent",
        f"{tried:.0f} scrapes refused as wrong-identity, none answered; {tally.scrapes} scrapes of the other "
        "targets, 0 lost",
    )
    row(
        "scrape proxy: another ServiceAccount on the same address",
        "up under its own identity, there and back",
    )


def _await_identity(mesh: Mesh, address: str, account: str) -> None:
    """Wait until Prometheus has heard by HTTP SD whose address this is: it takes a list every 5 s."""
    wanted = f"spiffe://cluster.local/ns/{SPACE}/sa/{account}"

    def announced() -> list[str]:
        found = [each for each in mesh.prometheus.of({address}) if each["scrapePool"] == ANNOUNCED + MERGED]
        return [each["discoveredLabels"]["__meta_meshscrape_spiffe_id"] for each in found]

    until(lambda: announced() == [wanted], f"{address} is announced as {account}", detail=announced)


def test_api_server_away_and_back(mesh: Mesh, kube: Kube, row: Row) -> None:
    """The last targets stay, also when the process that follows pods is killed meanwhile; then it follows."""
    with mesh.undisturbed() as tally:
        with mesh.gate.closed():
            until(lambda: not mesh.reachable(), "the proxy says that the API server is away")
            proxied.kill(kube, mesh.prometheus)
            until(lambda: "the targets of an earlier run are used" in mesh.log(), "it starts without it")
            until(lambda: mesh.number(f'up{{job="{proxied.OWN}"}}') == 1, "it serves its metrics again")
            assert not mesh.reachable()
            with mesh.guest("meanwhile") as unseen:
                assert not mesh.prometheus.of({unseen})
        until(mesh.reachable, "the proxy has the API server again")
        with mesh.guest("after") as address:
            mesh.up(mesh.prometheus, proxied.endpoints(address))
    row(
        "scrape proxy: API server away, its Python process killed meanwhile, API server back",
        f"source_up 0, then 1; {tally.scrapes} scrapes, 0 lost; a new pod is followed afterwards",
    )


TOO_OLD = "too old to watch on; listing again"


def test_watch_cut_and_too_old(mesh: Mesh, kube: Kube, row: Row) -> None:
    """A watch that is cut is taken up again; where its version is too old (410), pods are listed again."""
    with mesh.undisturbed() as tally:
        mesh.gate.cut()
        with mesh.guest("cut") as address:
            mesh.up(mesh.prometheus, proxied.endpoints(address))
        _forget_old_versions(kube)
        listed = mesh.log().count(TOO_OLD)
        with mesh.gate.too_old():
            mesh.gate.cut()
            until(lambda: mesh.log().count(TOO_OLD) > listed, "the API server answers 410")
            # Pods that go and come while no watch lasts.
            with mesh.guest("too-old") as other:
                mesh.up(mesh.prometheus, proxied.endpoints(other))
        until(lambda: not mesh.prometheus.of({address, other}), "pods that went are no targets")
        assert mesh.gate.aged
    row(
        "scrape proxy: a watch cut, and answered 410 by the API server",
        f"listed again, new pods scraped; {tally.scrapes} scrapes, 0 lost",
    )


def _forget_old_versions(kube: Kube) -> None:
    """Change pods until the API server no longer knows their first changes, of which it keeps a hundred."""
    watch = f"/api/v1/namespaces/{SPACE}/pods?watch=1&resourceVersion=1&timeoutSeconds=1"
    number = itertools.count()

    def forgotten() -> bool:
        for _ in range(10):
            kube("annotate", "pods", "--all", "-A", "--overwrite", f"example.com/number={next(number)}")
        asked = kube.run("get", "--raw", watch)
        return "too old resource version" in asked.stdout + asked.stderr

    until(forgotten, "the API server has forgotten the first changes of pods", timeout=300)


FORBIDDEN = re.compile(r'some targets of .* stay as they were: .*cannot (list|watch) resource \\?"pods')


def test_rights_taken_away_while_it_runs(mesh: Mesh, kube: Kube, row: Row) -> None:
    """Without the right to watch pods the last targets stay, and it says so; with it, it follows again."""
    binding = kube.get("-n", SPACE, "rolebinding", "prometheus")
    for field in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        binding["metadata"].pop(field, None)
    with mesh.undisturbed() as tally:
        kube("-n", SPACE, "delete", "rolebinding", "prometheus")
        try:
            mesh.gate.cut()
            until(lambda: FORBIDDEN.search(mesh.log()), "the proxy says which right is missing")
            until(lambda: not mesh.reachable(), "its metrics say that it does not follow pods")
        finally:
            kube.apply(binding)
        until(mesh.reachable, "the proxy follows pods again")
        with mesh.guest("allowed") as address:
            mesh.up(mesh.prometheus, proxied.endpoints(address))
    row(
        "scrape proxy: the right to watch pods taken away and given back",
        f"source_up 0 and the API server's words in its log, then 1; {tally.scrapes} scrapes, 0 lost",
    )


def test_silent_watch_while_certificates_rotate(mesh: Mesh, row: Row) -> None:
    """A watch that is silent is given up; meanwhile every certificate is renewed several times."""
    with mesh.undisturbed() as tally:
        began = mesh.prometheus.now()
        with mesh.gate.silent(), mesh.guest("unheard") as address:
            wanted = {each for each in proxied.endpoints(address) if each[0].startswith(ANNOUNCED)}
            until(
                lambda: (
                    {(each["scrapePool"], each["scrapeUrl"]) for each in mesh.prometheus.of({address})}
                    >= wanted
                ),
                "the proxy gives the watch up and lists again",
                timeout=2 * SILENCE_SECONDS,
            )
        until(lambda: _fewest_renewals(mesh, began) >= RENEWALS, "every certificate is renewed", 300)
    row(
        f"scrape proxy: a silent watch, while every certificate is renewed ({LIFETIME} each)",
        f"given up and listed again; {RENEWALS} or more renewals of each certificate; "
        f"{tally.scrapes} scrapes, 0 lost",
    )


def _fewest_renewals(mesh: Mesh, began: float) -> float:
    """Return how often the certificate that was renewed least was renewed, the proxy's own included."""
    seconds = max(1, round(mesh.prometheus.now() - began))
    hosts = "|".join(mesh.steady.values())
    counted = (
        f'scrape_target_certificate_expiration_timestamp_seconds{{target=~"({hosts}):.*"}}',
        "scrape_proxy_certificate_expiration_timestamp_seconds",
    )
    return min(mesh.number(f"min(changes(meshscrape_{each}[{seconds}s]))") for each in counted)


def _announced(*addresses: str) -> set[tuple[str, str]]:
    """Return job and URL of the secure ports of pods, with HTTP SD."""
    return {
        endpoint
        for address in addresses
        for endpoint in proxied.endpoints(address)
        if endpoint[0].startswith(ANNOUNCED)
    }


def _announced_steady(mesh: Mesh) -> set[tuple[str, str]]:
    """Return job and URL of every target that stays, with HTTP SD."""
    return {endpoint for endpoint in mesh.expected() if endpoint[0].startswith(ANNOUNCED)}


def test_replicas_share_one_watch(mesh: Mesh, kube: Kube, meshscrape: Path, row: Row) -> None:
    """One replica's proxy watches pods; the other's follows it, without access to the API server."""
    names = ("replica-0", "replica-1")
    steady = set(mesh.steady.values())
    with mesh.undisturbed() as tally, contextlib.ExitStack() as pods:
        for name in names:
            pods.callback(kube, "-n", SPACE, "delete", "pod", name, "--ignore-not-found", "--timeout=120s")

        def started(name: str, variation: Variation) -> Prometheus:
            return proxied.start(
                kube, meshscrape, mesh.gate, name, scraper.PROMETHEUS, drop_in=False, variation=variation
            )

        first = started(names[0], Variation(share=True, account="prometheus"))
        shared = kube.address(SPACE, f"app={names[0]}")
        second = started(names[1], Variation(follow=shared, account="prometheus"))
        for replica in (first, second):
            mesh.up(replica, _announced_steady(mesh))
        with mesh.guest("shared") as address:
            for replica in (first, second):
                mesh.up(replica, _announced(address))
        until(lambda: not first.of({address}) and not second.of({address}), "the pod is no target")
        began = second.now()
        proxied.kill(kube, first)
        with mesh.guest("again") as other:
            for replica in (first, second):
                mesh.up(replica, _announced(other))
        seconds = second.now() - began
        scrapes = second.scrapes(steady, seconds)
        assert not second.lost_scrapes(steady, seconds)
        assert scrapes > 0
        version = second.version()
    row(
        "scrape proxy: two replicas, one of which follows the other (`--share`, `--follow`)",
        "pods that come and go are scraped by both, also after the first one's Python process was killed; "
        f"the second: {scrapes} scrapes meanwhile, 0 lost; the other Prometheus: {tally.scrapes}, 0 lost",
        Prometheus=version,
    )


def test_certificates_of_an_istio_proxy_in_the_pod(
    mesh: Mesh, kube: Kube, meshscrape: Path, row: Row
) -> None:
    """The proxy has no agent: it shows what the pod's istio-proxy writes (OUTPUT_CERTS) and renews."""
    renewed = "min(changes(meshscrape_scrape_proxy_certificate_expiration_timestamp_seconds[300s]))"
    steady = set(mesh.steady.values())
    with mesh.undisturbed() as tally:
        other = proxied.start(
            kube, meshscrape, mesh.gate, "files", scraper.PROMETHEUS, variation=Variation(files=True)
        )
        try:
            mesh.up(other, mesh.expected())
            until(lambda: other.query(renewed + " >= 1"), "the certificate is renewed", 180)
            mesh.up(other, mesh.expected())
            scrapes = other.scrapes(steady, 60)
            assert not other.lost_scrapes(steady, 60)
            version = other.version()
        finally:
            kube("-n", SPACE, "delete", "pod", "files", "--timeout=120s")
    row(
        f"scrape proxy with the certificate files of an istio-proxy (OUTPUT_CERTS, {LIFETIME} each)",
        f"{len(mesh.expected())} targets up, also after a renewal; {scrapes} scrapes in a minute, 0 lost; "
        f"the other Prometheus: {tally.scrapes}, 0 lost",
        Prometheus=version,
    )


ELSEWHERE = "elsewhere"


def test_rights_in_two_namespaces(mesh: Mesh, kube: Kube, meshscrape: Path, row: Row) -> None:
    """Roles as `meshscrape rbac` writes them are enough; without one, the other namespace is followed."""
    words = ["rbac", "proxy", "--service-account", f"{SPACE}/spread", "-n", SPACE, "-n", ELSEWHERE]
    roles = subprocess.run([str(meshscrape), *words], capture_output=True, text=True, check=True).stdout
    with mesh.undisturbed() as tally, kube.namespace(ELSEWHERE, **shop.INJECTED):
        meta = prober.named(ELSEWHERE, "guest")
        kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        kube.apply(proxied.guest("guest", "guest", "", ELSEWHERE))
        kube("apply", "-f", "-", stdin=roles)
        kube("-n", ELSEWHERE, "wait", "--for=condition=Ready", "pod/guest", "--timeout=300s")
        address = kube.address(ELSEWHERE, "app=guest")
        variation = Variation(namespaces=(SPACE, ELSEWHERE))
        other = proxied.start(
            kube, meshscrape, mesh.gate, "spread", scraper.PROMETHEUS, drop_in=False, variation=variation
        )
        try:
            mesh.up(other, _announced(address) | _announced_steady(mesh))
            kube("-n", ELSEWHERE, "delete", "rolebinding", "meshscrape-proxy")
            mesh.gate.cut()
            reachable = "min(meshscrape_scrape_proxy_source_up)"
            until(lambda: other.query(f"{reachable} == 0"), "its metrics say that a namespace is missing")
            with mesh.guest("beside") as new:
                mesh.up(other, _announced(address, new))
            kube("apply", "-f", "-", stdin=roles)
            until(lambda: other.query(f"{reachable} == 1"), "the proxy follows both namespaces again")
            version = other.version()
        finally:
            kube("-n", SPACE, "delete", "pod", "spread", "--timeout=120s")
    row(
        "scrape proxy: Roles in two namespaces (`meshscrape rbac proxy`), one taken away and given back",
        "both scraped; without the Role its last target stays, the other namespace's new pod is scraped, and "
        f"source_up is 0, then 1; the other Prometheus: {tally.scrapes} scrapes, 0 lost",
        Prometheus=version,
    )
