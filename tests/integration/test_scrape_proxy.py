"""The scrape proxy with a real Envoy: who is scraped, who is refused and why, and who may ask at all."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.addresses import loopback
from support.forgery import HOUR, Forge, Pair
from support.polling import eventually
from support.scrape_proxy import JOB, SCRAPER, RunningProxy, credentials, group, running_proxy
from support.targets import STATS, Target, raw_target, tls_target

HTTPBIN = "spiffe://cluster.local/ns/default/sa/httpbin"
OTHER = "spiffe://cluster.local/ns/default/sa/other"
MINUTE = timedelta(minutes=1)
# With 1024 bits, a server cannot sign as the proxy's Envoy wants it. With these it can.
SHORT = (1034, 1536, 2040, 2041, 2047)
TLSv1_2, TLSv1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@dataclass(slots=True)
class Field:
    """One proxy, and a target of each kind by its address."""

    proxy: RunningProxy
    good: Target
    addresses: dict[str, str]


def _wrong_servers(forge: Forge) -> dict[str, tuple[Pair, bytes]]:
    """Certificates that servers show, and the roots that they want clients to come from."""
    stranger = Forge()
    return {
        "another workload": (forge.leaf(OTHER), forge.root),
        "longer ID": (forge.leaf(f"{HTTPBIN}2"), forge.root),
        "ID in a DNS name": (forge.leaf(dns=[HTTPBIN]), forge.root),
        "host name only": (forge.leaf(dns=["httpbin.default.svc"]), forge.root),
        "upper case": (forge.leaf(HTTPBIN.replace("httpbin", "HTTPBIN")), forge.root),
        "other trust domain": (
            forge.leaf(HTTPBIN.replace("cluster.local", "cluster.local.evil")),
            forge.root,
        ),
        "look-alike CA": (stranger.leaf(HTTPBIN), forge.root),
        "expired": (forge.leaf(HTTPBIN, valid_from=-2 * HOUR, valid_until=-MINUTE), forge.root),
        "not yet valid": (forge.leaf(HTTPBIN, valid_from=HOUR, valid_until=2 * HOUR), forge.root),
        "trusts another CA": (forge.leaf(HTTPBIN), stranger.root),
        **{f"RSA {bits}": (forge.leaf(HTTPBIN, rsa_bits=bits), forge.root) for bits in (1024, *SHORT)},
    }


def _odd_servers(forge: Forge) -> dict[str, Pair]:
    """Servers that are scraped although their keys are not the usual ones."""
    return {
        "P-384": forge.leaf(HTTPBIN, curve=ec.SECP384R1()),
        "RSA 2048": forge.leaf(HTTPBIN, rsa_bits=2048),
    }


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A proxy with a good target and one of every kind that must be refused."""
    directory = tmp_path_factory.mktemp("proxy")
    forge = Forge()
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, directory))
        denying = Target(loopback(), body=b"403 not on the list\n", status=403)
        stack.enter_context(tls_target(denying, forge.leaf(HTTPBIN), forge.root, directory))
        addresses = {"good": good.address, "denying": denying.address, "closed": loopback()}
        for kind, (pair, roots) in _wrong_servers(forge).items():
            wrong = Target(loopback(), body=b"secret 1\n")
            stack.enter_context(tls_target(wrong, pair, roots, directory))
            addresses[kind] = wrong.address
        addresses["trusts another CA, TLS 1.2"] = stack.enter_context(
            tls_target(Target(loopback()), forge.leaf(HTTPBIN), Forge().root, directory, TLSv1_2)
        ).address
        for (name, pair), version in itertools.product(_odd_servers(forge).items(), (TLSv1_2, TLSv1_3)):
            odd = stack.enter_context(tls_target(Target(loopback()), pair, forge.root, directory, version))
            addresses[f"{name}, {version.name}"] = odd.address
        plain = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsecret 1\n"
        for kind, answer in (("plaintext", plain), ("hangs up", b""), ("silent", None)):
            addresses[kind] = stack.enter_context(raw_target(loopback(), answer))
        groups = [group(f"{address}:15092", HTTPBIN) for address in addresses.values()]
        directories = [str(credentials(directory / "scraper", forge))]
        proxy = stack.enter_context(running_proxy(directory, directories, groups))
        yield Field(proxy, good, addresses)


