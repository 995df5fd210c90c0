"""`meshscrape agent proxy sidecar|router`: the agent, configured by environment variables alone."""

from __future__ import annotations

import logging
import os
import sys

import click


@click.group()
def command() -> None:
    """Run the agent beside a workload: certificate, Envoy, health, merged metrics."""


@command.command()
@click.argument("role", type=click.Choice(["sidecar", "router"]))
def proxy(role: str) -> None:
    """Run it as a sidecar or as a gateway (router) until SIGTERM.

    Everything else comes from environment variables, with Istio's names where Istio has them.
    """
    from meshscrape.agent.run import run
    from meshscrape.istio.settings import parse_settings

    settings = parse_settings(os.environ, role)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s agent: %(message)s"
    )
    run(settings)
