"""Recording rules for values that several panels of the dashboard would otherwise compute from all targets.

Names follow Prometheus's convention level:metric:operations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from meshscrape.prometheus.selectors import PLAINTEXT, SECURE, SECURE_PORTS

GROUP = "meshscrape-recorded"
_NAMESPACE = 'namespace=~"$namespace"'
_FILTERS = f'job=~"$job",{_NAMESPACE}'


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule: the series `name`, whose value is `expression`."""

    name: str
    expression: str

    def rule(self) -> dict[str, Any]:
        """Return the rule as Prometheus writes it."""
        return {"record": self.name, "expr": self.expression}


_UP = f"up{{{SECURE}}} or up{{{SECURE_PORTS}}}"
TARGETS_UP = Recording("namespace_job:meshscrape_secure_up:sum", f"sum by (namespace, job) ({_UP})")
TARGETS = Recording("namespace_job:meshscrape_secure_up:count", f"count by (namespace, job) ({_UP})")
PLAINTEXT_TARGETS = Recording(
    "namespace_job:meshscrape_plaintext_up:count", f"count by (namespace, job) (up{{{PLAINTEXT}}})"
)
CERTIFICATE_LEFT = Recording(
    "namespace_workload:istio_agent_cert_expiry_seconds:min",
    'min by (namespace, workload) (istio_agent_cert_expiry_seconds{resource_name="default"})',
)
RECORDINGS = (TARGETS_UP, TARGETS, PLAINTEXT_TARGETS, CERTIFICATE_LEFT)

# The dashboard's queries without the rules, and the same queries of the recorded series.
_SELECTED = f"(up{{{SECURE},{_FILTERS}}} or up{{{SECURE_PORTS},{_FILTERS}}})"
_PLAIN = f"up{{{PLAINTEXT},{_NAMESPACE}}}"
_LEFT = f'istio_agent_cert_expiry_seconds{{resource_name="default",{_NAMESPACE}}}'
_RECORDED_LEFT = f"{CERTIFICATE_LEFT.name}{{{_NAMESPACE}}}"
QUERIES: Mapping[str, str] = MappingProxyType(
    {
        f"sum({_SELECTED})": f"sum({TARGETS_UP.name}{{{_FILTERS}}})",
        f"count({_SELECTED} == 0) or vector(0)": (
            f"sum({TARGETS.name}{{{_FILTERS}}} - {TARGETS_UP.name}{{{_FILTERS}}}) or vector(0)"
        ),
        f"sum by (job) ({_SELECTED})": f"sum by (job) ({TARGETS_UP.name}{{{_FILTERS}}})",
        f"count by (job) ({_SELECTED})": f"sum by (job) ({TARGETS.name}{{{_FILTERS}}})",
        f"count({_PLAIN}) or vector(0)": f"sum({PLAINTEXT_TARGETS.name}{{{_NAMESPACE}}}) or vector(0)",
        f"count by (job) ({_PLAIN})": f"sum by (job) ({PLAINTEXT_TARGETS.name}{{{_NAMESPACE}}})",
        f"min({_LEFT})": f"min({_RECORDED_LEFT})",
        f"bottomk(10, min by (namespace, workload) ({_LEFT}))": (
            f"bottomk(10, min by (namespace, workload) ({_RECORDED_LEFT}))"
        ),
    }
)


def recorded_dashboard(text: str) -> str:
    """Return the dashboard (JSON text) with the queries of `QUERIES` replaced by recorded series."""
    return re.sub(
        r'(?<="expr": )"(?:[^"\\]|\\.)*"',
        lambda match: json.dumps(QUERIES.get(json.loads(match[0]), json.loads(match[0]))),
        text,
    )