def test_the_expected_workload_is_scraped(field: Field) -> None:
    """The target's own answer comes back, and the target saw the scraper's certificate."""
    answer = field.proxy.scrape(field.good.authority)
    assert (answer.status, answer.body, answer.reason) == (200, "shown 1\n", "")
    assert field.good.seen[-1].client == SCRAPER
    assert field.good.seen[-1].path == STATS


def test_target_never_sees_the_token_or_the_client(field: Field) -> None:
    """Nothing of the proxy's own business is passed on: no token, no forwarding headers."""
    field.proxy.scrape(field.good.authority)
    headers = field.good.seen[-1].headers
    assert headers["host"] == field.good.authority
    assert not {name for name in headers if "authorization" in name or name.startswith("x-")}
    assert not [name for name in field.proxy.scrape(field.good.authority).headers if "certificate" in name]
    assert field.proxy.token not in str(headers)


def test_connections_are_used_again_and_counted(field: Field) -> None:
    """Two more scrapes on the same connection: no handshake more, and the metrics say so."""
    proxy, target = field.proxy, field.good.authority
    proxy.scrape(target)
    before = field.good.connections
    reused = proxy.metric("meshscrape_scrape_reused_connections_total", target=target)
    for _ in range(2):
        assert proxy.scrape(target).status == 200
    assert field.good.connections == before
    eventually(
        lambda: proxy.metric("meshscrape_scrape_reused_connections_total", target=target) >= reused + 2
    )
    assert proxy.metric("meshscrape_scrape_handshakes_total", target=target) >= 1


def test_expiry_of_the_targets_certificate_is_a_metric(field: Field) -> None:
    """not-after of the certificate that the target showed, in Unix time."""
    field.proxy.scrape(field.good.authority)
    name = "meshscrape_scrape_target_certificate_expiration_timestamp_seconds"
    seen = eventually(lambda: field.proxy.metric(name, target=field.good.authority))
    assert seen > 1.7e9


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("another workload", "wrong-identity"),
        ("longer ID", "wrong-identity"),
        ("ID in a DNS name", "wrong-identity"),
        ("host name only", "wrong-identity"),
        ("upper case", "wrong-identity"),
        ("other trust domain", "wrong-identity"),
        ("look-alike CA", "untrusted-certificate"),
        ("expired", "expired-certificate"),
        ("not yet valid", "not-yet-valid-certificate"),
        ("plaintext", "plaintext-server"),
        ("trusts another CA, TLS 1.2", "scraper-not-accepted"),
        ("trusts another CA", "connection-lost"),
        ("RSA 1024", "tls-failed"),
        *((f"RSA {bits}", "weak-key") for bits in SHORT),
        ("closed", "unreachable"),
        ("hangs up", "unreachable"),
    ],
)
def test_a_wrong_server_is_refused_with_its_reason(field: Field, kind: str, reason: str) -> None:
    """Not a byte of it comes back; the reason is in the body, in a header, and in the metrics by target."""
    target = f"{field.addresses[kind]}:15092"
    before = field.proxy.metric("meshscrape_scrape_refusals_total", reason=reason, target=target)
    answer = field.proxy.scrape(target)
    assert answer.status == 503
    assert answer.reason == reason
    assert answer.body.startswith(f"{reason}: ")
    assert "secret" not in answer.body
    eventually(
        lambda: field.proxy.metric("meshscrape_scrape_refusals_total", reason=reason, target=target) > before
    )


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("kind", ["P-384", "RSA 2048"])
def test_targets_with_other_keys_and_one_version_of_tls_are_scraped(
    field: Field, kind: str, version: str
) -> None:
    """Both versions of TLS are spoken with keys of each kind that a CA of the mesh certifies."""
    assert field.proxy.scrape(f"{field.addresses[f'{kind}, {version}']}:15092").status == 200


