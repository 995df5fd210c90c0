"""Steps of an explanation: what each observation means, and that the first broken one ends it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshscrape.envoy.refusals import CATALOGUE, REASON_HEADER
from meshscrape.errors import InputError
from meshscrape.verify.explain.explanation import Explanation, Observed, ProxyAnswer, explain
from meshscrape.verify.explain.scraper import ScraperFiles
from meshscrape.verify.explain.target import ExplainTarget, find_targets
from meshscrape.verify.mesh_status import MeshStatus, parse_mesh
from meshscrape.verify.observations import (
    Answered,
    Closed,
    ConnectionRefused,
    NotHttp,
    NotObserved,
    Observation,
    Presented,
    Reset,
    TimedOut,
    TlsAlert,
    TlsFailed,
    Unreachable,
)
from meshscrape.verify.prometheus_checks import ScrapeJob, ScrapeTarget, Scraping
from support.ca import Credentials, TestCa
from support.status import sidecar, status

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CA = TestCa(now=NOW)
SCRAPER = CA.workload("istio-system", "prometheus")
SERVER = CA.workload("default", "productpage")
TYPE = (("content-type", "text/plain; version=0.0.4; charset=utf-8"),)
BODY = b"""\
# TYPE meshscrape_source_up gauge
meshscrape_source_up{source="envoy"} 1
meshscrape_source_up{source="application:9080"} 1
"""
URL = "https://127.9.1.1:15092/stats/prometheus"


def mesh(**changes: object) -> MeshStatus:
    return parse_mesh(status(sidecar(**changes)))


def proxied(**changes: object) -> MeshStatus:
    entry = {"address": "127.9.2.9:15094", "tokenFile": "/run/token"}
    return parse_mesh(status(sidecar(**changes), scrapeProxy=entry))


def files(own: Credentials = SCRAPER, **changes: bytes) -> ScraperFiles:
    return replace(ScraperFiles("/run/prometheus", own.chain_pem, own.key_pem, own.root_pem), **changes)


def presented(server: Credentials = SERVER, distrust: str = "") -> Presented:
    return Presented(server.certificate.public_bytes(Encoding.DER), distrust)


def prometheus(health: str = "up", error: str = "", url: str = URL) -> Scraping:
    return Scraping((ScrapeTarget(url, health, error, {}, "job"),), {"job": ScrapeJob()}, "")


HEALTHY = Observed(files(), None, presented(), Answered(200, TYPE, BODY), prometheus())


def merged(of: MeshStatus | None = None) -> ExplainTarget:
    return find_targets(of or mesh(), "127.9.1.1:15092")[0]


def explained(target: ExplainTarget | None = None, now: datetime = NOW, **changes: object) -> Explanation:
    return explain(target or merged(), replace(HEALTHY, **changes), now)  # type: ignore[arg-type]


def broken(target: ExplainTarget | None = None, now: datetime = NOW, **changes: object) -> tuple[str, str]:
    """The broken step and what was seen; it is the last one, and it says what to do."""
    found = explained(target, now, **changes)
    assert found.broken is not None
    assert found.steps[-1] == found.broken
    assert found.broken.remedy
    return found.broken.name, found.broken.seen


def test_a_healthy_target_passes_every_step_in_order() -> None:
    """From the certificate to Prometheus."""
    found = explained()
    assert found.broken is None
    assert [each.name for each in found.steps] == [
        "scraper's certificate", "certificate's life", "scraper's key", "certificate's chain", "discovery",
        "TCP connection", "TLS handshake", "server's identity", "client certificate", "authorisation",
        "HTTP status", "exposition", "sources", "dropped lines", "Prometheus",
    ]  # fmt: skip


def test_the_scraper_s_certificate_comes_first() -> None:
    """Missing, unreadable, ended, not begun, with another key, from another CA: each in its own words."""
    assert broken(files=ScraperFiles("/run", problem="cannot read"))[0] == "scraper's certificate"
    assert broken(files=files(chain=b"no PEM"))[0] == "scraper's certificate"
    assert broken(files=files(CA.server(["a.example"])))[0] == "scraper's certificate"
    name, seen = broken(files=files(CA.expired("istio-system", "prometheus")))
    assert name == "certificate's life"
    assert "ago" in seen
    assert broken(files=files(CA.not_yet_valid("istio-system", "prometheus")))[0] == "certificate's life"
    assert broken(files=files(key=SERVER.key_pem)) == ("scraper's key", "the key is not the certificate's")
    assert broken(files=files(key=b"junk"))[0] == "scraper's key"
    name, seen = broken(files=files(roots=TestCa(now=NOW).root_pem))
    assert name == "certificate's chain" and "does not reach a root" in seen
    assert broken(files=files(roots=b""))[0] == "certificate's chain"


def test_a_chain_with_an_intermediate_is_followed() -> None:
    """To the root, over what the file has; an intermediate that is missing or ended breaks it."""
    below = CA.intermediate()
    own = below.workload("istio-system", "prometheus")
    assert explained(files=files(own)).broken is None
    leaf = own.certificate.public_bytes(Encoding.PEM)
    assert broken(files=files(own, chain=leaf))[0] == "certificate's chain"
    short = CA.intermediate(lifetime=timedelta(minutes=59))
    uri = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/istio-system/sa/prometheus")
    assert broken(files=files(short.custom([uri])))[0] == "certificate's chain"


def test_an_overdue_renewal_is_a_note() -> None:
    """The last tenth of a life: nothing fails yet."""
    end = SCRAPER.certificate.not_valid_after_utc
    step = explained(now=end - timedelta(minutes=2)).steps[1]
    assert (step.outcome, "overdue" in step.seen) == ("note", True)


@pytest.mark.parametrize(
    ("seen", "step", "words"),
    [
        (ConnectionRefused(), "TCP connection", "nothing listens"),
        (Unreachable("No route to host"), "TCP connection", "No route to host"),
        (TimedOut("connect"), "TCP connection", "no answer in time"),
        (TlsFailed("the port does not speak TLS"), "TLS handshake", "does not speak TLS"),
        (TlsAlert("certificate required"), "TLS handshake", "certificate required"),
        (TimedOut("handshake"), "TLS handshake", "handshake"),
        (Reset(), "TLS handshake", "reset"),
        (presented(CA.workload("default", "other")), "server's identity", "sa/other instead of"),
        (presented(CA.expired("default", "productpage")), "server's identity", "ended"),
        (presented(distrust="self-signed certificate"), "server's identity", "does not lead"),
    ],
)
def test_the_handshake_tells_where_it_ends(seen: Observation, step: str, words: str) -> None:
    """Connection, TLS, and who answers: expected and seen identity are both named."""
    name, told = broken(handshake=seen)
    assert name == step
    assert words in told


@pytest.mark.parametrize(
    ("seen", "step", "words"),
    [
        (TlsAlert("unknown ca"), "client certificate", "unknown ca"),
        (Closed(), "client certificate", "closed"),
        (TimedOut("answer"), "client certificate", "no answer"),
        (NotHttp(b"\x00"), "client certificate", "not HTTP"),
        (NotObserved("no"), "client certificate", "no"),
        (
            Answered(403, body=b"RBAC: access denied"),
            "authorisation",
            "may not scrape; its allow list: spiffe:",
        ),
        (Answered(404), "HTTP status", "404"),
        (Answered(503), "HTTP status", "503"),
        (Answered(302), "HTTP status", "302"),
        (Answered(200, TYPE, BODY[:-5], "cut"), "exposition", "cut off"),
        (Answered(200, (), BODY), "exposition", "no Content-Type"),
        (Answered(200, TYPE, b"a b c\n"), "exposition", "line 1 is malformed"),
        (Answered(200, TYPE, BODY.replace(b"} 1\n", b"} 0\n")), "sources", "is down"),
        (Answered(200, TYPE, BODY.replace(b":9080", b":1")), "sources", "application:9080 is not merged"),
    ],
)
def test_the_scrape_tells_where_it_ends(seen: Observation, step: str, words: str) -> None:
    """TLS alerts after the handshake, the allow list, the status, the body."""
    name, told = broken(answer=seen)
    assert name == step
    assert words in told


def told(*lines: str, body: bytes = BODY) -> Answered:
    """A scrape whose merged exposition says this about its sources too."""
    return Answered(200, TYPE, body + "".join(f"{line}\n" for line in lines).encode())


def test_a_source_that_is_down_says_why() -> None:
    """The agent's own reason is shown, not only that the source is down."""
    reason = 'meshscrape_source_problem_info{source="application:9080",problem="HTTP 401 \\"no\\""} 1'
    name, seen = broken(answer=told(reason, body=BODY.replace(b"} 1\n", b"} 0\n")))
    assert name == "sources"
    assert 'application:9080: HTTP 401 "no"' in seen


