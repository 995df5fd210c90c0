"""`meshscrape prometheus-config`: the scrape jobs, for the running mesh or for one's own Prometheus."""

from __future__ import annotations

from pathlib import Path

import click

from meshscrape.cli.status import STATE, state_path
from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.local.state import read_status
from meshscrape.scrape.prometheus_config import ScrapeOptions, render


def interval_seconds(text: str, where: str) -> float:
    """A duration option in seconds."""
    return parse_duration(text, where).total_seconds()


@click.command()
@STATE
@click.option(
    "--certs",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory with cert-chain.pem, key.pem and root-cert.pem (the agent's OUTPUT_CERTS).",
)
@click.option(
    "--targets",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory with one JOB.json of targets per job (Prometheus' file_sd format).",
)
@click.option("--scrape-interval", default="5s", show_default=True, metavar="DURATION")
def command(state: Path | None, certs: Path | None, targets: Path | None, scrape_interval: str) -> int:
    """Print Prometheus' configuration for the running mesh; with --certs and --targets, for your own.

    The jobs do not verify the servers' identity yet (insecure_skip_verify): the servers verify the scraper.
    """
    interval = interval_seconds(scrape_interval, "--scrape-interval")
    if (certs is None) != (targets is None):
        raise InputError("--certs and --targets belong together", remedy="give both, or neither")
    if certs is None or targets is None:
        certs, targets = _of_running_mesh(state_path(state))
    print(render(ScrapeOptions(str(certs.absolute()), str(targets.absolute()), interval)), end="")
    return 0


def _of_running_mesh(state: Path) -> tuple[Path, Path]:
    document = read_status(state)
    title = (document["prometheus"] or {}).get("workload")
    for workload in document["workloads"]:
        if f"{workload['namespace']}/{workload['name']}" == title:
            certs = workload["outputCertificates"] or workload["credentials"]
            return Path(certs), Path(document["stateDirectory"]) / "run/prometheus/targets"
    raise InputError(
        "the running mesh has no Prometheus",
        where=str(state),
        remedy="give --certs DIR and --targets DIR for your own",
    )