def test_a_wrong_identity_is_named(field: Field) -> None:
    """The body says who answered instead."""
    answer = field.proxy.scrape(f"{field.addresses['another workload']}:15092")
    assert OTHER in answer.body


def test_a_target_that_never_answers_the_handshake_is_given_up(field: Field) -> None:
    """Within twice the connect timeout, and called unreachable."""
    assert field.proxy.scrape(f"{field.addresses['silent']}:15092").reason == "unreachable"


def test_a_target_that_denies_the_scraper_is_passed_on_and_counted(field: Field) -> None:
    """Its 403 reaches Prometheus with its own words; the metrics call it denied-by-target."""
    target = f"{field.addresses['denying']}:15092"
    answer = field.proxy.scrape(target)
    assert (answer.status, answer.body) == (403, "403 not on the list\n")
    name = "meshscrape_scrape_refusals_total"
    eventually(lambda: field.proxy.metric(name, reason="denied-by-target", target=target))


def test_a_target_cannot_claim_to_be_refused(field: Field) -> None:
    """The header of refusals is Envoy's alone: a target's own is removed, and counted as nothing."""
    field.good.headers["x-meshscrape-refusal"] = "overloaded"
    answer = field.proxy.scrape(field.good.authority)
    field.good.headers.clear()
    assert (answer.status, answer.reason) == (200, "")
    field.proxy.scrape("127.0.0.1:1")
    name = "meshscrape_scrape_refusals_total"
    eventually(lambda: field.proxy.metric(name, reason="unknown-target"))
    assert not field.proxy.metric(name, reason="overloaded")


def test_a_redirect_is_passed_on_not_followed(field: Field) -> None:
    """Nobody sends the proxy, with its certificate, elsewhere."""
    field.good.status, field.good.headers["location"] = 302, f"http://{field.addresses['closed']}:15092/"
    answer = field.proxy.scrape(field.good.authority)
    field.good.status = 200
    field.good.headers.clear()
    assert (answer.status, answer.reason) == (302, "")


def test_idle_strangers_do_not_keep_the_scraper_out(field: Field) -> None:
    """A thousand connections of other local processes, silent or without the token, change nothing."""
    host, port = field.proxy.listen.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            stranger = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            if number % 2:
                stranger.sendall(b"GET http://10.0.0.1:1/ HTTP/1.1\r\nHost: 10.0.0.1:1\r\n\r\n")
        assert field.proxy.scrape(field.good.authority).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1:22", "169.254.169.254:80", "example.com:80", "localhost:15095"])
def test_an_address_that_discovery_did_not_give_is_refused(field: Field, host: str) -> None:
    """With the token, too: no connection is made, the proxy answers itself."""
    answer = field.proxy.scrape(host)
    assert (answer.status, answer.reason) == (404, "unknown-target")


def test_the_authority_of_the_request_line_counts_not_the_host_header(field: Field) -> None:
    """RFC 9112, 3.2.2: a known Host does not help an unknown absolute form, and the other way round."""
    token = {"Authorization": f"Bearer {field.proxy.token}"}
    good = field.good.authority
    refused = field.proxy.request("GET", f"http://127.0.0.1:22{STATS}", {"Host": good, **token})
    assert refused.reason == "unknown-target"
    passed = field.proxy.request("GET", f"http://{good}{STATS}", {"Host": "127.0.0.1:22", **token})
    assert passed.status == 200
    assert field.good.seen[-1].headers["host"] == good