DROPPED = 'meshscrape_source_malformed_lines_total{source="application:9080"} %d'


def test_lines_that_are_dropped_at_every_scrape_are_no_health() -> None:
    """The count that rises between two scrapes is the finding; one that stays is a note."""
    name, seen = broken(answer=told(DROPPED % 7), again=told(DROPPED % 9))
    assert (name, "2 of application:9080" in seen) == ("dropped lines", True)
    found = explained(answer=told(DROPPED % 7), again=told(DROPPED % 7))
    assert found.broken is None
    assert [each.outcome for each in found.steps if each.name == "dropped lines"] == ["note"]


@pytest.mark.parametrize(
    ("by", "outcome", "words"),
    [
        ("prometheus", "note", "Prometheus adds series"),
        ("agent", "note", "the agent has"),
        ("application:9080", "note", "application:9080 comes earlier"),
        ("limit", "broken", "more families"),
    ],
)
def test_families_that_are_left_out_are_named_with_the_reason(by: str, outcome: str, words: str) -> None:
    """Prometheus' own names, the agent's, those of an earlier port, and too many."""
    source = 'source="application:9081"'
    found = explained(answer=told(
        f'meshscrape_source_hidden_families{{{source},by="{by}"}} 3',
        f'meshscrape_source_hidden_family_info{{{source},by="{by}",family="up"}} 1',
    ))  # fmt: skip
    (step,) = [each for each in found.steps if each.name == "left-out families"]
    assert step.outcome == outcome
    assert words in step.seen
    assert "3 of application:9081 (up, …)" in step.seen
    assert step.remedy


