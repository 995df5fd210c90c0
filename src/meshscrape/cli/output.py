"""Render the status document as tables and lines for the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

WHY_HTTP = (
    "targets read http:// in Prometheus: it asks the scrape proxy on this machine, which speaks mutual TLS "
    "with each target and checks its SPIFFE ID"
)
# The maximum length of a table's cell.
_WIDE = 1000
_STYLES = {"up": "green", "ready": "green", "down": "red", "failed": "red"}


def say(line: str) -> None:
    """Write a line of progress to stderr; ignore a closed stderr."""
    with contextlib.suppress(OSError):
        print(f"meshscrape: {line}", file=sys.stderr, flush=True)


def coloured(stream: TextIO) -> bool:
    """Return whether to write colours: to a terminal, without --no-color and NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(*, wide: bool = False) -> Console:
    """Return standard output for rich; without a terminal it is wide enough not to cut lines.

    `wide`: rows are as long as their cells, whatever the terminal's width.
    """
    width = _WIDE if wide else None if sys.stdout.isatty() else 200
    system: Literal["auto"] | None = "auto" if coloured(sys.stdout) else None
    return Console(width=width, color_system=system, highlight=False)


def print_document(document: Any, form: str) -> None:
    """Print a document as `json` or `yaml` on standard output."""
    if form == "json":
        print(json.dumps(document, indent=2), flush=True)
        return
    from meshscrape.kube.yaml_text import dump

    # Convert tuples and other mappings to the types of JSON first.
    print(dump(json.loads(json.dumps(document))), end="", flush=True)


def mesh_view(document: Mapping[str, Any], now: datetime) -> Group:
    """Return the view of `up` and `status`: one row per workload, then the mesh's addresses and paths."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("WORKLOAD, SPIFFE ID", overflow="fold")
    for name in ("PORTS", "LAST SCRAPE", "HEALTH", "CERTIFICATE"):
        table.add_column(name, no_wrap=True)
    for workload in document["workloads"]:
        title, identity, *cells = _row(workload, now)
        table.add_row(Text.assemble((str(title), "bold"), "\n", (str(identity), "dim")), *cells)
    parts: list[Any] = [table, Text(), *_facts(document)]
    for workload in document["workloads"]:
        if workload["message"]:
            parts.append(Text(f"{_title(workload)}: {workload['message']}", style="yellow"))
    if document["message"]:
        parts.append(Text(document["message"], style="red"))
    return Group(*parts)


def workload_line(workload: Mapping[str, Any], now: datetime) -> str:
    """Return one workload as a line for logs."""
    cells = [cell.plain if isinstance(cell, Text) else cell for cell in _row(workload, now)]
    return "  ".join(cell.replace("\n", " ") for cell in cells if cell)


def remaining(not_after: str, now: datetime) -> str:
    """Return the time until an RFC 3339 moment: `23h 59m`, `4m 10s`, `expired`."""
    end = datetime.strptime(not_after, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    seconds = int((end - now).total_seconds())
    if seconds <= 0:
        return "expired"
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // smaller}{small_unit}"
    return f"{seconds}s"


def health_of(workload: Mapping[str, Any]) -> str:
    """Return `up 3/3`, `down 1/3`, or the reason why the workload is not scraped."""
    targets = workload["targets"]
    if not workload["ready"]:
        return "not ready"
    if not targets:
        return "ready"
    up = sum(1 for target in targets if target["health"] == "up")
    if any(target["health"] == "down" for target in targets):
        return f"down {len(targets) - up}/{len(targets)}"
    return f"up {up}/{len(targets)}" if up == len(targets) else f"waiting {up}/{len(targets)}"


def _row(workload: Mapping[str, Any], now: datetime) -> list[Text | str]:
    health = health_of(workload)
    certificate = workload["certificate"]
    return [
        _title(workload),
        workload["spiffeId"],
        _ports(workload),
        _last_scrape(workload, now),
        Text(health, style=_STYLES.get(health.split()[0], "yellow")),
        remaining(certificate["notAfter"], now) if certificate else "none yet",
    ]


def _title(workload: Mapping[str, Any]) -> str:
    return f"{workload['namespace']}/{workload['name']}"


def _ports(workload: Mapping[str, Any]) -> str:
    ports = workload["ports"]
    secure = ",".join(str(port) for port in ports["secure"].values())
    application = ",".join(f"{each['port']} {each['mtls'].lower()}" for each in ports["application"])
    lines = [workload["address"]]
    if secure:
        lines.append(f"mTLS {secure}")
    if ports["plaintext"] and not workload["hardened"]:
        lines.append(f"plain {ports['plaintext']['envoy']},{ports['plaintext']['merged']}")
    if application:
        lines.append(f"app {application}")
    return "\n".join(lines)


def _last_scrape(workload: Mapping[str, Any], now: datetime) -> str:
    last = max((target["lastScrape"] or "" for target in workload["targets"]), default="")
    if not last:
        return ""
    try:
        moment = datetime.fromisoformat(last[:19] + "+00:00") if last.endswith("Z") else _with_offset(last)
    except ValueError:
        return last
    return f"{max(0.0, (now - moment).total_seconds()):.0f}s ago"


def _with_offset(text: str) -> datetime:
    # Go writes nanoseconds; Python reads at most microseconds.
    head, dot, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if dot else ""
    return datetime.fromisoformat(head + zone if dot else text)


def _facts(document: Mapping[str, Any]) -> list[Text]:
    facts = [("state", document["stateDirectory"]), ("CA", document["ca"]["address"])]
    if document["prometheus"]:
        facts.insert(0, ("Prometheus", document["prometheus"]["url"]))
    if document["scrapeProxy"]:
        facts.insert(1, ("through", f"scrape proxy {document['scrapeProxy']['address']}; {WHY_HTTP}"))
    elif document["prometheus"]:
        facts.insert(1, ("directly", "Prometheus does not verify its targets (--direct)"))
    return [Text.assemble((f"{name:<11}", "bold"), value) for name, value in facts]