@pytest.mark.parametrize(
    "spelling",
    ["{ip}.:15092", "{ip}:015092", "{ip}:15092.", "{ip}", "[::ffff:{ip}]:15092", "127.0.0.1:22@{ip}:15092x"],
)
def test_other_spellings_of_a_known_address_are_unknown(field: Field, spelling: str) -> None:
    """Only the exact text that discovery gave leads to a target."""
    answer = field.proxy.scrape(spelling.format(ip=field.good.address))
    assert answer.status in (400, 404)
    assert answer.reason in ("unknown-target", "bad-request")


@pytest.mark.parametrize(
    "target",
    [
        "HTTP://{authority}{path}",
        "{path}",
        "http://user:password@{authority}{path}",
        "http://{authority}/{path}",
        "http://{authority}/stats/./prometheus",
        "http://{authority}/stats/x/../prometheus",
        "http://{authority}/stats/%70rometheus",
    ],
)
def test_these_spellings_lead_to_the_same_target(field: Field, target: str) -> None:
    """They are accepted, and the target is asked for exactly the announced path."""
    authority = field.good.authority
    head = f"GET {target.format(authority=authority, path=STATS)} HTTP/1.1"
    lines = (head, f"Host: {authority}", f"Authorization: Bearer {field.proxy.token}", "", "")
    assert field.proxy.raw("\r\n".join(lines).encode()).status == 200
    assert field.good.seen[-1].path == STATS


def test_user_information_does_not_change_the_target(field: Field) -> None:
    """`known@unknown` is the unknown address, `unknown@known` the known one."""
    good = field.good.authority
    assert field.proxy.scrape(f"{good}@127.0.0.1:22").reason in ("unknown-target", "bad-request")
    before = len(field.good.seen)
    answer = field.proxy.scrape(f"127.0.0.1:22@{good}")
    assert answer.status != 200 or len(field.good.seen) == before + 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/config_dump", "unknown-path"),
        (f"{STATS}?x=1", "unknown-path"),
        (f"{STATS}/", "unknown-path"),
        (f"{STATS}/../../quitquitquit", "unknown-path"),
        ("/stats%2fprometheus", "bad-request"),
        ("/stats/prometheus%00", "bad-request"),
        ("/STATS/prometheus", "unknown-path"),
    ],
)
def test_only_the_exact_path_is_passed(field: Field, path: str, reason: str) -> None:
    """Nothing else of a known target can be read through the proxy."""
    before = len(field.good.seen)
    assert field.proxy.scrape(field.good.authority, path).reason == reason
    assert len(field.good.seen) == before


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_only_get_is_passed(field: Field, method: str) -> None:
    """Every other method is refused, with 405."""
    headers = {"Host": field.good.authority, "Authorization": f"Bearer {field.proxy.token}"}
    before = len(field.good.seen)
    answer = field.proxy.request(method, f"http://{field.good.authority}{STATS}", headers)
    assert (answer.status, answer.reason) == (405, "bad-method")
    assert len(field.good.seen) == before


