"""`meshscrape observe`: what a cluster has, from its objects alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Literal

import click
import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meshscrape.cli.manifests import files_option, read_inventory
from meshscrape.cli.output import console
from meshscrape.errors import InputError
from meshscrape.istio.versions import parse_version
from meshscrape.observe import observe
from meshscrape.observe.model import ObservedJob, Pitfall
from meshscrape.observe.observation import Observation
from meshscrape.observe.observation_document import observation_document
from meshscrape.observe.workload import ObservedWorkload

_STYLES = {"error": "red", "warning": "yellow", "info": "cyan"}
# Objects that one pitfall names in the table; the documents have all.
_SHOWN = 5


@click.command()
@files_option
@click.option("--istio-version", metavar="VERSION", help="Where nothing in the objects tells it: 1.31.0.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True
)
def command(
    files: tuple[str, ...], istio_version: str | None, output: Literal["table", "json", "yaml"]
) -> int:
    """Tell what a cluster has and what will bite, from manifests or a dump; no cluster is needed.

    A dump: kubectl get -A -o yaml deploy,sts,ds,rs,job,cronjob,pod,svc,cm,ns,netpol,… (docs/observe.md).
    """
    if istio_version is not None and not parse_version(istio_version).known:
        raise InputError(
            f"{istio_version!r} is not a version of Istio",
            where="--istio-version",
            remedy="write it as 1.31.0",
        )
    observation = observe(read_inventory(files), istio_version=istio_version)
    if output == "json":
        print(json.dumps(observation_document(observation), indent=2))
    elif output == "yaml":
        yaml.safe_dump(observation_document(observation), sys.stdout, sort_keys=False, allow_unicode=True)
    else:
        console().print(Group(*_view(observation)))
    return 0


def _view(observation: Observation) -> Iterator[RenderableType]:
    yield _planes(observation)
    yield Text()
    yield _workloads(observation)
    jobs = [each for each in observation.scrape_jobs if each.matches or not each.certain]
    if jobs:
        yield Text()
        yield _scrape_jobs(jobs)
    yield Text()
    yield from _pitfalls(observation.pitfalls)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: what objects say is neither rich's markup nor the terminal's."""
    table.add_row(*(Text(_plain(cell)) for cell in cells))


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


def _planes(observation: Observation) -> RenderableType:
    if not observation.control_planes:
        return Text(
            "No control plane in these objects; give --istio-version, or add istio-system to the dump."
        )
    table = _table("CONTROL PLANE", "VERSION", "TOLD BY", "TAGS", "WHERE", "TRUST DOMAIN")
    for plane in observation.control_planes:
        where = "outside the cluster, or not in the dump" if plane.external else plane.namespace
        _add(
            table,
            f"{plane.revision} ({plane.flavour})",
            str(plane.version),
            plane.version_source or "nothing",
            ", ".join(plane.tags),
            where,
            plane.mesh.trust_domain,
        )
    return table


def _workloads(observation: Observation) -> Table:
    over = {each.name: each.over for each in observation.scrape_jobs}
    table = _table("WORKLOAD", "KIND", "PROXY", "INJECTED BY", "MODE", "SECURE PORTS", "MTLS", "SCRAPED BY")
    for each in observation.workloads:
        scraped = "\n".join(f"{name}, {over[name]}" for name in each.scraped_by)
        if not each.in_mesh:
            _add(table, _title(each), each.kind, "", each.injection.reason, "", "", "", scraped)
            continue
        _add(
            table,
            _title(each),
            each.kind + (" (native)" if each.versions.native_sidecar else ""),
            _proxy(each),
            each.injection.reason,
            each.metrics.mode + (", hardened" if each.metrics.hardened else ""),
            ",".join(map(str, each.metrics.listening)),
            _mtls(each),
            scraped,
        )
    return table


def _title(workload: ObservedWorkload) -> str:
    kind = "" if workload.ref.kind == "Deployment" else f"\n({workload.ref.kind})"
    return f"{workload.namespace}/{workload.name}{kind}"


def _proxy(workload: ObservedWorkload) -> str:
    now = ", ".join(map(str, workload.versions.running))
    after = str(workload.versions.after)
    if not now or now == after:
        return after
    return f"{now}\nafter restart {after}"


def _mtls(workload: ObservedWorkload) -> str:
    if workload.is_gateway:
        return ""
    lines: list[str] = [workload.mtls.default]
    lines += [f"{port} {mode}" for port, mode in sorted(workload.mtls.ports.items())]
    return "\n".join(lines)


def _scrape_jobs(jobs: list[ObservedJob]) -> Table:
    table = _table("SCRAPES", "OVER", "PORTS", "WORKLOADS", "DECLARED IN")
    for each in jobs:
        count = str(len(each.matches)) if each.certain else "cannot be told"
        ports = ",".join(map(str, each.ports))
        _add(table, each.name, each.over, ports, count, str(each.ref))
    return table


def _pitfalls(pitfalls: tuple[Pitfall, ...]) -> Iterator[RenderableType]:
    grouped: dict[tuple[str, str], list[Pitfall]] = {}
    for each in pitfalls:
        grouped.setdefault((each.severity, each.code), []).append(each)
    if not grouped:
        yield Text("No pitfalls found.")
    for (severity, code), found in grouped.items():
        count = f" ({len(found)})" if len(found) > 1 else ""
        yield Text.assemble((f"{severity.upper():<8}", _STYLES[severity]), (f"{code}{count}", "bold"))
        seen: set[tuple[str, str]] = set()
        for each in found[:_SHOWN]:
            yield Text(_plain(f"  {each.ref}: {each.text}" if each.ref else f"  {each.text}"))
            if (each.code, each.remedy) not in seen:
                yield Text(_plain(f"  → {each.remedy}"), style="dim")
                seen.add((each.code, each.remedy))
        if len(found) > _SHOWN:
            yield Text(f"  … and {len(found) - _SHOWN} more: -o json has all of them")
