"""`meshscrape dashboard`: a Grafana dashboard as JSON, to import or to provision."""

from __future__ import annotations

from importlib.resources import files

import click

from meshscrape.prometheus.recorded import recorded_dashboard


@click.command()
@click.option(
    "--recorded",
    is_flag=True,
    help="Query the series that `meshscrape rules` records: cheaper with thousands of targets, and empty "
    "without those rules.",
)
def command(recorded: bool) -> int:
    """Print a Grafana dashboard of secured scraping (JSON, Grafana 10.1 or later).

    Import it into Grafana and choose the Prometheus data source at its top.
    """
    text = files("meshscrape.prometheus").joinpath("dashboard.json").read_text(encoding="utf-8")
    print(recorded_dashboard(text) if recorded else text, end="")
    return 0