def test_empty_allow_list_is_reported() -> None:
    """The remedy names the variable and the entry to add."""
    found = explained(merged(mesh(scrapers=[])), answer=Answered(403))
    assert found.broken is not None
    assert "no scraper is admitted" in found.broken.seen
    wanted = "add spiffe:spiffe://cluster.local/ns/istio-system/sa/prometheus to MESHSCRAPE_SCRAPERS"
    assert wanted in found.broken.remedy


def test_discovery_tells_why_an_address_is_not_a_target() -> None:
    """Not ready, another port, another path, an inside address, an address of nobody."""
    name, seen = broken(merged(mesh(ready=False, message="no certificate")))
    assert (name, seen) == ("discovery", "default/productpage is not ready: no certificate")
    for text, words in (
        ("127.9.1.1:15090", "serves plaintext"),
        ("127.9.1.1:4711", "announces no port 4711"),
        ("https://127.9.1.1:15092/metrics", "the path there is /stats/prometheus, not /metrics"),
        ("127.9.2.1:9080", "inside address of default/productpage"),
        ("127.9.7.7:15092", "no workload of the mesh has the address"),
    ):
        name, seen = broken(find_targets(mesh(), text)[0])
        assert name == "discovery"
        assert words in seen
    announced = merged(mesh(targets=[{"url": "https://127.9.1.1:15091/stats/prometheus"}]))
    assert "announced are" in broken(announced)[1]


def test_unknown_target_is_not_visited() -> None:
    """Discovery ends the explanation before any connection is judged."""
    steps = explained(find_targets(mesh(), "127.9.7.7:15092")[0], handshake=None, answer=None).steps
    assert [each.name for each in steps][-1] == "discovery"


def proxy(seen: Observation) -> ProxyAnswer:
    return ProxyAnswer("127.9.2.9:15094", seen)


def refused(reason: str, status: int) -> Answered:
    return Answered(status, ((REASON_HEADER, reason),), f"{reason}: …".encode())


@pytest.mark.parametrize("reason", ["bad-token", "unknown-target", "unknown-path", "no-scraper-certificate"])
def test_the_proxy_s_own_refusals_end_at_the_proxy(reason: str) -> None:
    """With the catalogue's meaning and remedy."""
    entry = next(each for each in CATALOGUE if each.reason == reason)
    found = explained(merged(proxied()), proxy=proxy(refused(reason, entry.status)))
    assert found.broken is not None
    assert (found.broken.name, found.broken.remedy) == ("scrape proxy", entry.remedy)
    assert entry.meaning in found.broken.seen


