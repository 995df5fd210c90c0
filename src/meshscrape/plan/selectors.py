"""Find selectors of alerts, dashboards and autoscalers that would stop matching when labels change."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import re2

from meshscrape.istio.names import MONITORING_GROUP
from meshscrape.kube.objects import Inventory, Manifest, Ref, as_list, as_mapping, dig

_MATCHER = re.compile(r'\b([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
# ConfigMaps with one of these words contain rules, dashboards or the Prometheus adapter's configuration.
_QUERIES = ("expr", "seriesQuery", "metricsQuery")
_METRICS = ("external", "pods", "object")


@dataclass(frozen=True, slots=True, order=True)
class LabelChange:
    """A label of a scrape whose value changes; an empty value means no label."""

    label: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class BrokenSelector:
    """A selector that matches a scrape's metrics now and would not match after the plan."""

    ref: Ref
    selector: str
    change: LabelChange


def broken_selectors(inventory: Inventory, changes: Collection[LabelChange]) -> tuple[BrokenSelector, ...]:
    """Return the selectors among the objects that label changes break, each once."""
    broken: dict[BrokenSelector, None] = {}
    for manifest in inventory if changes else ():
        for label, operator, value in _matchers(manifest):
            for change in changes:
                if label == change.label and _breaks(operator, value, change):
                    broken[BrokenSelector(manifest.ref, f'{label}{operator}"{value}"', change)] = None
    return tuple(broken)


def _breaks(operator: str, value: str, change: LabelChange) -> bool:
    return _matches(operator, value, change.before) and not _matches(operator, value, change.after)


def _matches(operator: str, wanted: str, value: str) -> bool:
    if operator in ("=", "!="):
        return (value == wanted) == (operator == "=")
    options = re2.Options()
    options.log_errors = False
    try:
        matched = re2.fullmatch(wanted, value, options) is not None
    except re2.error:
        return False
    return matched == (operator == "=~")


def _matchers(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    kind, group = manifest.ref.kind, manifest.ref.group
    if kind == "PrometheusRule" and group == MONITORING_GROUP:
        for rules in as_list(dig(manifest.data, "spec", "groups")):
            for rule in as_list(dig(rules, "rules")):
                yield from _of_text(str(dig(rule, "expr", default="")))
    elif kind == "ConfigMap":
        for text in map(str, as_mapping(manifest.data.get("data")).values()):
            if any(word in text for word in _QUERIES):
                # Within JSON, quotes are escaped.
                yield from _of_text(text.replace('\\"', '"'))
    elif kind == "HorizontalPodAutoscaler":
        for metric in as_list(dig(manifest.data, "spec", "metrics")):
            yield from _of_metric(metric)


def _of_text(text: str) -> Iterator[tuple[str, str, str]]:
    for label, operator, value in _MATCHER.findall(text):
        yield label, operator, value.replace("\\\\", "\\")


def _of_metric(metric: Any) -> Iterator[tuple[str, str, str]]:
    for source in _METRICS:
        selector: Mapping[str, Any] = as_mapping(dig(metric, source, "metric", "selector", "matchLabels"))
        for label, value in selector.items():
            yield label, "=", str(value)
