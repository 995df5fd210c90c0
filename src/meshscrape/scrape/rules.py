"""Alerting rules for secured scraping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Thresholds. `certificate_left`: seconds of a certificate's life at which to warn."""

    certificate_left: int = 6 * 3600


def rule_groups(options: RuleOptions) -> list[dict[str, Any]]:
    """The list for `groups` of a rules file and of a PrometheusRule."""
    return [
        {
            "name": "meshscrape-targets",
            "rules": [
                {
                    "alert": "MeshTargetDown",
                    "expr": 'up{job=~"istio-secure-.+"} == 0',
                    "for": "5m",
                    "labels": {"severity": "warning"},
                    "annotations": {"summary": "{{ $labels.instance }} cannot be scraped"},
                }
            ],
        }
    ]
