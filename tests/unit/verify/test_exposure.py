"""What an open port's answers show it to be: metrics, Envoy's admin API, or something harmless."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meshscrape.verify.check import PlannedCheck, judge, plan
from meshscrape.verify.exposure import ADMIN_PATHS, ASKED_PATHS, METRICS_PATHS
from meshscrape.verify.findings import CheckResult
from meshscrape.verify.mesh_status import MeshStatus, parse_mesh
from meshscrape.verify.observations import (
    Answered,
    Closed,
    ConnectionRefused,
    NotHttp,
    Observation,
    OpenPorts,
    TimedOut,
    TlsAlert,
)
from meshscrape.verify.ports import open_ports
from meshscrape.verify.probe import PLAIN
from meshscrape.verify.registry import PORT_CHECKS
from support.status import sidecar, status

METRICS_CHECK, ADMIN_CHECK = "exposed-metrics", "exposed-admin"

NOW = datetime(2030, 1, 1, tzinfo=UTC)
METRICS = b"# HELP a_total A.\n# TYPE a_total counter\na_total 1\n"
INFORMATION = b'{\n "version": "84813e2c/1.40.0/Clean/RELEASE/BoringSSL",\n "state": "LIVE",\n "hot_re'
DUMP = b'{\n "configs": [\n  {\n   "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",\n'
MISSING = Answered(404, (("content-type", "text/plain"),), b"not found\n")


def planned_for(mesh: MeshStatus, found: dict[str, OpenPorts]) -> list[PlannedCheck]:
    return list(plan(open_ports(mesh, found, ASKED_PATHS), PORT_CHECKS))


def answered(
    body: bytes, content_type: str = "text/plain", status: int = 200, whole: bool = True
) -> Answered:
    return Answered(status, (("content-type", content_type),), body, "whole" if whole else "limit")


def results(found: OpenPorts, answers: dict[str, Observation], **changes: object) -> list[CheckResult]:
    """The results at the sidecar's address when its open ports answer `answers` by path, else 404."""
    mesh = parse_mesh(status(sidecar(**changes)))
    planned = planned_for(mesh, {"127.9.1.1": found, "127.9.1.9": OpenPorts(how="looked")})
    return [
        judge(each, [answers.get(case.probe.path, MISSING) for case in each.cases], NOW)
        for each in planned
        if each.target.startswith("127.9.1.1")
    ]


def outcomes(answers: dict[str, Observation], ports: OpenPorts | None = None) -> dict[str, str]:
    return {each.check: each.outcome for each in results(ports or OpenPorts((9464,)), answers)}


@pytest.mark.parametrize("path", METRICS_PATHS)
def test_metrics_on_an_unannounced_port_are_one_finding(path: str) -> None:
    """Wherever they are by habit; the finding names port, path and what was seen, the admin check passes."""
    metrics, admin = results(OpenPorts((9464,)), {path: answered(METRICS)})
    assert (metrics.check, metrics.outcome, metrics.severity) == (METRICS_CHECK, "failed", "hole")
    assert metrics.target == "127.9.1.1:9464"
    assert f"at {path} (1 samples, the first of a_total)" in metrics.seen
    assert (admin.check, admin.outcome) == (ADMIN_CHECK, "passed")


