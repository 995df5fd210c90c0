"""Pitfalls of proxy versions with security advisories, where path or header rules keep strangers out.

Facts: Envoy's release notes of 1.36.10, 1.37.6, 1.38.4 and 1.39.1 (2026-08), the CVE records, and
ISTIO-SECURITY-2026-006: fixed in Istio 1.29.7 and 1.30.4; older lines get no fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshscrape.istio.versions import IstioVersion
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.authorization import AuthorizationPolicies
from meshscrape.observe.model import Pitfall
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.references import first
from meshscrape.observe.workload import ObservedWorkload

# The first fixed release of each line that gets fixes.
_FIXED = {(1, 29): (1, 29, 7), (1, 30): (1, 30, 4)}
_FIRST_UNAFFECTED = (1, 31)


def is_affected(version: IstioVersion) -> bool | None:
    """Return whether a proxy has the advisories; None when its version is unknown."""
    if version.numbers is None:
        return None
    line = version.numbers[:2]
    return line < _FIRST_UNAFFECTED and version.numbers < _FIXED.get(line, (*_FIRST_UNAFFECTED, 0))


def advisory_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return a pitfall for each affected version whose proxies depend on path or header rules."""
    authorization = AuthorizationPolicies(facts.cluster, facts.control.mesh.root_namespace)
    by_version: dict[str, list[str]] = {}
    for workload in facts.workloads:
        versions = workload.versions.running or (workload.versions.after,)
        affected = [version for version in versions if is_affected(version)]
        if workload.in_mesh and affected and _depends(workload, authorization):
            for version in affected:
                by_version.setdefault(str(version), []).append(f"{workload.namespace}/{workload.name}")
    for release, workloads in sorted(by_version.items()):
        yield Pitfall(
            "proxy-advisories",
            "warning",
            None,
            f"Proxies of {release} have CVE-2026-73511, -73551, -73552 and -73553: path parameters and "
            "non-UTF-8 headers pass authorization rules. Such rules keep strangers out of "
            f"{first(workloads, 3)}.",
            "Upgrade Istio to 1.29.7, 1.30.4 or newer and restart the pods. Allow exact paths instead of "
            "denying some.",
        )


def _depends(workload: ObservedWorkload, authorization: AuthorizationPolicies) -> bool:
    policies = authorization.of(workload.namespace, workload.labels)
    return any(_can_be_passed(policy) for policy in policies)


def _can_be_passed(policy: Manifest) -> bool:
    """Return whether a policy refuses by path or header pattern; an ALLOW of exact paths is not affected."""
    denies = objects.dig(policy.data, "spec", "action") == "DENY"
    for rule in objects.as_list(objects.dig(policy.data, "spec", "rules")):
        operations = [
            objects.as_mapping(objects.dig(to, "operation"))
            for to in objects.as_list(objects.dig(rule, "to"))
        ]
        if any(operation.get("notPaths") or (denies and operation.get("paths")) for operation in operations):
            return True
        if any(
            _is_header_pattern(condition, denies) for condition in objects.as_list(objects.dig(rule, "when"))
        ):
            return True
    return False


def _is_header_pattern(condition: Any, denies: bool) -> bool:
    header = str(objects.dig(condition, "key", default="")).startswith("request.headers[")
    return header and bool(
        objects.dig(condition, "notValues") or (denies and objects.dig(condition, "values"))
    )
