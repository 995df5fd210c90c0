"""A check that never fails is worthless: every hole, opened in a running Envoy, is found, and only it.

Each workload of the mesh here has one hole of its own; one verification visits them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from meshscrape.envoy.options import SidecarOptions
from meshscrape.envoy.resources.listeners import HANDSHAKE_TIMEOUT
from meshscrape.istio.settings import InboundPort
from meshscrape.verify.findings import CheckResult, Report
from meshscrape.verify.probes import Timeouts
from meshscrape.verify.run import VerifyOptions, verify
from support.addresses import free_port
from support.ca import TestCa, ca_process
from support.subject import (
    APPLICATION,
    MERGED,
    Bootstrap,
    Identities,
    Inside,
    Spoiled,
    mesh_status,
    subject,
)

STATS, MERGED_PORT = 15091, 15092
# Another CA that the scraper's neighbours might trust by mistake.
ELSEWHERE = TestCa()
# So many Envoys run at a time; each takes several of the 128 inotify instances that a user has by default.
BATCH = 5


@dataclass(frozen=True, slots=True)
class Hole:
    """A way to be wrong, and the findings it must cause: check and port."""

    spoiled: Spoiled
    findings: frozenset[tuple[str, int]]


def listener(config: Bootstrap, port: int) -> dict[str, Any]:
    """The listener of a port."""
    return next(
        each for each in config["static_resources"]["listeners"]
        if each["address"]["socket_address"]["port_value"] == port
    )  # fmt: skip


def tls_context(config: Bootstrap, port: int = STATS) -> dict[str, Any]:
    """The DownstreamTlsContext of a port's only chain."""
    context: dict[str, Any] = listener(config, port)["filter_chains"][0]["transport_socket"]["typed_config"]
    return context


def manager(config: Bootstrap, port: int = STATS) -> dict[str, Any]:
    """The HttpConnectionManager of a port's only chain."""
    found: dict[str, Any] = listener(config, port)["filter_chains"][0]["filters"][-1]["typed_config"]
    return found


def routes(config: Bootstrap, port: int = STATS) -> list[dict[str, Any]]:
    """The routes of a port; the first one is the metrics'."""
    found: list[dict[str, Any]] = manager(config, port)["route_config"]["virtual_hosts"][0]["routes"]
    return found


def any_key(chain: dict[str, Any]) -> None:
    """Take away the filters that judge the client's key, which also refuse one without a certificate."""
    del chain["filters"][:-1]


def no_client_certificate(config: Bootstrap) -> None:
    tls_context(config)["require_client_certificate"] = False
    any_key(listener(config, STATS)["filter_chains"][0])


def allow_expired(config: Bootstrap) -> None:
    common = tls_context(config)["common_tls_context"]
    common["combined_validation_context"] = {
        "default_validation_context": {"allow_expired_certificate": True},
        "validation_context_sds_secret_config": common.pop("validation_context_sds_secret_config"),
    }


def old_tls(config: Bootstrap) -> None:
    tls_context(config)["common_tls_context"]["tls_params"] = {
        "tls_minimum_protocol_version": "TLSv1_0",
        "cipher_suites": ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA"],
    }


def resume_by_ticket(config: Bootstrap) -> None:
    tls_context(config)["disable_stateless_session_resumption"] = False


def resume_by_session_id(config: Bootstrap) -> None:
    """Only TLS 1.2 has it."""
    tls_context(config)["disable_stateful_session_resumption"] = False


def no_authorization(config: Bootstrap) -> None:
    filters = manager(config)["http_filters"]
    filters[:] = [each for each in filters if "config_discovery" not in each]


def prefix_route(config: Bootstrap) -> None:
    match = routes(config)[0]["match"]
    del match["path"]
    match["prefix"] = "/"
    match["headers"] = [each for each in match["headers"] if each["name"] == ":method"]


def default_path_handling(config: Bootstrap) -> None:
    """A prefix route and Envoy's own defaults, as a configuration written by hand has them."""
    match = routes(config)[0]["match"]
    del match["path"]
    match["prefix"] = "/stats/prometheus"
    match["headers"] = [each for each in match["headers"] if each["name"] == ":method"]
    for name in ("normalize_path", "merge_slashes", "path_with_escaped_slashes_action"):
        del manager(config)[name]


def every_method(config: Bootstrap) -> None:
    match = routes(config)[0]["match"]
    match["headers"] = [each for each in match["headers"] if each["name"] != ":method"]


def no_tls(config: Bootstrap) -> None:
    del listener(config, STATS)["filter_chains"][0]["transport_socket"]
    any_key(listener(config, STATS)["filter_chains"][0])


def application_without_certificate(config: Bootstrap) -> None:
    tls_context(config, APPLICATION)["require_client_certificate"] = False
    any_key(listener(config, APPLICATION)["filter_chains"][0])


def no_deadline(config: Bootstrap) -> None:
    listener(config, STATS)["filter_chains"][0]["transport_socket_connect_timeout"] = "0s"


