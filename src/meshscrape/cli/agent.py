"""`meshscrape agent proxy sidecar|router`: the agent, configured only by environment variables."""

from __future__ import annotations

import logging
import os
import sys

import click


@click.group()
def command() -> None:
    """Run the agent next to a workload: certificate, Envoy, health, merged metrics."""


@command.command()
@click.argument("role", type=click.Choice(["sidecar", "router"]))
def proxy(role: str) -> None:
    """Run the agent of a sidecar or of a gateway (router) until SIGTERM.

    Environment variables configure everything else; they have Istio's names where Istio has them.
    Exit codes: 0 stopped by a signal, 2 could not run.
    """
    from meshscrape.agent.run import run
    from meshscrape.istio.settings import parse_settings

    settings = parse_settings(os.environ, role)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s agent: %(message)s"
    )
    run(settings)
