"""`meshscrape prometheus-config`: print scrape jobs for the running mesh or for your own Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import click
import yaml

from meshscrape.cli.options import path_option, text_of
from meshscrape.cli.output import say
from meshscrape.cli.status import STATE, state_path
from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.istio.host_port import host_port, parse_host_port
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.local.state import read_status
from meshscrape.prometheus.collectors import COLLECTORS, Collector, collector_text
from meshscrape.prometheus.config import (
    PROXY_DISCOVERY_PORT,
    DirectScrapes,
    ScrapeOptions,
    ScrapeProxyAccess,
    global_settings,
    render,
)
from meshscrape.prometheus.existing import existing_advice, plaintext_pod_jobs, with_secure_jobs
from meshscrape.prometheus.kubernetes_sd import ClusterJobs, ProxyInPod, secure_jobs
from meshscrape.prometheus.scraper_pod import CERTIFICATES
from meshscrape.prometheus.targets import JOBS


@click.command()
@STATE
@click.option(
    "--proxy",
    metavar="IP:PORT",
    help="For your own Prometheus: scrape through the scrape proxy at this address (its --listen).",
)
@click.option(
    "--discovery", metavar="IP:PORT", help="With --proxy: its --discovery.  [default: same IP, port 15095]"
)
@path_option("--token-file", help="With --proxy: its token.")
@click.option(
    "--job", "jobs", multiple=True, metavar="JOB", help="With --proxy: a job of the proxy; repeatable."
)
@click.option("--direct", is_flag=True, help="Scrape without a scrape proxy. Targets are not verified then.")
@path_option(
    "--certs",
    metavar="DIR",
    help="With --direct: directory with cert-chain.pem, key.pem and root-cert.pem (OUTPUT_CERTS).",
)
@path_option(
    "--targets",
    metavar="DIR",
    help="With --direct: directory with one JOB.json of targets per job (Prometheus's file_sd format).",
)
@click.option(
    "--scrape-interval",
    metavar="DURATION",
    help="How often to scrape.  [default: 5s on this machine, 15s with --kubernetes]",
)
@click.option(
    "--for",
    "collector",
    type=click.Choice(COLLECTORS),
    default="prometheus",
    show_default=True,
    help="Write for Prometheus, vmagent or the OpenTelemetry Collector.",
)
@click.option(
    "--kubernetes",
    is_flag=True,
    help=f"Print jobs that discover a cluster's pods. --certs is the scraper's own path [{CERTIFICATES}].",
)
@click.option(
    "--namespace", "namespaces", multiple=True, help="With --kubernetes: limit to this namespace; repeatable."
)
@click.option(
    "--keep-own-series",
    is_flag=True,
    help="Keep `up` and `scrape_*` that an application exposes, for federation.  [default: drop them]",
)
@click.option(
    "--existing",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With --kubernetes: print this prometheus.yml with the jobs added; comments are kept.",
)
def command(
    state: Path | None, proxy: str | None, discovery: str | None, token_file: Path | None,
    jobs: tuple[str, ...], direct: bool, certs: Path | None, targets: Path | None,
    scrape_interval: str | None,
    collector: str, kubernetes: bool, namespaces: tuple[str, ...],
    keep_own_series: bool, existing: Path | None,
) -> int:  # fmt: skip
    """Print Prometheus's configuration for the running mesh, or with --proxy for your own Prometheus.

    Prometheus scrapes through the scrape proxy, which verifies every target's SPIFFE ID. With --direct,
    targets are not verified, so those jobs have insecure_skip_verify.

    With --kubernetes, print jobs for a scraper in a cluster. With --proxy they scrape through the scrape
    proxy next to it (`meshscrape proxy --kubernetes`), otherwise directly with a workload certificate.
    """
    written_for = cast(Collector, collector)
    interval = parse_duration(
        scrape_interval or ("15s" if kubernetes else "5s"), "--scrape-interval"
    ).total_seconds()
    if kubernetes:
        _refuse_others("--kubernetes", direct=direct, targets=targets, discovery=discovery, job=jobs)
        beside = _beside_scraper(proxy, token_file, certs)
        cluster_jobs = ClusterJobs(
            str(certs or CERTIFICATES), namespaces, keep_own_series=keep_own_series, proxy=beside
        )
        if existing is not None:
            _refuse_others("--existing", **{"for": written_for == "otel"})
            print(_with_secure_jobs(existing, cluster_jobs), end="")
        else:
            print(_of_cluster(written_for, cluster_jobs, interval), end="")
        return 0
    _refuse_others("a mesh on this machine", namespace=namespaces, existing=existing)
    _refuse_without_proxy(proxy, {"--discovery": discovery, "--token-file": token_file, "--job": jobs})
    if (certs or targets) and not direct:
        raise InputError(
            "jobs with --certs and --targets do not verify targets",
            remedy="add --direct to accept that, or use the scrape proxy: --proxy IP:PORT --token-file FILE",
        )
    through: ScrapeProxyAccess | DirectScrapes
    if proxy is not None:
        through = _through_proxy(proxy, discovery, token_file, jobs)
    elif certs is not None and targets is not None:
        through = DirectScrapes(str(certs.absolute()), str(targets.absolute()))
    elif certs is not None or targets is not None:
        raise InputError("--certs and --targets belong together", remedy="give both, or neither")
    else:
        through = _of_running_mesh(state_path(state), direct)
    if isinstance(through, DirectScrapes):
        say("warning: these jobs do not verify their targets (insecure_skip_verify)")
    text = render(ScrapeOptions(through, interval, keep_own_series=keep_own_series))
    print(text if written_for == "prometheus" else collector_text(written_for, yaml.safe_load(text)), end="")
    return 0


def _through_proxy(
    proxy: str, discovery: str | None, token_file: Path | None, jobs: tuple[str, ...]
) -> ScrapeProxyAccess:
    if token_file is None:
        raise InputError("--proxy needs the proxy's token", remedy="add --token-file FILE")
    host, port = parse_host_port(proxy, "--proxy")
    asked = parse_host_port(discovery, "--discovery") if discovery else (host, PROXY_DISCOVERY_PORT)
    return ScrapeProxyAccess(
        host_port(host, port), host_port(*asked), str(token_file.absolute()), jobs or JOBS
    )


def _beside_scraper(proxy: str | None, token_file: Path | None, certs: Path | None) -> ProxyInPod | None:
    """Return the scrape proxy of a scraper in a cluster. Without one, warn that targets are not verified."""
    if proxy is not None:
        _refuse_others("--proxy", certs=certs)
        return _proxy_in_pod(proxy, token_file)
    _refuse_others("--kubernetes without --proxy", **{"token-file": token_file})
    say(
        "warning: these jobs do not verify their targets (insecure_skip_verify); "
        "add --proxy IP:PORT --token-file FILE for jobs through `meshscrape proxy --kubernetes`"
    )
    return None


def _proxy_in_pod(proxy: str, token_file: Path | None) -> ProxyInPod:
    """Return the access to a proxy in a cluster. `token_file` is a path there, not on this machine."""
    if token_file is None or not token_file.is_absolute():
        raise InputError(
            "--proxy needs the proxy's token, as an absolute path",
            remedy="add --token-file FILE, as the scraper's container sees it",
        )
    return ProxyInPod(host_port(*parse_host_port(proxy, "--proxy")), str(token_file))


def _of_cluster(collector: Collector, jobs: ClusterJobs, interval: float) -> str:
    document = {"global": global_settings(interval, min(interval, 10)), "scrape_configs": secure_jobs(jobs)}
    return collector_text(collector, document)


def _with_secure_jobs(path: Path, jobs: ClusterJobs) -> str:
    """Return the user's file with the secure jobs; print the remaining steps to stderr."""
    text = text_of(path, "--existing")
    config = load_text(text, str(path))
    if not isinstance(config, dict):
        raise InputError("not a configuration of Prometheus", where=str(path), remedy="name a prometheus.yml")
    plaintext = plaintext_pod_jobs(config)
    if len(plaintext) > 1 and jobs.proxy is None:
        say(
            f"warning: {', '.join(plaintext)} read pods in plaintext, and this file does not show which: "
            "the labels of their scrapes may change; `meshscrape plan` with the cluster's objects keeps them"
        )
    for advice in existing_advice(config, jobs, plaintext):
        say(f"{advice.action}: {advice.where}: {advice.reason}")
    return rewrite(text, with_secure_jobs(config, jobs, plaintext))


def _refuse_others(chosen: str, **options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        raise InputError(f"{' and '.join(given)} cannot be used with {chosen}", remedy="omit them")


def _refuse_without_proxy(proxy: str | None, options: Mapping[str, object]) -> None:
    """Raise InputError for an option about the scrape proxy of --proxy if there is none."""
    for option, value in options.items():
        if value and proxy is None:
            raise InputError("needs --proxy", where=option, remedy=f"add --proxy IP:PORT, or omit {option}")


def _of_running_mesh(state: Path, direct: bool) -> ScrapeProxyAccess | DirectScrapes:
    document = read_status(state)
    proxy = document["scrapeProxy"]
    if proxy is not None and not direct:
        return ScrapeProxyAccess(proxy["address"], proxy["discovery"], proxy["tokenFile"])
    title = (document["prometheus"] or {}).get("workload")
    for workload in document["workloads"]:
        if f"{workload['namespace']}/{workload['name']}" == title:
            certs = workload["outputCertificates"] or workload["credentials"]
            return DirectScrapes(certs, str(Path(document["stateDirectory"]) / "run/prometheus/targets"))
    raise InputError(
        "the running mesh has no Prometheus",
        where=str(state),
        remedy="give --proxy IP:PORT --token-file FILE for your own",
    )
