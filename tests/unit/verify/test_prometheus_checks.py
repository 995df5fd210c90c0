"""What Prometheus must say about the mesh."""

from __future__ import annotations

from meshscrape.verify.mesh_status import parse_mesh
from meshscrape.verify.prometheus_api import judge_view, unchecked
from meshscrape.verify.prometheus_checks import (
    PrometheusView,
    ScrapeJob,
    ScrapeTarget,
    Scraping,
    judge_identities,
    judge_schemes,
    judge_series,
    judge_target,
    wanted_series,
    wanted_targets,
)
from meshscrape.verify.registry import CHECKS, PROMETHEUS_CHECKS
from support.status import sidecar, status

URL = "https://127.9.1.1:15092/stats/prometheus"
MESH = parse_mesh(status(sidecar()))
MERGED = wanted_targets(MESH)[0]


PROXY = "127.9.2.9:15094"
PLAIN = URL.replace("https", "http")


def target(url: str = URL, health: str = "up", error: str = "", job: str = "") -> ScrapeTarget:
    return ScrapeTarget(url, health, error, {}, job)


def scraped(*targets: ScrapeTarget, proxy: str = "") -> Scraping:
    """What Prometheus scrapes; its jobs go through the proxy, through another one, or believe everybody."""
    jobs = {
        "proxied": ScrapeJob(proxy=PROXY),
        "elsewhere": ScrapeJob(proxy="127.9.9.9:15094"),
        "blind": ScrapeJob(unverified=True),
        "both": ScrapeJob(proxy=PROXY, unverified=True),
    }
    return Scraping(targets, jobs, proxy)


def test_secure_ports_and_application_metrics_are_wanted() -> None:
    """Every secure port at its metrics path, and the application's own behind mutual TLS."""
    assert [each.url for each in wanted_targets(MESH)] == [
        URL,
        "https://127.9.1.1:15091/stats/prometheus",
        "https://127.9.1.1:9080/metrics",
    ]


def test_an_application_without_tls_is_not_wanted() -> None:
    """DISABLE cannot be scraped over mutual TLS; the merged port has its metrics."""
    application = [{"name": "http", "port": 9080, "mtls": "DISABLE", "metrics": "/metrics"}]
    assert wanted_targets(parse_mesh(status(sidecar(ports={"application": application})))) == ()


def test_an_ipv6_target_has_brackets() -> None:
    """As Prometheus spells it."""
    mesh = parse_mesh(status(sidecar(addresses=["::1"])))
    assert wanted_targets(mesh)[0].url == "https://[::1]:15092/stats/prometheus"


def test_target_must_exist_and_be_up() -> None:
    """Absent, down and not yet scraped are findings that say which."""
    assert judge_target(MERGED, scraped(target())).outcome == "passed"
    absent = judge_target(MERGED, scraped(target("http://127.9.1.1:15092/stats/prometheus")))
    assert (absent.outcome, absent.seen) == ("failed", f"no active target {URL}")
    down = judge_target(MERGED, scraped(target(health="down", error="remote error:\ntls: \x1b[1m")))
    assert down.outcome == "failed"
    assert down.seen.startswith(f"{URL} is down: remote error: tls:")
    assert down.seen.isprintable()
    assert judge_target(MERGED, scraped(target(health="unknown"))).outcome == "failed"


def test_one_of_two_jobs_being_down_is_found() -> None:
    """Each of several targets with one URL counts."""
    assert judge_target(MERGED, scraped(target(), target(health="down"))).outcome == "failed"


def test_plaintext_scrape_of_the_mesh_is_found() -> None:
    """Pod and inside addresses alike; targets outside the mesh are no business of ours."""
    outside = target("http://10.0.0.1:9100/metrics")
    assert judge_schemes(MESH, scraped(target(), outside)).outcome == "passed"
    for host in ("127.9.1.1:15090", "127.9.2.1:9080", "127.9.1.1"):
        found = judge_schemes(MESH, scraped(target(), target(f"http://{host}/metrics")))
        assert found.outcome == "failed"
        assert host in found.seen


