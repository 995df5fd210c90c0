"""Pitfalls of control planes, versions and platforms."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.istio.names import (
    ASM_GROUP,
)
from meshscrape.istio.versions import parse_version
from meshscrape.kube import objects
from meshscrape.observe.model import Pitfall, Scraper
from meshscrape.observe.pitfalls.facts import Facts

_ARMS_CHART = "ack-arms-prometheus"
_ARMS_NEEDED = (1, 1, 20)


def platform_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of the platform."""
    yield from _planes(facts)
    yield from _asm(facts)


def _planes(facts: Facts) -> Iterator[Pitfall]:
    given = facts.control.given
    for plane in facts.control.planes:
        if plane.custom_templates:
            yield Pitfall(
                "custom-templates",
                "info",
                None,
                f"The injector of revision {plane.revision} has templates of its own "
                f"({', '.join(plane.custom_templates)}): pods that use them may ignore the annotations here.",
                "Compare an injected pod before and after.",
            )
        if plane.version.prerelease:
            yield Pitfall(
                "pre-release",
                "info",
                None,
                f"Revision {plane.revision} is {plane.version}, a pre-release: it counts as its release.",
                "Verify after the change.",
            )
        if given.known and plane.version.known and plane.version.numbers != given.numbers:
            yield Pitfall(
                "version-contradicts",
                "info",
                None,
                f"--istio-version says {given}, but {plane.version_source} says {plane.version}, "
                "which is used.",
                "Leave the option out, or give a dump of the cluster that you mean.",
            )
    mixed = sorted(
        {
            str(version)
            for workload in facts.workloads
            for version in workload.versions.running
            if version.known
        }
    )
    if len(mixed) > 1:
        yield Pitfall(
            "versions-mixed",
            "info",
            None,
            f"Proxies of several versions run: {', '.join(mixed)}. The version of each workload's own "
            "proxy decides what it can do.",
            "Restart workloads with an old version after an upgrade; check the versions of each workload.",
        )


def _asm(facts: Facts) -> Iterator[Pitfall]:
    if facts.control.flavour == "asm":
        yield Pitfall(
            "asm",
            "info",
            None,
            "This is a data plane of Alibaba Cloud Service Mesh: the control plane is outside the cluster, "
            "and Istio's objects go to ASM's own API server, unless access through the cluster's is on. "
            "Plans for ASM were never run against ASM.",
            "Apply Istio's objects with ASM's kubeconfig and the rest with the cluster's; try one workload "
            "first.",
        )
    for gateway in facts.cluster.inventory.of_kind("IstioGateway", ASM_GROUP):
        yield Pitfall(
            "asm-gateway-owned",
            "info",
            gateway.ref,
            f"ASM makes the Deployment istio-{gateway.ref.name} from it: changes to the Deployment are lost.",
            "Use spec.env, spec.podAnnotations and spec.configVolumes of the IstioGateway.",
        )
    for scraper in facts.scrapers:
        if scraper.kind == "arms":
            yield _arms(scraper, facts)


def _arms(scraper: Scraper, facts: Facts) -> Pitfall:
    version = _arms_version(scraper, facts)
    if version is None:
        text = (
            "Its version is that of the Helm chart ack-arms-prometheus, which these objects do not tell (the "
            "image's tag is another number)"
        )
    elif version >= _ARMS_NEEDED:
        text = f"Its chart is {'.'.join(map(str, version))}, which can scrape over mTLS (from 1.1.20 on)"
    else:
        text = f"Its chart is {'.'.join(map(str, version))}: scraping over mTLS needs 1.1.20"
    old = version is not None and version < _ARMS_NEEDED
    return Pitfall(
        "arms-agent",
        "warning" if old else "info",
        scraper.ref,
        f"The ARMS agent scrapes here. {text}. What it scrapes is configured in the console and not visible.",
        "Upgrade ack-arms-prometheus to 1.1.20 or later in the console."
        if old or version is None
        else "Nothing, unless it still scrapes plaintext ports.",
    )


def _arms_version(scraper: Scraper, facts: Facts) -> tuple[int, int, int] | None:
    workload = facts.workload_of(scraper.ref)
    labels = dict(objects.labels(workload.manifest.data)) if workload and workload.manifest else {}
    for name in ("helm.sh/chart", "chart"):
        chart = str(labels.get(name, ""))
        version = parse_version(chart.removeprefix(f"{_ARMS_CHART}-"))
        if chart.startswith(f"{_ARMS_CHART}-") and version.numbers is not None:
            return version.numbers
    return None