@pytest.mark.parametrize(
    "seen",
    [
        answered(b"", "text/plain; version=0.0.4; charset=utf-8"),
        answered(b"\x0a\x05", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily"),
        answered(b"# EOF\n", "application/openmetrics-text; version=1.0.0"),
        answered(METRICS + b"cut_off{", whole=False),
        answered(METRICS, "text/html"),
    ],
    ids=["empty registry", "protobuf", "openmetrics", "long body", "wrong type"],
)
def test_metrics_are_known_by_type_or_by_lines(seen: Answered) -> None:
    """A type of an exposition is enough; without one the lines must all be an exposition's."""
    assert outcomes({"/metrics": seen})[METRICS_CHECK] == "failed"


@pytest.mark.parametrize(
    "seen",
    [
        answered(b"OK 200\n"),
        answered(b"<html># TYPE a counter\na 1\n</html>", "text/html"),
        answered(b"# TYPE a counter\nLook at a 1 and b 2, please.\na 1\n"),
        answered(b'{"metrics": 1}', "application/json"),
        answered(b""),
        answered(b"# a heading\n\ntext\n"),
        answered(METRICS, status=401),
        answered(METRICS, "text/plain; version=0.0.4", status=404),
        Answered(302, (("location", "/metrics"),)),
    ],
    ids=["status line", "page", "prose", "json", "empty", "markdown", "refused", "error", "redirect"],
)
def test_ordinary_answer_is_not_a_finding(seen: Answered) -> None:
    """What an application says by chance, and what it refuses, is nothing."""
    answers: dict[str, Observation] = dict.fromkeys((*METRICS_PATHS, *ADMIN_PATHS), seen)
    assert outcomes(answers) == {METRICS_CHECK: "passed", ADMIN_CHECK: "passed"}


@pytest.mark.parametrize(
    "answers",
    [
        {"/server_info": answered(INFORMATION, "application/json", whole=False)},
        {"/config_dump": answered(DUMP, "application/json", whole=False)},
        {"/server_info": answered(INFORMATION, whole=False), "/stats/prometheus": answered(METRICS)},
    ],
)
def test_an_admin_api_is_one_finding(answers: dict[str, Observation]) -> None:
    """The admin check alone fails, though the admin API serves metrics as well."""
    assert outcomes(answers) == {METRICS_CHECK: "passed", ADMIN_CHECK: "failed"}


@pytest.mark.parametrize(
    "body", [b'{"version": "1.2.3", "state": "LIVE"}', b'{"version": "abc", "state": "up"}', b'["version"]']
)
def test_application_with_its_own_server_info_is_not_an_admin_api(body: bytes) -> None:
    """The version must be spelled as Envoy spells it."""
    assert outcomes({"/server_info": answered(body, "application/json")})[ADMIN_CHECK] == "passed"


def test_metrics_on_an_announced_port_are_a_note() -> None:
    """The mesh says itself that this port is outside STRICT; an admin API there is a finding all the same."""
    ports = {
        "secure": {},
        "plaintext": {},
        "application": [{"name": "http", "port": 9080, "mtls": "PERMISSIVE", "metrics": "/own"}],
    }
    metrics, admin = results(OpenPorts((9080,)), {"/own": answered(METRICS)}, ports=ports)
    assert (metrics.outcome, admin.outcome) == ("noted", "passed")
    assert "announced port" in metrics.seen
    _, admin = results(OpenPorts((9080,)), {"/server_info": answered(INFORMATION)}, ports=ports)
    assert admin.outcome == "failed"


def test_ports_with_checks_of_their_own_are_left_to_them() -> None:
    """The proxy's ports and those under STRICT; then one result says that nothing else was open."""
    both = results(OpenPorts((9080, 15020, 15021, 15090, 15091, 15092), how="every listening port"), {})
    assert [(each.check, each.outcome, each.target) for each in both] == [
        (METRICS_CHECK, "passed", "127.9.1.1"),
        (ADMIN_CHECK, "passed", "127.9.1.1"),
    ]
    assert "6 open" in both[0].seen


def test_a_failed_search_is_unchecked() -> None:
    """Ports that could not be looked for are a finding: nothing passes silently."""
    assert [each.outcome for each in results(OpenPorts(unable="no /proc"), {})] == ["skipped", "skipped"]


def test_a_process_beside_the_mesh_is_noted_once() -> None:
    """It listens on every address: that says nothing about a workload, and is no finding."""
    mesh = parse_mesh(status(sidecar()))
    beside = OpenPorts((), (9100,), "every listening port")
    planned = [each for each in planned_for(mesh, {"127.9.1.1": beside, "127.9.1.9": beside}) if each.cases]
    assert [(each.check.name, each.workload) for each in planned] == [
        (METRICS_CHECK, ""),
        (ADMIN_CHECK, ""),
    ]
    seen = [answered(METRICS) for _ in planned[0].cases]
    assert judge(planned[0], seen, NOW).outcome == "noted"
    info = [answered(INFORMATION) for _ in planned[1].cases]
    assert judge(planned[1], info, NOW).outcome == "noted"


@pytest.mark.parametrize(
    "seen",
    [
        ConnectionRefused(),
        Closed(),
        TlsAlert("certificate required"),
        NotHttp(b"SSH-2.0"),
        TimedOut("answer"),
    ],
)
def test_port_without_http_is_not_a_finding(seen: Observation) -> None:
    """Gone, closing, TLS, other protocols, or silent: no scraper would get anything either."""
    answers = dict.fromkeys((*METRICS_PATHS, *ADMIN_PATHS), seen)
    assert set(outcomes(answers).values()) == {"passed"}


def test_every_probe_is_plain_and_harmless() -> None:
    """GET without TLS and without a body; declared paths of the application are asked as well."""
    mesh = parse_mesh(status(sidecar()))
    cases = [c for p in planned_for(mesh, {"127.9.1.1": OpenPorts((7,))}) for c in p.cases]
    assert {(c.probe.identity, c.probe.method) for c in cases} == {(PLAIN, "GET")}
    assert {"/metrics", "/stats/prometheus", "/server_info"} <= {c.probe.path for c in cases}
