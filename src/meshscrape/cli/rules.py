"""`meshscrape rules`: print alerting and recording rules, as a rules file or as a PrometheusRule."""

from __future__ import annotations

import re
import sys

import click

from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.kube.yaml_text import dump
from meshscrape.prometheus.options import MANAGED_LABELS
from meshscrape.prometheus.rules import RUNBOOK, RuleOptions, prometheus_rule, rules_file
from meshscrape.prometheus.targets import JOBS, MERGED_JOB

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def key_values(pairs: tuple[str, ...], where: str) -> dict[str, str]:
    """Return options of the form KEY=VALUE as a mapping. Raise InputError for another form."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(
                f"{pair!r} is not KEY=VALUE", where=where, remedy="write it like release=monitoring"
            )
        found[key] = value
    return found


@click.command()
@click.option(
    "--for",
    "target",
    type=click.Choice(["file", "operator"]),
    default="file",
    show_default=True,
    help="Print a rules file, or a PrometheusRule of the Prometheus Operator.",
)
@click.option("--namespace", default="monitoring", show_default=True, help="Namespace of the PrometheusRule.")
@click.option("--name", default="meshscrape", show_default=True, help="Name of the PrometheusRule.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="Label of the PrometheusRule, for the ruleSelector of the Prometheus object; repeatable.",
)
@click.option(
    "--certificate-left",
    default="6h",
    show_default=True,
    metavar="DURATION",
    help="Warn if a workload certificate has less time left than this.",
)
@click.option(
    "--root-left",
    default="720h",
    show_default=True,
    metavar="DURATION",
    help="Warn if a root has less time left than this.",
)
@click.option(
    "--job",
    "jobs",
    multiple=True,
    type=click.Choice(JOBS),
    default=(MERGED_JOB,),
    show_default=True,
    help="A job that must have targets; repeatable.",
)
@click.option(
    "--runbook-url",
    "runbook",
    default=RUNBOOK,
    show_default=True,
    metavar="URL",
    help="Where you serve docs/runbook.md; every alert's runbook_url is its section there.",
)
@click.option(
    "--cluster-label",
    default="",
    metavar="LABEL",
    help="Keep this label in every alert, for one rule engine over several clusters (ThanosRuler, Mimir).",
)
def command(
    target: str,
    namespace: str,
    name: str,
    labels: tuple[str, ...],
    certificate_left: str,
    root_left: str,
    jobs: tuple[str, ...],
    runbook: str,
    cluster_label: str,
) -> int:
    """Print the alerting rules, and the recording rules of `meshscrape dashboard --recorded`.

    docs/runbook.md has a section for each alert, and `meshscrape explain --code ALERT` prints it.

    Exit codes: 0 written, 2 could not run.
    """
    if cluster_label and not _LABEL.fullmatch(cluster_label):
        raise InputError(
            f"{cluster_label!a} is not the name of a label", where="--cluster-label", remedy="write cluster"
        )
    options = RuleOptions(
        _seconds(certificate_left, "--certificate-left"),
        _seconds(root_left, "--root-left"),
        jobs,
        runbook=runbook,
        cluster_label=cluster_label,
    )
    own = key_values(labels, "--label")
    if "://" not in runbook:
        print(
            "meshscrape: the alerts' runbook_url is relative; say with --runbook-url where you serve"
            " docs/runbook.md",
            file=sys.stderr,
        )
    chosen = {**own, **MANAGED_LABELS}
    if target == "file":
        print(rules_file(options), end="")
    else:
        print(dump(prometheus_rule(options, name, namespace, chosen)), end="")
    return 0


def _seconds(text: str, where: str) -> int:
    seconds = int(parse_duration(text, where).total_seconds())
    if seconds <= 0:
        raise InputError(f"{text} is not positive", where=where, remedy="use a positive duration such as 6h")
    return seconds
