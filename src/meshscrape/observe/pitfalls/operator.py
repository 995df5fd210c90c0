"""Pitfalls of the Prometheus Operator, and of a Prometheus's permissions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio import ports
from meshscrape.istio.names import MONITORING_GROUP
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.cluster import AZURE_MONITORING
from meshscrape.observe.model import OperatorVersion, Pitfall, Scraper
from meshscrape.observe.monitors import FILES, MONITORS, scrape_class, selected_by
from meshscrape.observe.permissions import EVERYWHERE, Grants, wanted_rights
from meshscrape.observe.pitfalls.facts import Facts

# Monitors name a scrape class since this version of the Operator.
SCRAPE_CLASS_SINCE = (0, 74, 0)
_UNDECLARED = (ports.SECURE_STATS, ports.SECURE_MERGED, ports.MERGED)


def operator_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of Prometheus objects, monitors and RBAC."""
    inventory = facts.cluster.inventory
    servers = [
        manifest
        for kind in ("Prometheus", "PrometheusAgent")
        for manifest in inventory.of_kind(kind, MONITORING_GROUP)
    ]
    monitors = [
        manifest for kind in (*MONITORS, "Probe") for manifest in inventory.of_kind(kind, MONITORING_GROUP)
    ]
    azure = [
        manifest
        for kind in ("PodMonitor", "ServiceMonitor")
        for manifest in inventory.of_kind(kind, AZURE_MONITORING)
    ]
    yield from _old_operator(servers, monitors, facts)
    for monitor in (*monitors, *azure):
        yield from _pruned_files(monitor)
        yield from _undeclared_ports(monitor)
    for server in servers:
        yield from _null_selectors(server, monitors)
        yield from _default_class(server)
    for monitor in (monitor for monitor in monitors if monitor.ref.kind in MONITORS):
        yield from _selection(monitor, servers, facts)
    grants = Grants(inventory)
    for scraper in facts.scrapers:
        yield from _permissions(scraper, grants, facts)


def _old_operator(servers: list[Manifest], monitors: list[Manifest], facts: Facts) -> Iterator[Pitfall]:
    """Report an old Operator, whose CRDs make the API server silently remove scrape classes."""
    version = facts.operator_version
    if version is None or version >= SCRAPE_CLASS_SINCE:
        return
    classes = [server for server in servers if objects.dig(server.data, "spec", "scrapeClasses")]
    for manifest in (
        *classes,
        *(monitor for monitor in monitors if objects.dig(monitor.data, "spec", "scrapeClass")),
    ):
        yield Pitfall(
            "scrape-class-unsupported",
            "error",
            manifest.ref,
            f"It uses a scrape class, which the Prometheus Operator knows from {_dotted(SCRAPE_CLASS_SINCE)} "
            f"on; this one is {_dotted(version)}. The field is dropped, and the monitor scrapes without a "
            "certificate.",
            "Upgrade the Operator and its CRDs, or use a ServiceMonitor with certificate files in tlsConfig.",
        )


def _dotted(version: OperatorVersion) -> str:
    return ".".join(map(str, version))


def _endpoints(monitor: Manifest) -> list[Any]:
    spec = objects.as_mapping(monitor.data.get("spec"))
    field = MONITORS.get(monitor.ref.kind, ("", ""))[1]
    return objects.as_list(spec.get(field)) if field else [spec]


def _pruned_files(monitor: Manifest) -> Iterator[Pitfall]:
    if monitor.ref.kind == "ServiceMonitor":
        return
    used = {
        key
        for endpoint in _endpoints(monitor)
        for key in objects.as_mapping(objects.dig(endpoint, "tlsConfig"))
        if key in FILES
    }
    if used:
        yield Pitfall(
            "monitor-file-pruned",
            "error",
            monitor.ref,
            f"{monitor.ref.kind} has no {', '.join(sorted(used))} in tlsConfig: the API server removes them "
            "silently, and Prometheus scrapes without a certificate.",
            "Put the files into a scrapeClass of the Prometheus object, and name it in spec.scrapeClass.",
        )


def _undeclared_ports(monitor: Manifest) -> Iterator[Pitfall]:
    if monitor.ref.kind != "PodMonitor":
        return
    for endpoint in _endpoints(monitor):
        named = [objects.dig(endpoint, key) for key in ("port", "portNumber", "targetPort")]
        undeclared = [str(port) for port in named if str(port) in map(str, _UNDECLARED)]
        if undeclared:
            yield Pitfall(
                "monitor-port-undeclared",
                "error",
                monitor.ref,
                f"The endpoint selects port {undeclared[0]}, which no sidecar declares as a container port: "
                "it has no targets.",
                "Select the declared port http-envoy-prom and rewrite __address__ by relabelings.",
            )


def _null_selectors(server: Manifest, monitors: list[Manifest]) -> Iterator[Pitfall]:
    spec = objects.as_mapping(server.data.get("spec"))
    for kind, (word, _) in MONITORS.items():
        there = [monitor for monitor in monitors if monitor.ref.kind == kind]
        if there and spec.get(f"{word}Selector") is None:
            yield Pitfall(
                "selector-null",
                "warning",
                server.ref,
                f"{word}Selector is not set and so matches nothing: the {kind} objects have no effect.",
                f"Set {word}Selector: {{}} for all of them, or to labels.",
            )


