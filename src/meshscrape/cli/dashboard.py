"""`meshscrape dashboard`: a Grafana dashboard as JSON, to import or to provision."""

from __future__ import annotations

from importlib.resources import files

import click


@click.command()
def command() -> int:
    """Print a Grafana dashboard of secured scraping (JSON, Grafana 10.1 or later).

    Import it into Grafana and choose the Prometheus data source at its top.
    """
    print(files("meshscrape.prometheus").joinpath("dashboard.json").read_text(encoding="utf-8"), end="")
    return 0