def test_a_plain_ipv6_target_is_recognised() -> None:
    """Brackets do not hide an address of the mesh."""
    mesh = parse_mesh(status(sidecar(addresses=["::1"])))
    assert judge_schemes(mesh, scraped(target("http://[::1]:15090/metrics"))).outcome == "failed"


def test_the_scrape_proxy_makes_plain_http_safe() -> None:
    """A target over http counts when its job goes through the mesh's own proxy, and through no other way."""
    good = scraped(target(PLAIN, job="proxied"), proxy=PROXY)
    assert judge_target(MERGED, good).outcome == "passed"
    assert "through the scrape proxy" in judge_target(MERGED, good).seen
    assert judge_schemes(MESH, good).outcome == "passed"
    for job, proxy in (("elsewhere", PROXY), ("", PROXY), ("unheard of", PROXY), ("proxied", "")):
        bad = scraped(target(PLAIN, job=job), proxy=proxy)
        assert judge_target(MERGED, bad).outcome == "failed"
        assert judge_schemes(MESH, bad).outcome == "failed"


def test_an_unverified_target_is_a_hole_only_beside_a_proxy() -> None:
    """Without a scrape proxy Prometheus has no way to check: a note. With one, a job goes around it."""
    assert judge_identities(MESH, scraped(target(PLAIN, job="proxied"), proxy=PROXY)).outcome == "passed"
    assert judge_identities(MESH, scraped(target(job="blind"))).outcome == "noted"
    for job in ("blind", "both"):
        found = judge_identities(MESH, scraped(target(job=job), proxy=PROXY))
        assert found.outcome == "failed"
    other = scraped(target("https://10.0.0.1/metrics", job="blind"), proxy=PROXY)
    assert judge_identities(MESH, other).outcome == "passed"


def test_prometheus_may_scrape_loopback_in_plaintext() -> None:
    """Its own inside address is its localhost: the proxy's metrics are read there without TLS."""
    own = target("http://127.9.2.9:15095/metrics")
    assert judge_schemes(MESH, scraped(own, proxy=PROXY)).outcome == "passed"


def test_queries_ask_for_the_applications_own_families() -> None:
    """The well-known one of Python first, none of the proxy's and the agent's, at most three."""
    names = ["envoy_server_live", "istio_agent_x", "meshscrape_source_up", "b", "a", "z_created", "c",
             "python_gc_objects_collected_total"]  # fmt: skip
    wanted = wanted_series(MESH.workloads[0], names)
    assert [each.name for each in wanted] == ["python_gc_objects_collected_total", "a", "b"]
    assert 'instance="127.9.1.1:15092",namespace="default"' in wanted[0].query
    assert wanted_series(MESH.workloads[0], ["envoy_server_live"]) == ()


def test_no_series_is_a_finding() -> None:
    """An empty result means that Prometheus does not have the application's metrics."""
    wanted = wanted_series(MESH.workloads[0], ["a"])[0]
    assert judge_series(wanted, 1).outcome == "passed"
    assert judge_series(wanted, 0).outcome == "failed"


def test_silent_prometheus_leaves_every_check_reported() -> None:
    """Without its API each of its checks is a finding of its own."""
    results = unchecked("istio-system/prometheus", PROMETHEUS_CHECKS, "connection refused")
    assert {each.check for each in results} == {each.name for each in PROMETHEUS_CHECKS}
    assert {each.outcome for each in results} == {"skipped"}


def test_every_check_of_prometheus_tells_its_severity() -> None:
    """One look at the API gives a result of every check, with the words of the registry."""
    wanted = wanted_series(MESH.workloads[0], ["a"])[0]
    results = judge_view(PrometheusView(MESH, scraped(), [(wanted, 0)]), PROMETHEUS_CHECKS)
    assert {each.check for each in results} == {each.name for each in PROMETHEUS_CHECKS}
    for each in results:
        assert (each.severity, each.expected) == (CHECKS[each.check].severity, CHECKS[each.check].proves)
    only = judge_view(PrometheusView(MESH, scraped()), PROMETHEUS_CHECKS[:1])
    assert {each.check for each in only} == {"prometheus-target"}
