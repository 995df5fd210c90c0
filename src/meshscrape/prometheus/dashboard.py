"""A Grafana dashboard of secured scraping, as data for JSON.

The model is Grafana's dashboard JSON (schema version 39, Grafana 10.1 and later, which newer ones upgrade).
The data source is a variable, so the file imports anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from meshscrape.prometheus.rules import PLAINTEXT, SECURE

SCHEMA_VERSION = 39
WIDTH = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_CHOSEN = f'{SECURE},job=~"$job",namespace=~"$namespace"'
_GOOD, _WARN, _BAD = "green", "orange", "red"
_NO_STEPS: Mapping[float, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: `queries` by legend, `unit` as Grafana names it, `steps` are colours from a value on."""

    title: str
    kind: Literal["stat", "timeseries", "table"]
    queries: Mapping[str, str]
    description: str
    width: int
    height: int = 8
    unit: str = "none"
    base: str = _GOOD
    steps: Mapping[float, str] = field(default_factory=lambda: _NO_STEPS)

    def json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel as Grafana has it, at a place of the grid of 24 columns."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": dict(_SOURCE),
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": self._targets(),
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _OPTIONS[self.kind],
            **({"transformations": _TABLE} if self.kind == "table" else {}),
        }

    def _targets(self) -> list[dict[str, Any]]:
        instant = self.kind != "timeseries"
        return [
            {
                "refId": chr(ord("A") + index),
                "datasource": dict(_SOURCE),
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                "format": "table" if self.kind == "table" else "time_series",
            }
            for index, (legend, expression) in enumerate(self.queries.items())
        ]

    def _defaults(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"value": None, "color": self.base}]
        steps += [{"value": value, "color": color} for value, color in self.steps.items()]
        thresholds = {"mode": "absolute", "steps": steps}
        return {"unit": self.unit, "thresholds": thresholds, "color": {"mode": "thresholds"}} | (
            {"color": {"mode": "palette-classic"}} if self.kind == "timeseries" else {}
        )