@pytest.mark.parametrize(
    "head",
    [
        "CONNECT {good} HTTP/1.1\r\nHost: {good}\r\n{token}",
        "GET http://{good}/stats/prometheus HTTP/1.1\r\nHost: {good}\r\n{token}Upgrade: websocket\r\n"
        "Connection: upgrade\r\n",
        "GET https://{good}/stats/prometheus HTTP/1.1\r\nHost: {good}\r\n{token}",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n",
        "GET /stats/prometheus HTTP/1.1\r\nHost: {good}\r\nHost: 127.0.0.1:22\r\n{token}",
        "GET /stats/prometheus HTTP/1.1\r\n{token}",
        "GET http:///stats/prometheus HTTP/1.1\r\nHost: {good}\r\n{token}",
        "GET http://{good}/stats/prometheus HTTP/1.1\r\nHost: {good}\r\n{token}Content-Length: 5\r\n"
        "Transfer-Encoding: chunked\r\n",
    ],
    ids=["CONNECT", "upgrade", "https", "HTTP/2", "two hosts", "no host", "empty host", "smuggling"],
)
def test_tunnels_and_upgrades_are_refused(field: Field, head: str) -> None:
    """No tunnel, no upgrade, no HTTP/2, no ambiguous request; the target hears nothing of it."""
    token = f"Authorization: Bearer {field.proxy.token}\r\n"
    before = len(field.good.seen)
    answer = field.proxy.raw((head.format(good=field.good.authority, token=token) + "\r\n").encode())
    assert 400 <= answer.status < 500
    assert answer.reason and "shown" not in answer.body
    assert len(field.good.seen) == before


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer x", "bearer {token}", "Basic {token}", "Bearer  {token}",
     "Bearer {token},Bearer {token}", "Bearer {token}x", "{token}"],
)  # fmt: skip
def test_requests_without_the_exact_token_reveal_nothing(field: Field, header: str) -> None:
    """A known and an unknown address get the same answer, to the last byte."""
    text = header.format(token=field.proxy.token)
    answers = []
    for authority in (field.good.authority, "127.0.0.1:22"):
        headers = {"Host": authority, **({"Authorization": text} if text else {})}
        answers.append(field.proxy.request("GET", f"http://{authority}{STATS}", headers))
    known, unknown = answers
    assert known.status == unknown.status == 401
    assert known.body == unknown.body and known.reason == "bad-token"
    assert {**known.headers, "date": ""} == {**unknown.headers, "date": ""}


def test_token_that_is_sent_twice_is_refused(field: Field) -> None:
    """Two Authorization headers are one value that is not the token."""
    token = f"Authorization: Bearer {field.proxy.token}\r\n"
    good = field.good.authority
    head = f"GET http://{good}{STATS} HTTP/1.1\r\nHost: {good}\r\n{token}{token}\r\n"
    assert field.proxy.raw(head.encode()).status == 401


def test_discovery_and_metrics_need_the_token_too(field: Field) -> None:
    """401 for every path without it: also for paths that do not exist."""
    for path in (f"/targets/{JOB}", "/targets/none", "/metrics", "/healthz/ready", "/"):
        for token in ("", "x" * 43):
            assert field.proxy.own(path, token=token).status == 401


def test_discovery_announces_every_target_to_prometheus(field: Field) -> None:
    """JSON with the exact content type; plain http to the proxy, the path, and the identity as meta label."""
    answer = field.proxy.own(f"/targets/{JOB}")
    assert answer.headers["content-type"] == "application/json"
    groups = {each["targets"][0]: each["labels"] for each in field.proxy.http_sd()}
    assert groups.keys() == {f"{address}:15092" for address in field.addresses.values()}
    assert groups[field.good.authority] == {
        "__scheme__": "http",
        "__metrics_path__": STATS,
        "__meta_meshscrape_spiffe_id": HTTPBIN,
    }


def test_an_unknown_job_and_other_methods_are_refused(field: Field) -> None:
    """404 for a job that no source tells; only GET and HEAD."""
    assert field.proxy.own("/targets/none").status == 404
    assert field.proxy.own(f"/targets/{JOB}", method="POST").status == 405


def test_labels_come_only_from_discovery(field: Field) -> None:
    """Whatever is asked for, the targets in the metrics are those of discovery, or none."""
    for number in range(5):
        field.proxy.scrape(f"10.9.8.{number}:15092", f"/made-up-{number}")
    name = "meshscrape_scrape_refusals_total"
    eventually(lambda: field.proxy.metric(name, reason="unknown-target", target="") >= 5)
    text = field.proxy.own("/metrics").body
    assert "10.9.8." not in text and "made-up" not in text


def test_files_with_secrets_are_private(field: Field) -> None:
    """Token, routes and the pipe of the log: 0600 in a directory 0700."""
    assert field.proxy.state.stat().st_mode & 0o777 == 0o700
    for path in field.proxy.state.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert field.proxy.token not in Path(f"/proc/{field.proxy.process.pid}/cmdline").read_text()