def application_resumption(config: Bootstrap) -> None:
    tls_context(config, APPLICATION)["disable_stateless_session_resumption"] = False


def no_inspection_deadline(config: Bootstrap) -> None:
    listener(config, APPLICATION)["listener_filters_timeout"] = "0s"


def plaintext_prefix_route(config: Bootstrap) -> None:
    match = routes(config, 15090)[0]["match"]
    del match["path"]
    match["prefix"] = "/"
    match["headers"] = [each for each in match["headers"] if each["name"] == ":method"]


def tls_or_not(config: Bootstrap) -> None:
    """Plaintext beside TLS on one port, as PERMISSIVE does."""
    secure = listener(config, STATS)
    plain = copy.deepcopy(secure["filter_chains"][0])
    del plain["transport_socket"]
    any_key(plain)
    plain["filter_chain_match"] = {"transport_protocol": "raw_buffer"}
    secure["filter_chains"][0]["filter_chain_match"] = {"transport_protocol": "tls"}
    secure["filter_chains"].append(plain)
    inspector = {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    }
    secure["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}]
    secure["listener_filters_timeout"] = f"{HANDSHAKE_TIMEOUT:g}s"


def admin_on_tcp(config: Bootstrap) -> None:
    """A listener on the pod address that hands everything to the admin API."""
    opened = copy.deepcopy(listener(config, 15090))
    opened["name"] = "opened"
    opened.pop("additional_addresses", None)
    opened["address"]["socket_address"]["port_value"] = 15000
    opened["address"]["socket_address"]["address"] = listener(config, STATS)["address"]["socket_address"][
        "address"
    ]
    route = opened["filter_chains"][0]["filters"][-1]["typed_config"]["route_config"]["virtual_hosts"][0][
        "routes"
    ][0]
    route["match"] = {"prefix": "/"}
    config["static_resources"]["listeners"].append(opened)


def statistics_on_the_pod(config: Bootstrap) -> None:
    pod = listener(config, STATS)["address"]["socket_address"]["address"]
    listener(config, 15090)["address"]["socket_address"]["address"] = pod


def hardened(options: SidecarOptions) -> SidecarOptions:
    return replace(options, localhost_only=True)


def dual_stack(options: SidecarOptions) -> SidecarOptions:
    """On IPv6 there is one loopback address only, so the ports are drawn."""
    drawn = [free_port("::1") for _ in range(5)]
    return replace(
        options,
        pod_addresses=(options.pod_addresses[0], "::1"),
        stats_port=drawn[0],
        merged_port=drawn[1],
        health_port=drawn[2],
        secure_stats_port=drawn[3],
        secure_merged_port=drawn[4],
    )


def application(mode: str) -> Callable[[SidecarOptions], SidecarOptions]:
    """An application port in this mode."""
    return lambda options: replace(options, inbound=(InboundPort(APPLICATION, mode, "http"),))  # type: ignore[arg-type]


def hole(*findings: tuple[str, int], **spoiled: Any) -> Hole:
    return Hole(Spoiled(**spoiled), frozenset(findings))


HOLES: dict[str, Hole] = {
    "clean": hole(),
    "clean-hardened": hole(promised=hardened),
    "clean-dual-stack": hole(promised=dual_stack),
    "clean-strict": hole(promised=application("STRICT")),
    "clean-permissive": hole(promised=application("PERMISSIVE")),
    "client-certificate-optional": hole(("no-certificate", STATS), edit=no_client_certificate),
    "another-ca-trusted": hole(
        ("other-ca", STATS), ("other-ca", MERGED_PORT), scraper_roots=ELSEWHERE.root_pem
    ),
    "expired-accepted": hole(("expired-certificate", STATS), edit=allow_expired),
    "old-tls": hole(("legacy-tls", STATS), edit=old_tls),
    "resumption-by-ticket": hole(("session-resumption", STATS), edit=resume_by_ticket),
    "resumption-by-session-id": hole(("session-resumption", STATS), edit=resume_by_session_id),
    "no-authorization": hole(("unlisted-workload", STATS), edit=no_authorization),
    "whole-trust-domain": hole(
        ("unlisted-workload", STATS), ("unlisted-workload", MERGED_PORT),
        scrapers="spiffe:spiffe://cluster.local/*",
    ),
    "nobody-allowed": hole(("scraper-admitted", STATS), ("scraper-admitted", MERGED_PORT), scrapers=""),
    "prefix-route": hole(("paths", STATS), edit=prefix_route),
    "default-path-handling": hole(("paths", STATS), edit=default_path_handling),
    "every-method": hole(("methods", STATS), edit=every_method),
    "no-tls": hole(
        ("plain-http", STATS), ("scraper-admitted", STATS), ("silent-connection", STATS), edit=no_tls
    ),
    "no-deadline": hole(("silent-connection", STATS), edit=no_deadline),
    "tls-or-not": hole(("plain-http", STATS), edit=tls_or_not),
    "admin-on-tcp": hole(("admin-closed", 15000), edit=admin_on_tcp),
    "hardened-but-open": hole(("plaintext-closed", 15090), promised=hardened, edit=statistics_on_the_pod),
    "another-identity": hole(
        ("server-certificate", STATS), ("server-certificate", MERGED_PORT),
        server=lambda identities: identities.read("default", "other"),
    ),
    "another-ca-serves": hole(
        ("server-certificate", STATS), ("server-certificate", MERGED_PORT),
        server=lambda identities: ELSEWHERE.workload("default", "another-ca-serves"),
    ),
    "expired-server": hole(
        ("server-certificate", STATS), ("server-certificate", MERGED_PORT),
        server=lambda identities: identities.ca.issue("default", "expired-server", timedelta(seconds=1)),
    ),
    "invalid-exposition": hole(("exposition", MERGED_PORT), inside=Inside(body=MERGED + b"broken{\n")),
    "wrong-content-type": hole(("content-type", MERGED_PORT), inside=Inside(content_type="text/html")),
    "no-statistics": hole(
        ("families", MERGED_PORT), inside=Inside(body=MERGED.replace(b"envoy_server_live", b"other"))
    ),
    "application-down": hole(
        ("sources", MERGED_PORT), inside=Inside(body=MERGED.replace(b'9080"} 1', b'9080"} 0'))
    ),
    "agent-fails": hole(("scraper-admitted", MERGED_PORT), inside=Inside(status=500)),
    "plaintext-prefix-route": hole(("paths", 15090), edit=plaintext_prefix_route),
    "application-anonymous": hole(
        ("no-certificate", APPLICATION), promised=application("STRICT"),
        edit=application_without_certificate,
    ),
    "application-resumption": hole(
        ("session-resumption", APPLICATION), promised=application("PERMISSIVE"), edit=application_resumption
    ),
    "application-no-deadline": hole(
        ("silent-connection", APPLICATION), promised=application("PERMISSIVE"), edit=no_inspection_deadline
    ),
    "application-missing": hole(
        ("application-metrics", APPLICATION), promised=application("STRICT"),
        real=lambda options: replace(options, inbound=()),
    ),
    "strict-in-name": hole(
        ("plain-http", APPLICATION), promised=application("STRICT"), real=application("PERMISSIVE")
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Report]]:
    """The report that tells about each hole; computed batch by batch, when first asked for."""
    directory = tmp_path_factory.mktemp("holes")
    with ca_process(directory / "ca") as ca:
        (directory / "identities").mkdir()
        yield _Reports(directory, Identities(ca, directory / "identities"))


class _Reports(dict[str, Report]):
    def __init__(self, directory: Path, identities: Identities) -> None:
        super().__init__()
        self._directory = directory
        self._identities = identities

    def __missing__(self, name: str) -> Report:
        names = list(HOLES)
        first = names.index(name) // BATCH * BATCH
        batch = names[first : first + BATCH]
        with contextlib.ExitStack() as stack:
            entries = [
                stack.enter_context(
                    subject(self._directory / each, self._identities, each, HOLES[each].spoiled)
                )
                for each in batch
            ]
            status = mesh_status(self._identities, entries)
            # Twice the listeners' own deadline: a port without one is not waited for as long as shipped.
            timeouts = Timeouts(silence=2 * HANDSHAKE_TIMEOUT)
            options = VerifyOptions(
                timeouts=timeouts, short_life=timedelta(seconds=2), stranger=ELSEWHERE.signer
            )
            report = asyncio.run(verify(status, options))
        self.update(dict.fromkeys(batch, report))
        return report


def of_another_test(result: CheckResult) -> bool:
    """Return whether a result is of a port that a test at the same time opened: all share the one ::1."""
    return result.target.startswith("[::1]") and "not announced" in result.seen


@pytest.mark.parametrize("name", HOLES)
def test_verify_finds_exactly_the_hole(found: dict[str, Report], name: str) -> None:
    """Verification of a workload reports what is wrong with it, and nothing else."""
    report = found[name]
    seen = {
        (each.check, int(each.target.rpartition(":")[2])): each.seen
        for each in report.findings
        if each.workload == f"default/{name}" and not of_another_test(each)
    }
    assert set(seen) == HOLES[name].findings, seen


@pytest.mark.parametrize("name", [name for name in HOLES if name.startswith("clean")])
def test_clean_workload_passes_checks(found: dict[str, Report], name: str) -> None:
    """Both secure ports of every address have passed every check; nothing was blocked or left out."""
    results = [
        each
        for each in found[name].checks
        if each.workload == f"default/{name}" and not of_another_test(each)
    ]
    assert {each.outcome for each in results} <= {"passed", "noted"}
    secure = {each.target for each in results if each.check == "scraper-admitted"}
    assert len(secure) == (4 if name == "clean-dual-stack" else 2)
    for target in secure:
        assert {each.check for each in results if each.target == target} >= {
            *("content-type", "exposition", "families", "server-certificate", "plain-http", "no-certificate"),
            *("other-ca", "expired-certificate", "session-resumption", "unlisted-workload", "legacy-tls"),
            *("silent-connection", "paths", "methods"),
        }
