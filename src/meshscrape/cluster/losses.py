"""Recognise lost scrapes in what Prometheus says of its targets. Pure.

A pod that restarts takes its target along, and a scrape of a pod that is about to end may fail. That is no
loss. So a failed scrape is only a suspect until the pod itself was looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from meshscrape.cluster.stopping import one_line
from meshscrape.kube.objects import Object, Ref, as_list, as_mapping, dig

# Labels with a target's namespace and pod: those of Kubernetes discovery, then common ones of scrape jobs.
_NAMES = (
    ("__meta_kubernetes_namespace", "__meta_kubernetes_pod_name"),
    ("namespace", "pod"),
    ("kubernetes_namespace", "kubernetes_pod_name"),
)
_UID = "__meta_kubernetes_pod_uid"
# A URL's query may hold a secret, so it is left out.
_QUERY = re.compile(r"\?[^\s\"]*")
_LONGEST = 200
# The API server stores the time of a condition in whole seconds.
_ROUNDING_SECONDS = 1.0
Health = Literal["up", "down", "unknown"]


@dataclass(frozen=True, slots=True)
class SeenTarget:
    """A target of a pod as one Prometheus sees it; `at` is the time of its last scrape."""

    pod: Ref
    uid: str
    pool: str
    url: str
    health: Health
    problem: str
    at: datetime

    @property
    def place(self) -> tuple[str, str, str]:
        """Return what identifies the target: its pod, scrape job and URL."""
        return self.uid, self.pool, self.url

    def __str__(self) -> str:
        return f"{self.url} of {self.pod}: {self.problem or 'down'}"


@dataclass
class TargetHistory:
    """The targets that were up in any Prometheus, and the losses that were reported."""

    _up: set[tuple[str, str, str]] = field(default_factory=set)
    _up_pods: set[str] = field(default_factory=set)
    _reported: set[tuple[str, str, str, datetime]] = field(default_factory=set)

    def suspects(self, targets: Collection[SeenTarget]) -> list[SeenTarget]:
        """Return the failed scrapes of targets that were up before; `targets` is what one Prometheus sees.

        A target that replaces one that was up counts, too: nothing else of its pod is up any more. Each
        failed scrape is returned once.
        """
        alive = {target.uid for target in targets if target.health != "down"}
        failures = []
        for target in targets:
            replaced = target.uid in self._up_pods and target.uid not in alive
            scrape = (*target.place, target.at)
            failed = target.health == "down" and (target.place in self._up or replaced)
            if failed and scrape not in self._reported:
                self._reported.add(scrape)
                failures.append(target)
        for target in targets:
            if target.health == "up":
                self._up.add(target.place)
                self._up_pods.add(target.uid)
        return failures


def seen_targets(document: Mapping[str, Any], namespaces: Collection[str]) -> Iterator[SeenTarget]:
    """Yield the targets of pods of `namespaces` in an answer to `/api/v1/targets`."""
    for target in as_list(dig(document, "data", "activeTargets")):
        labels = {**as_mapping(dig(target, "discoveredLabels")), **as_mapping(dig(target, "labels"))}
        names = next(((str(labels[a]), str(labels[b])) for a, b in _NAMES if labels.keys() >= {a, b}), None)
        pod = Ref("", "Pod", *names) if names else None
        if pod is None or pod.namespace not in namespaces:
            continue
        health = str(dig(target, "health", default="unknown"))
        yield SeenTarget(
            pod,
            str(labels.get(_UID) or pod),
            str(dig(target, "scrapePool", default="")),
            _QUERY.sub("", str(dig(target, "scrapeUrl", default=""))),
            health if health in ("up", "down") else "unknown",  # type: ignore[arg-type]
            one_line(_QUERY.sub("", str(dig(target, "lastError", default=""))), _LONGEST),
            _time(dig(target, "lastScrape")),
        )


def is_lost(target: SeenTarget, pod: Object | None) -> bool:
    """Return whether a suspect is a lost scrape: its pod is there, and was ready when it was scraped."""
    if pod is None or dig(pod, "metadata", "deletionTimestamp"):
        return False
    if target.uid not in (dig(pod, "metadata", "uid"), str(target.pod)):
        return False
    for condition in as_list(dig(pod, "status", "conditions")):
        if dig(condition, "type") == "Ready" and dig(condition, "status") == "True":
            since = _time(dig(condition, "lastTransitionTime"))
            return (target.at - since).total_seconds() > _ROUNDING_SECONDS
    return False


def head_series(document: Mapping[str, Any]) -> int | None:
    """Return the series in the head block, from an answer to `/api/v1/status/tsdb`."""
    series = dig(document, "data", "headStats", "numSeries")
    return series if isinstance(series, int) and not isinstance(series, bool) else None


def _time(text: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
