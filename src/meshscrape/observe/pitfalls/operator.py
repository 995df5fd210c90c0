"""Pitfalls of the Prometheus Operator, and of a Prometheus' permissions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio import ports
from meshscrape.istio.names import DISCOVERY_GROUP, MONITORING_GROUP, RBAC_GROUP
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.observe.declared_jobs import is_endpoints
from meshscrape.observe.model import Pitfall, Scraper
from meshscrape.observe.monitors import FILES, MONITORS, scrape_class, selected_by
from meshscrape.observe.pitfalls.facts import Facts

_UNDECLARED = (ports.SECURE_STATS, ports.SECURE_MERGED, ports.MERGED)


def operator_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of Prometheus objects, monitors and RBAC."""
    inventory = facts.cluster.inventory
    servers = [
        each
        for kind in ("Prometheus", "PrometheusAgent")
        for each in inventory.of_kind(kind, MONITORING_GROUP)
    ]
    monitors = [each for kind in (*MONITORS, "Probe") for each in inventory.of_kind(kind, MONITORING_GROUP)]
    for monitor in monitors:
        yield from _pruned_files(monitor)
        yield from _undeclared_ports(monitor)
    for server in servers:
        yield from _null_selectors(server, monitors)
        yield from _default_class(server)
    for monitor in (each for each in monitors if each.ref.kind in MONITORS):
        yield from _selection(monitor, servers, facts)
    for scraper in facts.scrapers:
        yield from _permissions(scraper, facts)


def _endpoints(monitor: Manifest) -> list[Any]:
    spec = objects.as_mapping(monitor.data.get("spec"))
    field = MONITORS.get(monitor.ref.kind, ("", ""))[1]
    return objects.as_list(spec.get(field)) if field else [spec]


