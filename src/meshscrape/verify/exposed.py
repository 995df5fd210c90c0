"""What an open port of a pod address gives to everybody without TLS, told from its answers (pure).

Prometheus metrics and Envoy's admin API are recognised by what they are, not by where they are. An
application's ordinary answer (a page, JSON, a line of text, an error) is neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from meshscrape.istio.names import MERGED_PATH
from meshscrape.verify.matrix import (
    ADMIN_PORT,
    PLAIN,
    Case,
    Expectation,
    Exposure,
    PlannedCheck,
    Probe,
    host_port,
)
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.observations import Answered, Observation, OpenPorts, Refused, TimedOut, printable
from meshscrape.verify.scraped import exposition_lines

METRICS_CHECK, ADMIN_CHECK = "exposed-metrics", "exposed-admin"

# Where metrics are by habit: client libraries, Envoy, Spring, Quarkus, Micronaut, and what answers anywhere.
METRICS_PATHS = (
    "/metrics", MERGED_PATH, "/actuator/prometheus", "/q/metrics", "/prometheus",
    "/metrics/prometheus", "/",
)  # fmt: skip
ADMIN_PATHS = ("/server_info", "/config_dump")

_TYPES = ("application/openmetrics-text", "application/vnd.google.protobuf")
_ADMIN_TYPE = re.compile(rb'"@type"\s*:\s*"type\.googleapis\.com/envoy\.admin\.v\d')
_SERVER_STATES = ("LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING")


def plan_exposed(mesh: MeshStatus, ports: Mapping[str, OpenPorts]) -> Iterator[PlannedCheck]:
    """The checks of every open port that has none of its own; `ports` by pod address."""
    outside: dict[int, str] = {}
    for workload in mesh.workloads:
        for address in workload.addresses:
            found = ports.get(address, OpenPorts(unable="the address was not looked at"))
            yield from _address(workload, address, found)
            for port in found.outside:
                outside.setdefault(port, address)
    for port, address in outside.items():
        yield from _port("", address, port, METRICS_PATHS, "outside")


def _address(workload: MeshWorkload, address: str, found: OpenPorts) -> Iterator[PlannedCheck]:
    if found.unable:
        for check in (METRICS_CHECK, ADMIN_CHECK):
            yield PlannedCheck(check, workload.title, address, (), Expectation(unable=found.unable))
        return
    announced = {each.port: each for each in workload.application}
    declared = [each.metrics for each in workload.application if each.metrics]
    checked = _checked_elsewhere(workload)
    remaining = [port for port in found.own if port not in checked]
    for port in remaining:
        exposure: Exposure = "announced" if port in announced else "hidden"
        paths = tuple(dict.fromkeys((*declared, *METRICS_PATHS)))
        yield from _port(workload.title, address, port, paths, exposure)
    if not remaining:
        looked = f"{found.how}: {len(found.own)} open, each with checks of its own"
        for check in (METRICS_CHECK, ADMIN_CHECK):
            yield PlannedCheck(check, workload.title, address, (), Expectation(looked=looked))


def _port(
    workload: str, address: str, port: int, paths: Sequence[str], exposure: Exposure
) -> Iterator[PlannedCheck]:
    asked = (*paths, *ADMIN_PATHS)
    cases = tuple(Case(Probe(address, port, PLAIN, path=path), f"GET {path}") for path in asked)
    expectation = Expectation(exposure=exposure, paths=asked)
    for check in (METRICS_CHECK, ADMIN_CHECK):
        yield PlannedCheck(check, workload, host_port(address, port), cases, expectation)


def _checked_elsewhere(workload: MeshWorkload) -> set[int]:
    """Ports whose plaintext has checks of its own: the proxy's, and those under STRICT."""
    own = {workload.secure_stats, workload.secure_merged, workload.stats, workload.merged, workload.health}
    own.add(ADMIN_PORT if workload.kind != "credentials" else None)
    strict = {each.port for each in workload.application if each.mtls == "STRICT"}
    return {port for port in own if port} | (strict if workload.kind == "sidecar" else set())


def metrics_at(asked: Sequence[tuple[str, Observation]]) -> str:
    """The first request that was answered with Prometheus metrics, and how they look; empty for none."""
    for path, seen in asked:
        if isinstance(seen, Answered) and (words := _metrics(seen)):
            return f"Prometheus metrics without TLS at {path} ({words})"
    return ""


def admin_at(asked: Sequence[tuple[str, Observation]]) -> str:
    """The first request that Envoy's admin API answered; empty for none."""
    for path, seen in asked:
        if isinstance(seen, Answered) and seen.status == 200 and (words := _admin(seen.body)):
            return f"Envoy's admin API without TLS at {path} ({words})"
    return ""


def nothing_at(asked: Sequence[tuple[str, Observation]]) -> str:
    """What a port said that serves neither."""
    answers = [seen for _, seen in asked]
    if all(isinstance(seen, Refused) for seen in answers):
        return "nothing listens there any more"
    if statuses := sorted({seen.status for seen in answers if isinstance(seen, Answered)}):
        return f"answers HTTP {', '.join(map(str, statuses))}: no metrics, no admin API"
    if isinstance(answers[0], TimedOut):
        return "accepts connections and answers no HTTP request in time"
    return "does not answer HTTP without TLS"


def _metrics(seen: Answered) -> str:
    """How the answer shows itself to be an exposition; empty when it does not."""
    media_type, _, parameters = (part.strip().lower() for part in seen.header("content-type").partition(";"))
    if seen.status != 200:
        return ""
    if media_type in _TYPES or (media_type == "text/plain" and "version=" in parameters):
        return f"Content-Type {printable(seen.header('content-type'))}"
    lines = exposition_lines(seen.body, whole=seen.end == "whole")
    if lines.samples and lines.types and not lines.malformed:
        return f"{lines.samples} samples, the first of {lines.first}"
    return ""


def _admin(body: bytes) -> str:
    if _ADMIN_TYPE.search(body):
        return "a configuration dump"
    # The whole answer is longer than what is read of it; its first fields are enough.
    head = body.decode("utf-8", "replace")
    version = re.search(r'"version"\s*:\s*"([0-9a-f]{7,40}/[^"\\]{1,80})"', head)
    state = re.search(r'"state"\s*:\s*"([A-Z_]{1,20})"', head)
    if version and state and state[1] in _SERVER_STATES and head.lstrip().startswith("{"):
        return f"Envoy {printable(version[1])}"
    try:
        document = json.loads(head)
    except ValueError:
        return ""
    known = isinstance(document, dict) and {"command_line_options", "uptime_all_epochs"} <= document.keys()
    return "server information" if known else ""