_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}
_TABLE = [{"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True}}}]

_EXPIRY = 'istio_agent_cert_expiry_seconds{resource_name="default",namespace=~"$namespace"}'
_DENIED = (
    'envoy_http_rbac_denied{envoy_http_conn_manager_prefix=~"secure_.+",namespace=~"$namespace"} or '
    '{__name__=~"envoy_http_meshscrape_secure_.+_rbac",authz_enforce_result="denied",namespace=~"$namespace"}'
)
_MET = (
    '{__name__=~"meshscrape_(verify_certificate_not_after_seconds|scrape_target_certificate_expiration_timestamp_'
    'seconds)",namespace=~"$namespace"}'
)
_THERE = '{namespace=~"$namespace"}'
_DAY = 86400.0

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel(
                "Targets up", "stat", {"": f"sum(up{{{_CHOSEN}}})"},
                "Secure targets that the last scrape reached.", 4, 4,
            ),
            Panel(
                "Targets down", "stat", {"": f"count(up{{{_CHOSEN}}} == 0) or vector(0)"},
                "Secure targets that the last scrape did not reach.", 4, 4, steps={1: _BAD},
            ),
            Panel(
                "Scraped in plaintext", "stat",
                {"": f'count(up{{{PLAINTEXT},namespace=~"$namespace"}}) or vector(0)'},
                "Targets on ports 15020 and 15090 that this Prometheus still scrapes in the clear.", 4, 4,
                steps={1: _WARN},
            ),
            Panel(
                "Shortest certificate life", "stat", {"": f"min({_EXPIRY})"},
                "What is left of the workload certificate that ends first.", 4, 4, unit="s", base=_BAD,
                steps={3600: _WARN, 6 * 3600: _GOOD},
            ),
            Panel(
                "Refusals, last hour", "stat",
                {
                    "": 'sum(increase(meshscrape_scrape_refusals_total{namespace=~"$namespace"}[1h]))'
                    " or vector(0)"
                },
                "Scrapes that the scrape proxy refused: another identity, an expired certificate, plaintext.",
                4, 4, steps={1: _BAD},
            ),
            Panel(
                "Findings of verify", "stat",
                {"": 'sum(meshscrape_check_failed{namespace=~"$namespace"}) or vector(0)'},
                "Checks of `meshscrape verify --watch` that fail.", 4, 4, steps={1: _BAD},
            ),
        ),
    ),
    (
        "Scrapes",
        (
            Panel(
                "Targets up by job", "timeseries",
                {
                    "{{job}} up": f"sum by (job) (up{{{_CHOSEN}}})",
                    "{{job}} all": f"count by (job) (up{{{_CHOSEN}}})",
                },
                "The distance between the two lines of a job is what is down.", 12,
            ),
            Panel(
                "Scrape duration", "timeseries",
                {
                    "{{job}} p50": f"quantile by (job) (0.5, scrape_duration_seconds{{{_CHOSEN}}})",
                    "{{job}} p99": f"quantile by (job) (0.99, scrape_duration_seconds{{{_CHOSEN}}})",
                    "{{job}} max": f"max by (job) (scrape_duration_seconds{{{_CHOSEN}}})",
                },
                "From request to last byte, handshake included. Near the scrape timeout, targets fail.",
                12, unit="s",
            ),
            Panel(
                "Targets that are down", "table", {"": f"up{{{_CHOSEN}}} == 0"},
                "Prometheus' targets page has the error of each.", 12,
            ),
            Panel(
                "Samples per scrape, largest workloads", "timeseries",
                {
                    "{{namespace}}/{{workload}}":
                    f"topk(10, max by (namespace, workload) (scrape_samples_scraped{{{_CHOSEN}}}))"
                },
                "A workload that suddenly has far more or fewer samples has changed, or lost a source.", 12,
            ),
        ),
    ),
    (
        "Certificates",
        (
            Panel(
                "Certificate life left", "timeseries",
                {"{{namespace}}/{{workload}}": f"bottomk(10, min by (namespace, workload) ({_EXPIRY}))"},
                "The ten that end first. Healthy ones are saw teeth that turn at half of their life.", 12,
                unit="s",
            ),
            Panel(
                "Certificates in use, as verify and the scrape proxy met them", "table",
                {"": f"sort(min by (namespace, workload) ({_MET}) - time())"},
                "Seconds left of the certificates that were presented, roots included.", 12, unit="s",
                base=_BAD, steps={3600: _WARN, _DAY / 4: _GOOD},
            ),
        ),
    ),
    (
        "Refusals and plaintext",
        (
            Panel(
                "Refused by the scrape proxy", "timeseries",
                {
                    "{{reason}}": "sum by (reason) (rate(meshscrape_scrape_refusals_total"
                    '{namespace=~"$namespace"}[$__rate_interval]))'
                },
                "By reason; `meshscrape explain` tells the story of one target.", 8, unit="reqps",
            ),
            Panel(
                "Handshakes of the scrape proxy", "timeseries",
                {
                    "handshakes":
                    f"sum(rate(meshscrape_scrape_handshakes_total{_THERE}[$__rate_interval]))",
                    "on an open connection":
                    f"sum(rate(meshscrape_scrape_reused_connections_total{_THERE}[$__rate_interval]))",
                },
                "Most scrapes should go over connections that are open already.", 8, unit="reqps",
            ),
            Panel(
                "Scrapers refused by workloads", "timeseries",
                {"{{namespace}}/{{workload}}": f"sum by (namespace, workload) ({_DENIED})"},
                "Requests since the proxy's start by valid identities that are not on the allow list.", 8,
            ),
            Panel(
                "Scraped in plaintext by job", "timeseries",
                {"{{job}}": f'count by (job) (up{{{PLAINTEXT},namespace=~"$namespace"}})'},
                "Goes to zero as pods move to their secure ports; then these ports can be closed.", 8,
            ),
            Panel(
                "Plaintext ports that verify found", "table",
                {"": 'meshscrape_plaintext_exposed{namespace=~"$namespace"} > 0'},
                "Ports of pod addresses that serve metrics or the admin API without TLS.", 8,
            ),
            Panel(
                "Failed checks", "table", {"": 'meshscrape_check_failed{namespace=~"$namespace"} == 1'},
                "What `meshscrape verify` found; docs/verify.md explains each check.", 24,
            ),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    return {
        "uid": "meshscrape",
        "title": "Mesh scraping over mTLS",
        "description": "Made by meshscrape: who is scraped over mutual TLS, and what is not.",
        "tags": ["istio", "meshscrape", "mtls", "prometheus"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        _variable("job", "Job", f"label_values(up{{{SECURE}}}, job)"),
        _variable("namespace", "Namespace", f"label_values(up{{{SECURE}}}, namespace)"),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": dict(_SOURCE),
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Series without the label too.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y = _place(panels, y + 1, found)
    return found


def _place(panels: Sequence[Panel], y: int, found: list[dict[str, Any]]) -> int:
    """Lay panels out from left to right, line by line; the line after the last one."""
    x = height = 0
    for panel in panels:
        if x + panel.width > WIDTH:
            x, y, height = 0, y + height, 0
        found.append(panel.json(len(found) + 1, x, y))
        x, height = x + panel.width, max(height, panel.height)
    return y + height