def _pruned_files(monitor: Manifest) -> Iterator[Pitfall]:
    if monitor.ref.kind == "ServiceMonitor":
        return
    used = {
        key
        for each in _endpoints(monitor)
        for key in objects.as_mapping(objects.dig(each, "tlsConfig"))
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
    for each in _endpoints(monitor):
        named = [objects.dig(each, key) for key in ("port", "portNumber", "targetPort")]
        found = [str(port) for port in named if str(port) in map(str, _UNDECLARED)]
        if found:
            yield Pitfall(
                "monitor-port-undeclared",
                "error",
                monitor.ref,
                f"The endpoint selects port {found[0]}, which no sidecar declares as a container port: it "
                "has no targets.",
                "Select the declared port http-envoy-prom and rewrite __address__ by relabelings.",
            )


def _null_selectors(server: Manifest, monitors: list[Manifest]) -> Iterator[Pitfall]:
    spec = objects.as_mapping(server.data.get("spec"))
    for kind, (word, _) in MONITORS.items():
        there = [each for each in monitors if each.ref.kind == kind]
        if there and spec.get(f"{word}Selector") is None:
            yield Pitfall(
                "selector-null",
                "warning",
                server.ref,
                f"{word}Selector is not set, which matches nothing: none of the {kind} objects counts.",
                f"Set {word}Selector: {{}} for all of them, or to labels.",
            )


def _default_class(server: Manifest) -> Iterator[Pitfall]:
    for each in objects.as_list(objects.dig(server.data, "spec", "scrapeClasses")):
        files = [key for key in FILES if objects.dig(each, "tlsConfig", key)]
        if objects.dig(each, "default") is True and files:
            yield Pitfall(
                "scrape-class-default",
                "warning",
                server.ref,
                f"The scrape class {objects.dig(each, 'name')} with certificate files is the default: every "
                "monitor gets it, and while a file is missing none of their scrape pools is created.",
                "Remove default: true, and name the class in the monitors that need it.",
            )


def _selection(monitor: Manifest, servers: list[Manifest], facts: Facts) -> Iterator[Pitfall]:
    word = MONITORS[monitor.ref.kind][0]
    takers = [each for each in servers if selected_by(each, monitor, word, facts.cluster)]
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
    found = scrape_class(spec, server)
    if spec.get("scrapeClass") and found is None:
        yield Pitfall(
            "scrape-class-unknown",
            "error",
            monitor.ref,
            f"It names the scrape class {spec['scrapeClass']}, which {server.ref} does not have: the whole "
            "monitor is rejected.",
            "Add the class to spec.scrapeClasses of the Prometheus object.",
        )
    if objects.dig(found, "tlsConfig", "insecureSkipVerify") is not True:
        return
    for each in _endpoints(monitor):
        own = {key for key in objects.as_mapping(objects.dig(each, "tlsConfig")) if key not in FILES}
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
    files = any(objects.dig(each, "tlsConfig", key) for each in _endpoints(monitor) for key in FILES)
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


def _permissions(scraper: Scraper, facts: Facts) -> Iterator[Pitfall]:
    inventory = facts.cluster.inventory
    roles_seen = inventory.of_kind("ClusterRole", RBAC_GROUP) or inventory.of_kind(
        "ClusterRoleBinding", RBAC_GROUP
    )
    if not roles_seen or scraper.kind not in ("prometheus", "operator", "vmagent", "vm-operator", "otel"):
        return
    wanted = _wanted(scraper, facts)
    bound = list(_bound_roles(scraper, facts))
    if not wanted:
        return
    if not bound:
        yield Pitfall(
            "cluster-role-unbound",
            "error",
            scraper.ref,
            f"No ClusterRoleBinding or RoleBinding gives the ServiceAccount {scraper.namespace}/"
            f"{scraper.service_account} any role: discovery fails, and there are no targets at all.",
            "Add a ClusterRoleBinding for it (a widespread guide has only the ClusterRole).",
        )
        return
    for resource in sorted(wanted):
        if not any(_allows(role, resource) for role in bound):
            code = "endpointslices-forbidden" if resource == "endpointslices" else "discovery-forbidden"
            yield Pitfall(
                code,
                "error",
                scraper.ref,
                f"Its roles do not allow to list and watch {resource}: jobs that discover by it have no "
                "targets.",
                f"Add {resource} with get, list and watch to its ClusterRole"
                + (' (API group "discovery.k8s.io").' if resource == "endpointslices" else "."),
            )


def _wanted(scraper: Scraper, facts: Facts) -> set[str]:
    wanted = set()
    for job in facts.jobs:
        if job.scraper is not scraper:
            continue
        for role in (discovery.role for discovery in job.discoveries):
            if role == "pod" or is_endpoints(role):
                wanted.add("pods")
            if role == "endpointslice":
                wanted.add("endpointslices")
    server = facts.cluster.inventory.get(scraper.ref)
    slices = objects.dig(server.data if server else None, "spec", "serviceDiscoveryRole") == "EndpointSlice"
    if scraper.kind == "operator" and slices and wanted:
        wanted.add("endpointslices")
    return wanted


def _bound_roles(scraper: Scraper, facts: Facts) -> Iterator[Manifest | None]:
    """The roles of the scraper's account; None for one that is bound but not in the dump."""
    inventory = facts.cluster.inventory
    for binding in (
        *inventory.of_kind("ClusterRoleBinding", RBAC_GROUP),
        *inventory.of_kind("RoleBinding", RBAC_GROUP),
    ):
        for subject in objects.as_list(binding.data.get("subjects")):
            if not _is(subject, scraper, binding):
                continue
            kind = str(objects.dig(binding.data, "roleRef", "kind", default="ClusterRole"))
            namespace = binding.ref.namespace if kind == "Role" else ""
            name = str(objects.dig(binding.data, "roleRef", "name"))
            yield inventory.get(Ref(RBAC_GROUP, kind, namespace, name))


def _is(subject: Any, scraper: Scraper, binding: Manifest) -> bool:
    if objects.dig(subject, "kind") == "Group":
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{scraper.namespace}")
        return objects.dig(subject, "name") in groups
    namespace = objects.dig(subject, "namespace", default=binding.ref.namespace)
    return (objects.dig(subject, "kind"), namespace, objects.dig(subject, "name")) == (
        "ServiceAccount",
        scraper.namespace,
        scraper.service_account,
    )


def _allows(role: Manifest | None, resource: str) -> bool:
    if role is None or role.data.get("aggregationRule"):
        return True
    group = DISCOVERY_GROUP if resource == "endpointslices" else ""
    for rule in objects.as_list(role.data.get("rules")):
        allowed = [objects.as_list(objects.dig(rule, key)) for key in ("apiGroups", "resources", "verbs")]
        if all(
            "*" in have or all(each in have for each in need)
            for have, need in zip(allowed, ([group], [resource], ["list", "watch"]), strict=True)
        ):
            return True
    return False