def _default_class(server: Manifest) -> Iterator[Pitfall]:
    for declared in objects.as_list(objects.dig(server.data, "spec", "scrapeClasses")):
        files = [key for key in FILES if objects.dig(declared, "tlsConfig", key)]
        if objects.dig(declared, "default") is True and files:
            yield Pitfall(
                "scrape-class-default",
                "warning",
                server.ref,
                f"The scrape class {objects.dig(declared, 'name')} with certificate files is the "
                "default: every monitor gets it, and none of their scrape pools is created while a file is "
                "missing.",
                "Remove default: true, and name the class in the monitors that need it.",
            )


def _selection(monitor: Manifest, servers: list[Manifest], facts: Facts) -> Iterator[Pitfall]:
    word = MONITORS[monitor.ref.kind][0]
    takers = [server for server in servers if selected_by(server, monitor, word, facts.cluster)]
    if servers and not takers:
        yield Pitfall(
            "monitor-not-selected",
            "warning",
            monitor.ref,
            "No Prometheus object selects it, by its labels and namespace: it does nothing.",
            f"Give it the labels that {word}Selector asks for, in a namespace of {word}NamespaceSelector.",
        )
    spec = objects.as_mapping(monitor.data.get("spec"))
    for taker in takers:
        yield from _class_of(monitor, spec, taker)
        if monitor.ref.kind == "ServiceMonitor":
            yield from _denied_files(monitor, taker)


def _class_of(monitor: Manifest, spec: Mapping[str, Any], server: Manifest) -> Iterator[Pitfall]:
    chosen = scrape_class(spec, server)
    if spec.get("scrapeClass") and chosen is None:
        yield Pitfall(
            "scrape-class-unknown",
            "error",
            monitor.ref,
            f"It names the scrape class {spec['scrapeClass']}, which {server.ref} does not have: the whole "
            "monitor is rejected.",
            "Add the class to spec.scrapeClasses of the Prometheus object.",
        )
    if objects.dig(chosen, "tlsConfig", "insecureSkipVerify") is not True:
        return
    for endpoint in _endpoints(monitor):
        own = {key for key in objects.as_mapping(objects.dig(endpoint, "tlsConfig")) if key not in FILES}
        if own and "insecureSkipVerify" not in own:
            yield Pitfall(
                "scrape-class-verify-lost",
                "error",
                monitor.ref,
                "Its own tlsConfig takes only the files from the scrape class: insecureSkipVerify is lost, "
                "and Prometheus cannot verify a SPIFFE certificate, so every scrape fails.",
                "Remove tlsConfig from the monitor, or repeat insecureSkipVerify: true in it.",
            )


def _denied_files(monitor: Manifest, server: Manifest) -> Iterator[Pitfall]:
    denied = objects.dig(server.data, "spec", "arbitraryFSAccessThroughSMs", "deny") is True
    files = any(objects.dig(endpoint, "tlsConfig", key) for endpoint in _endpoints(monitor) for key in FILES)
    if denied and files:
        yield Pitfall(
            "monitor-files-denied",
            "error",
            monitor.ref,
            f"{server.ref} has arbitraryFSAccessThroughSMs.deny: a monitor with certificate files is "
            "rejected.",
            "Put the files into a scrapeClass, which is not affected.",
        )


# Permissions


def _permissions(scraper: Scraper, grants: Grants, facts: Facts) -> Iterator[Pitfall]:
    if scraper.kind not in ("prometheus", "operator", "vmagent", "vm-operator", "otel"):
        return
    rights = wanted_rights(scraper, facts.jobs, facts.cluster.inventory)
    # Judge only rights whose kinds of objects are in the dump: the cluster may have other bindings.
    rights = tuple(right for right in rights if grants.tells(right))
    if not rights:
        return
    if not grants.bound(scraper.namespace, scraper.service_account):
        yield Pitfall(
            "cluster-role-unbound",
            "error",
            scraper.ref,
            f"No ClusterRoleBinding or RoleBinding gives the ServiceAccount {scraper.namespace}/"
            f"{scraper.service_account} any role: discovery fails, and there are no targets at all.",
            "Add a ClusterRoleBinding for it (a widespread guide has only the ClusterRole).",
        )
        return
    for resource in ("endpointslices", "pods"):
        missing = [
            right.namespace
            for right in rights
            if right.resource == resource
            and not grants.allows(scraper.namespace, scraper.service_account, right)
        ]
        if missing:
            yield _forbidden(scraper, resource, missing)


def _forbidden(scraper: Scraper, resource: str, missing: list[str]) -> Pitfall:
    code = "endpointslices-forbidden" if resource == "endpointslices" else "discovery-forbidden"
    everywhere = EVERYWHERE in missing
    where = "in all namespaces" if everywhere else f"in {', '.join(missing)}"
    place = "ClusterRole and ClusterRoleBinding" if everywhere else "Role and RoleBinding in each of them"
    group = ' (API group "discovery.k8s.io")' if resource == "endpointslices" else ""
    return Pitfall(
        code,
        "error",
        scraper.ref,
        f"Its roles do not allow it to list and watch {resource} {where}: jobs that discover there have no "
        "targets.",
        f"Give it {resource}{group} with get, list and watch by a {place}, or limit the jobs to namespaces "
        "where it has them.",
    )
