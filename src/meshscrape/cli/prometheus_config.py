"""`meshscrape prometheus-config`: the scrape jobs, for the running mesh or for one's own Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click
import yaml

from meshscrape.cli.status import STATE, state_path
from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.local.state import read_status
from meshscrape.scrape.collectors import COLLECTORS, Collector, collector_text
from meshscrape.scrape.kubernetes_sd import ClusterJobs, secure_jobs
from meshscrape.scrape.prometheus_config import DirectScrapes, ScrapeOptions, duration, render
from meshscrape.scrape.scraper_pod import CERTIFICATES


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
@click.option(
    "--for",
    "collector",
    type=click.Choice(COLLECTORS),
    default="prometheus",
    show_default=True,
    help="Who reads it: Prometheus, vmagent or the OpenTelemetry Collector.",
)
@click.option(
    "--kubernetes",
    is_flag=True,
    help=f"Jobs that find a cluster's pods. --certs is then where the scraper sees them [{CERTIFICATES}].",
)
@click.option(
    "--namespace", "namespaces", multiple=True, help="With --kubernetes: only its pods; repeatable."
)
def command(
    state: Path | None,
    certs: Path | None,
    targets: Path | None,
    scrape_interval: str,
    collector: str,
    kubernetes: bool,
    namespaces: tuple[str, ...],
) -> int:
    """Print Prometheus' configuration for the running mesh; with --certs and --targets, for your own.

    With --kubernetes, for a scraper in a cluster that has a workload certificate there.

    The jobs do not verify the servers' identity yet (insecure_skip_verify): the servers verify the scraper.
    """
    chosen = cast(Collector, collector)
    interval = interval_seconds(scrape_interval, "--scrape-interval")
    if kubernetes:
        print(_of_cluster(chosen, certs, namespaces, interval), end="")
        return 0
    if (certs is None) != (targets is None):
        raise InputError("--certs and --targets belong together", remedy="give both, or neither")
    if certs is None or targets is None:
        certs, targets = _of_running_mesh(state_path(state))
    direct = DirectScrapes(str(certs.absolute()), str(targets.absolute()))
    text = render(ScrapeOptions(direct, interval))
    print(text if chosen == "prometheus" else collector_text(chosen, yaml.safe_load(text)), end="")
    return 0


def _of_cluster(
    collector: Collector, certs: Path | None, namespaces: tuple[str, ...], interval: float
) -> str:
    jobs = ClusterJobs(str(certs or CERTIFICATES), namespaces)
    document = {"global": {"scrape_interval": duration(interval)}, "scrape_configs": secure_jobs(jobs)}
    return collector_text(collector, document)


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
