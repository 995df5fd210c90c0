"""`meshscrape listeners`: show the listeners of one workload's running Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from meshscrape.cli.output import console, print_document
from meshscrape.cli.status import STATE, state_path
from meshscrape.envoy.listener_table import ListenerRow, listeners_table
from meshscrape.errors import InputError
from meshscrape.local.state import read_status
from meshscrape.system.envoy_admin import EnvoyAdmin


def find_workload(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the workload NAME, NAMESPACE/NAME or NAME.NAMESPACE; an InputError lists the existing ones."""
    workloads: list[dict[str, Any]] = document["workloads"]
    found = [w for w in workloads if f"{w['namespace']}/{w['name']}" == name]
    found = found or [w for w in workloads if name in (w["name"], f"{w['name']}.{w['namespace']}", w["pod"])]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{w['namespace']}/{w['name']}" for w in (found or workloads)) or "none"
    what = "matches several workloads" if found else "is not a workload of the mesh"
    raise InputError(f"{name!r} {what}", remedy=f"write one of: {listed}")


@click.command()
@click.argument("workload")
@STATE
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table", show_default=True
)
def command(workload: str, state: Path | None, output: str) -> int:
    """Show the listeners of WORKLOAD (NAME, NAMESPACE/NAME or NAME.NAMESPACE), read from its Envoy.

    Exit codes: 0 fine, 2 could not run.
    """
    entry = find_workload(read_status(state_path(state)), workload)
    if not entry["adminSocket"]:
        raise InputError(f"{workload} has no Envoy", remedy="choose a workload with a sidecar or a gateway")
    dump = asyncio.run(EnvoyAdmin(Path(entry["adminSocket"])).config_dump())
    rows = listeners_table(dump)
    if output in ("json", "yaml"):
        print_document([asdict(row) for row in rows], output)
        return 0
    console(wide=output == "wide").print(listeners_view(rows))
    return 0


def listeners_view(rows: Iterable[ListenerRow]) -> Table:
    """Return the rows as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ADDRESSES", "PORT", "MATCH", "DESTINATION"):
        table.add_column(name, overflow="fold")
    for row in rows:
        # As Text, because rich would interpret parts of a path as markup.
        table.add_row(*map(Text, (row.address, str(row.port), row.match, row.destination)))
    return table
