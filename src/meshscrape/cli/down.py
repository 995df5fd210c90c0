"""`meshscrape down`: stop the mesh of a state directory."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from meshscrape.cli.output import say
from meshscrape.cli.status import STATE, state_path
from meshscrape.local.detached import stop_mesh
from meshscrape.system import life


@click.command()
@STATE
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def command(state: Path | None, quiet: bool) -> int:
    """Stop the running mesh, whether `up` was detached or runs in a terminal; the CA's directory stays.

    Exit codes: 0 stopped, or no mesh was running; 2 could not stop it.
    """
    path = state_path(state)
    outcome = life.run(stop_mesh(path))
    if isinstance(outcome, signal.Signals):
        return life.exit_code(outcome)
    if not quiet:
        say("stopped" if outcome else f"no mesh is running in {path}")
    return 0
