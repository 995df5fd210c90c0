"""Reports of meshes that do not run, for tests of what is made of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

from meshscrape.verify.check import CheckVerdict, PlannedCheck, plan, result_of
from meshscrape.verify.findings import CheckResult, Outcome, Report, SeenCertificate
from meshscrape.verify.mesh_status import MeshStatus, parse_mesh
from meshscrape.verify.ports import announced_ports
from meshscrape.verify.registry import CHECKS, PORT_CHECKS
from support.status import sidecar, status

STYLE = files("meshscrape.verify.html").joinpath("style.css").read_text("utf-8")
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
PROXY = {"address": "127.9.2.9:15094", "tokenFile": "/run/token"}

# The outcome of a planned check and what was seen; None for a check that passes.
Judge = Callable[[PlannedCheck], tuple[Outcome, str] | None]


def all_pass(_: PlannedCheck) -> tuple[Outcome, str] | None:
    """Nothing is wrong."""
    return None


def mesh_of(names: Sequence[str], *, proxied: bool = True, **changes: Any) -> MeshStatus:
    """A mesh of hardened sidecars with these names, and its Prometheus."""
    entries = []
    for number, name in enumerate(names, start=1):
        address = f"127.9.{number // 250 + 1}.{number % 250 + 1}"
        identity = f"spiffe://cluster.local/ns/default/sa/account-{number}"
        own = {"address": address, "addresses": [address], "spiffeId": identity, "hardened": True}
        entries.append(sidecar(name=name, **own, **changes))
    return parse_mesh(status(*entries, scrapeProxy=PROXY if proxied else None))


def report_of(mesh: MeshStatus, judge: Judge = all_pass, *more: CheckResult) -> Report:
    """The report of the full plan for `mesh`, judged by `judge`, and some results more."""
    results = []
    for each in plan(announced_ports(mesh), PORT_CHECKS):
        outcome, seen = judge(each) or ("passed", "as expected")
        results.append(result(each.check.name, outcome, each.workload, each.target, seen))
    certificates = [certificate(each.spiffe_id, each.title, each.addresses[0]) for each in mesh.workloads]
    scraper = "spiffe://cluster.local/ns/istio-system/sa/prometheus"
    return Report((*results, *more), scraper, NOW, 6.5, tuple(certificates), mesh)


def result(check: str, outcome: Outcome, workload: str, target: str, seen: str) -> CheckResult:
    """One result with the check's own words."""
    return result_of(CHECKS[check], workload, target, CheckVerdict(outcome, seen))


def certificate(
    name: object, workload: str = "default/a", target: str = "127.9.1.1:15092"
) -> SeenCertificate:
    """A server's certificate in the middle of its life."""
    day = timedelta(days=1)
    return SeenCertificate("server", workload, target, str(name), f"{hash(name):x}", NOW - day, NOW + day)
