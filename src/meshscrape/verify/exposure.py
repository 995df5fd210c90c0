"""Recognise Prometheus metrics and Envoy's admin API in what an open port answers without TLS (pure).

Both are recognised by their content, not by their port or path. An application's ordinary answer (a page,
JSON, a line of text, an error) is neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime

from meshscrape.istio.names import MERGED_PATH
from meshscrape.verify.check import CheckVerdict, Visit
from meshscrape.verify.observations import Answered, ConnectionRefused, TimedOut, printable
from meshscrape.verify.ports import Port
from meshscrape.verify.scraped import exposition_lines

# Usual paths of metrics: of client libraries, Envoy, Spring, Quarkus and Micronaut; "/" of tiny servers.
METRICS_PATHS = (
    "/metrics", MERGED_PATH, "/actuator/prometheus", "/q/metrics", "/prometheus",
    "/metrics/prometheus", "/",
)  # fmt: skip
ADMIN_PATHS = ("/server_info", "/config_dump")

ASKED_PATHS = (*METRICS_PATHS, *ADMIN_PATHS)

_OUTSIDE = "a process beside the mesh listens on every address of this machine"
_TYPES = ("application/openmetrics-text", "application/vnd.google.protobuf")
_ADMIN_TYPE = re.compile(rb'"@type"\s*:\s*"type\.googleapis\.com/envoy\.admin\.v\d')
_SERVER_STATES = ("LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING")


def metrics_exposed(visits: Sequence[Visit], port: Port, now: datetime) -> CheckVerdict:
    """Fail a port that is not announced and serves Prometheus metrics; note one that was announced."""
    # An open admin API is one finding, not two, although it also serves metrics.
    if admin_at(visits):
        return CheckVerdict("passed", "Envoy's admin API: see exposed-admin")
    evidence = metrics_at(visits)
    if not evidence:
        return CheckVerdict("passed", nothing_at(visits))
    match port.exposure:
        case "hidden":
            return CheckVerdict("failed", f"a port that is not announced: {evidence}")
        case "announced":
            return CheckVerdict("noted", f"anyone can read an announced port: {evidence}")
        case "outside":
            return CheckVerdict("noted", f"{_OUTSIDE}: {evidence}")


def admin_exposed(visits: Sequence[Visit], port: Port, now: datetime) -> CheckVerdict:
    """Fail a port that serves Envoy's admin API."""
    evidence = admin_at(visits)
    if not evidence:
        return CheckVerdict("passed", nothing_at(visits))
    if port.exposure == "outside":
        return CheckVerdict("noted", f"{_OUTSIDE}: {evidence}")
    return CheckVerdict("failed", evidence)


def metrics_at(visits: Sequence[Visit]) -> str:
    """Return where Prometheus metrics were answered first, with a description; empty without any."""
    for visit in visits:
        if isinstance(visit.observation, Answered) and (words := _metrics(visit.observation)):
            return f"Prometheus metrics without TLS at {visit.case.probe.path} ({words})"
    return ""


def admin_at(visits: Sequence[Visit]) -> str:
    """Return where Envoy's admin API answered first; empty when it did not answer."""
    for visit in visits:
        answer = visit.observation
        if isinstance(answer, Answered) and answer.status == 200 and (words := _admin(answer.body)):
            return f"Envoy's admin API without TLS at {visit.case.probe.path} ({words})"
    return ""


def nothing_at(visits: Sequence[Visit]) -> str:
    """Describe the answers of a port that serves neither."""
    answers = [visit.observation for visit in visits]
    if all(isinstance(answer, ConnectionRefused) for answer in answers):
        return "nothing listens there any more"
    if statuses := sorted({answer.status for answer in answers if isinstance(answer, Answered)}):
        return f"answers HTTP {', '.join(map(str, statuses))}: no metrics, no admin API"
    if isinstance(answers[0], TimedOut):
        return "accepts connections and answers no HTTP request in time"
    return "does not answer HTTP without TLS"


def _metrics(answer: Answered) -> str:
    """Return the evidence that the answer is an exposition; empty without any."""
    media_type, _, parameters = (
        part.strip().lower() for part in answer.header("content-type").partition(";")
    )
    if answer.status != 200:
        return ""
    if media_type in _TYPES or (media_type == "text/plain" and "version=" in parameters):
        return f"Content-Type {printable(answer.header('content-type'))}"
    lines = exposition_lines(answer.body, whole=answer.end == "whole")
    if lines.samples and lines.types and not lines.malformed:
        return f"{lines.samples} samples, the first of {lines.first}"
    return ""


def _admin(body: bytes) -> str:
    if _ADMIN_TYPE.search(body):
        return "a configuration dump"
    # Only the beginning of a long answer is read; its first fields are enough.
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
