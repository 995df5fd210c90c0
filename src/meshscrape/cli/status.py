"""`meshscrape status`: show the running mesh, as a table or as the document of docs/status.md."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meshscrape.cli.output import console, mesh_view, print_document
from meshscrape.local.state import default_state_path, read_status
from meshscrape.system.clock import utcnow

STATE = click.option(
    "--state",
    "state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The mesh's state directory.  [default: $XDG_STATE_HOME/meshscrape or ~/.local/state/meshscrape]",
)


def state_path(state: Path | None) -> Path:
    """Return the state directory that --state names, else the default one."""
    return state if state is not None else default_state_path(os.environ)


@click.command()
@STATE
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table", show_default=True
)
def command(state: Path | None, output: str) -> int:
    """Show the running mesh. Exit codes: 0 a mesh is running, 2 none is running."""
    document = read_status(state_path(state))
    if output in ("json", "yaml"):
        print_document(document, output)
    else:
        console(wide=output == "wide").print(mesh_view(document, utcnow()))
    return 0
