"""`meshscrape dashboard`: a Grafana dashboard as JSON, to import or to provision."""

from __future__ import annotations

import json

import click

from meshscrape.prometheus.dashboard import dashboard


@click.command()
def command() -> int:
    """Print the Grafana dashboard (JSON). Import it, and choose the Prometheus data source at its top."""
    print(json.dumps(dashboard(), indent=2))
    return 0
