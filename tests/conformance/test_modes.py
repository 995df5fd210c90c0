"""Every mode with every kind of Prometheus: planned on a dump, applied phase by phase, then probed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance import operator, prober, shop
from conformance.hostile import EXPECTED, attacks
from conformance.kube import Kube
from conformance.migration import Migration
from conformance.prober import Prober, anonymous, plain, secure
from conformance.prometheus import Prometheus
from conformance.watch import Watch

Row = Callable[..., None]
PORT = {"native": 15092, "bootstrap": 15092, "legacy": 15091}


@dataclass(frozen=True)
class Case:
    """A mode, a kind of Prometheus, and the mTLS mode of the namespace."""

    mode: str
    prometheus: str
    strict: bool

    def __str__(self) -> str:
        """Return the name of the test's case."""
        return f"{self.mode}-{self.prometheus}-{'strict' if self.strict else 'permissive'}"

    def options(self) -> tuple[str, ...]:
        """Return the options of plan and render."""
        words = ("--mode", self.mode, "-n", shop.NAMESPACE, "--prometheus", self.prometheus)
        return words if self.prometheus == "existing" else (*words, "--prometheus-namespace", "monitoring")


CORE = (
    Case("native", "existing", strict=True),
    Case("bootstrap", "existing", strict=False),
    Case("legacy", "existing", strict=False),
    Case("bootstrap", "addon", strict=True),
    Case("native", "operator", strict=True),
)
WHOLE = (
    Case("native", "addon", strict=False),
    Case("bootstrap", "operator", strict=False),
    Case("legacy", "addon", strict=True),
    Case("legacy", "operator", strict=False),
    Case("legacy", "existing", strict=True),
)


@pytest.fixture(scope="module")
def stranger(kube: Kube) -> Iterator[Prober]:
    """Provide a workload of the mesh that is no scraper."""
    with shop.probers(kube) as pod:
        yield pod


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "case", [*CORE, *(pytest.param(case, marks=pytest.mark.whole) for case in WHOLE)], ids=str
)
def test_plan_takes_shop_behind_mutual_tls(
    kube: Kube, meshscrape: Path, tmp_path: Path, stranger: Prober, case: Case, row: Row
) -> None:
    """A plan, applied phase by phase, loses no scrape; in the end only the scraper reads."""
    with shop.shop(kube, strict=case.strict), shop.found(kube, case.prometheus) as existing:
        migration = Migration(kube, meshscrape, tmp_path, case.options())
        if existing is not None:
            existing.wait_for_up(set(shop.addresses(kube).values()))
        first = migration.plan()
        assert first.returncode == 1, first.stderr
        watch = Watch(kube, existing)
        phases = migration.migrate((shop.NAMESPACE, *shop.places(case.prometheus)), watch.look)
        prometheus = existing or shop.rendered(kube, case.prometheus)
        targets = prometheus.wait_for_up(set(shop.addresses(kube).values()))
        assert all(target["scrapeUrl"].startswith("https://") for target in targets)
        last = migration.plan()
        assert last.returncode == 0, last.stdout
        seen = _probe(kube, case, prometheus, stranger)
        row(
            f"plan: {case.mode}, Prometheus {case.prometheus}, {'STRICT' if case.strict else 'PERMISSIVE'}",
            f"{len(phases)} phases applied, {len(targets)} targets up over HTTPS, {watch.lost()}"
            f"{seen}; planned again: nothing to do",
            Prometheus=prometheus.version(),
        )
        if case.prometheus == "operator":
            jobs = _compare_with_operator(kube, migration, prometheus)
            row(
                f"plan: {case.mode}, Prometheus operator: the Secret that the Operator writes",
                f"{jobs} jobs over mutual TLS with our certificate files; observe names their targets",
            )
        if existing is not None:
            migration.restore()
            migration.settle((shop.NAMESPACE, "istio-system"))
            existing.wait_for_up(set(shop.addresses(kube).values()))
            row(f"plan: {case.mode}, `originals/` applied again", "every target up as before")