@pytest.mark.parametrize(
    "reason", ["wrong-identity", "expired-certificate", "unreachable", "plaintext-server"]
)
def test_refusal_caused_by_the_target_is_explained_by_later_steps(reason: str) -> None:
    """The proxy step notes it; the step with the cause breaks, or, when nothing does, the passage."""
    answer = proxy(refused(reason, 503))
    assert broken(merged(proxied()), proxy=answer, handshake=ConnectionRefused())[0] == "TCP connection"
    name, seen = broken(merged(proxied()), proxy=answer)
    assert name == "through the proxy"
    assert reason in seen


def test_a_proxy_that_does_not_answer_is_the_cause() -> None:
    """Nothing else is blamed."""
    assert broken(merged(proxied()), proxy=proxy(ConnectionRefused()))[0] == "scrape proxy"


def test_prometheus_is_the_last_step() -> None:
    """Unknown target, down with its own error, no answer; without one the step does not apply."""
    assert broken(prometheus=Scraping((), {}))[0] == "Prometheus"
    name, seen = broken(prometheus=prometheus("down", "context deadline exceeded"))
    assert (name, seen) == ("Prometheus", f"{URL} is down: context deadline exceeded")
    assert broken(prometheus="cannot connect") == ("Prometheus", "cannot connect")
    assert explained(prometheus=None).steps[-1].outcome == "skipped"


def test_new_target_is_not_broken() -> None:
    """Prometheus calls it unknown until its first scrape."""
    found = explained(prometheus=prometheus("unknown"))
    assert found.broken is None
    assert (found.steps[-1].outcome, "not scraped it yet" in found.steps[-1].seen) == ("note", True)


def test_an_application_s_own_port_needs_no_families() -> None:
    """No allow list, no sources, any exposition."""
    target = find_targets(mesh(), "127.9.1.1:9080")[0]
    assert (target.path, target.application) == ("/metrics", True)
    seen = prometheus(url="https://127.9.1.1:9080/metrics")
    found = explained(target, answer=Answered(200, (), b"a 1\n"), prometheus=seen)
    assert found.broken is None
    assert "sources" not in {each.name for each in found.steps}


@pytest.mark.parametrize("text", ["productpage", "default/productpage"])
def test_workload_name_selects_all_its_targets(text: str) -> None:
    """Both secure ports and the application's own; as Prometheus shows them."""
    assert [each.url for each in find_targets(mesh(), text)] == [
        URL, "https://127.9.1.1:15091/stats/prometheus", "https://127.9.1.1:9080/metrics"
    ]  # fmt: skip
    assert {each.scheme for each in find_targets(proxied(), text)} == {"http"}


def test_a_workload_without_targets_says_so() -> None:
    """The scraper itself serves nothing; that is told, not an error."""
    [target] = find_targets(mesh(), "istio-system/prometheus")
    assert "no secure metrics port" in broken(target)[1]


@pytest.mark.parametrize("text", [URL, URL.replace("https", "http"), "127.9.1.1:15092"])
def test_urls_of_either_scheme_and_addresses_mean_the_same(text: str) -> None:
    """Prometheus shows http:// through the proxy, https:// otherwise."""
    assert find_targets(mesh(), text)[0] == merged()


def test_ipv6_addresses_have_brackets() -> None:
    """As in URLs."""
    dual = mesh(addresses=["127.9.1.1", "::1"])
    [target] = find_targets(dual, "[::1]:15092")
    assert (target.url, target.announced) == ("https://[::1]:15092/stats/prometheus", False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nobody",
        "other/productpage",
        "a b",
        "https://example.com/x",
        "127.9.1.1",
        "127.9.1.1:0",
        "::1:15092",
    ],
)
def test_unknown_name_is_refused(text: str) -> None:
    """With what could be named."""
    with pytest.raises(InputError, match="TARGET"):
        find_targets(mesh(), text)


def test_a_hostile_answer_cannot_disturb_a_terminal() -> None:
    """Everything that came from a peer is one printable line."""
    found = explained(answer=Answered(500, body=b"\x1b[2J\nfake\r\n  ok      everything"))
    assert found.broken is not None
    assert found.broken.seen.isprintable()