@pytest.mark.whole
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("first", "second"), [("legacy", "native"), ("native", "bootstrap")])
def test_change_of_mode_loses_no_scrape(
    kube: Kube, meshscrape: Path, tmp_path: Path, first: str, second: str, row: Row
) -> None:
    """A mesh in one mode moves to another, phase by phase, and every target stays up."""
    with shop.shop(kube, strict=False), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        watch = Watch(kube, prometheus)
        for mode in (first, second):
            migration = Migration(kube, meshscrape, tmp_path, Case(mode, "existing", False).options())
            assert migration.plan().returncode == 1
            migration.migrate((shop.NAMESPACE, "istio-system"), watch.look)
            last = migration.plan()
            assert last.returncode == 0, last.stdout
            addresses = shop.addresses(kube)
            urls = {target["scrapeUrl"] for target in prometheus.of(set(addresses.values()))}
            wanted = {f"https://{address}:{PORT[mode]}/stats/prometheus" for address in addresses.values()}
            assert urls == wanted
        row(
            f"change from {first} to {second} mode",
            f"every target up after each phase, {watch.down} scrapes lost",
            Prometheus=prometheus.version(),
        )


def _compare_with_operator(kube: Kube, migration: Migration, prometheus: Prometheus) -> int:
    """Compare what observe makes of the monitors with what the Operator does; return the number of jobs."""
    (owner,) = kube.get("-n", prometheus.namespace, "prometheuses.monitoring.coreos.com")["items"]
    written = operator.generated(kube, owner)
    directory = owner["spec"]["volumeMounts"][0]["mountPath"]
    files = {"ca_file": "root-cert.pem", "cert_file": "cert-chain.pem", "key_file": "key.pem"}
    tls = {key: f"{directory}/{name}" for key, name in files.items()} | {"insecure_skip_verify": True}
    observed = {job["job"]: job for job in migration.observe()["scrapeJobs"] if job["over"] == "mtls"}
    assert {name for name, job in written.items() if job.get("scheme") == "https"} == set(observed)
    for name, job in observed.items():
        assert written[name]["tls_config"] == tls, name
        told = sorted(port for match in job["matches"] for port in match["ports"])
        assert [int(t["scrapeUrl"].split(":")[2].partition("/")[0]) for t in prometheus.targets(name)] == told
    return len(observed)


def _probe(kube: Kube, case: Case, prometheus: Prometheus, stranger: Prober) -> str:
    """Probe every workload as the scraper, as a stranger, without a certificate and in plaintext."""
    account = kube.pods(prometheus.namespace, prometheus.selector)[0]["spec"]["serviceAccountName"]
    scraper = prober.start(kube, prometheus.namespace, "scraper", account=account)
    port, stranger_gets = PORT[case.mode], 200 if case.mode == "native" else 403
    try:
        for name, address in shop.addresses(kube).items():
            assert scraper.outcomes(secure(address, port)) == [200], name
            assert stranger.outcomes(secure(address, port)) == [stranger_gets], name
            refused = stranger.outcomes(anonymous(address, port), plain(address, port))
            assert refused == ["tls", "closed"], name
            closed = stranger.outcomes(plain(address, 15020), plain(address, 15090))
            assert not {200} & set(closed), (name, closed)
            requests = attacks(address, port)
            got = scraper.ask(*requests)
            for request, answer in zip(requests, got, strict=True):
                where = f"{name} {request.get('method', 'GET')} {request['path']}"
                assert answer.get("status") in EXPECTED, (where, answer)
        assert scraper.outcomes(secure(address, port, newest="TLSv1.1")) == ["tls"]
    finally:
        kube("-n", prometheus.namespace, "delete", "pod", "scraper")
    return f"scraper 200, another workload {stranger_gets}, no certificate refused, 15020 and 15090 closed"
