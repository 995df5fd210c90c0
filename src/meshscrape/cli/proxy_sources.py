"""The options of `meshscrape proxy` that name its sources of targets, and the sources themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshscrape.cli.options import gathered, path_option, text_option
from meshscrape.errors import InputError

if TYPE_CHECKING:
    from meshscrape.proxy.discovery import Source

LAST_TARGETS = "last-targets.json"
LAST_SHARED = "last-shared-targets.json"


@dataclass(frozen=True, slots=True)
class ChosenSources:
    """The values of the options, each under its option's name."""

    targets: tuple[str, ...]
    meshes: tuple[Path, ...]
    follow: str
    follow_token_file: Path | None
    kubernetes: bool
    kubeconfig: Path | None
    context: str
    namespaces: tuple[str, ...]
    selector: str
    trust_domain: str
    id_template: str
    applications: bool


_OPTIONS = (
    text_option(
        "--targets", metavar="[JOB=]FILE", multiple=True,
        help="Target file: Prometheus's file_sd format with the label __meshscrape_spiffe_id, followed while "
        "the proxy runs. The job is by default the file's name without suffix. Repeatable.",
    ),
    path_option(
        "--mesh", "meshes", metavar="DIR", multiple=True,
        help="Scrape the targets of the mesh of `meshscrape up --state DIR`. Repeatable.",
    ),
    text_option(
        "--follow", metavar="IP:PORT",
        help="Scrape the targets of another scrape proxy (its --discovery), which watches a cluster for "
        "several.",
    ),
    path_option("--follow-token-file", help="The other proxy's token, for --follow."),
    click.option("--kubernetes", is_flag=True, help="Scrape the pods of a Kubernetes cluster."),
    path_option(
        "--kubeconfig",
        help="For --kubernetes.  [default: $KUBECONFIG, the pod's ServiceAccount, ~/.kube/config]",
    ),
    text_option("--context", metavar="NAME", help="The kubeconfig's context.  [default: the current]"),
    text_option(
        "-n", "--namespace", "namespaces", metavar="NAME", multiple=True,
        help="Watch the pods of this namespace only (repeatable). A Role in it is enough.",
    ),
    text_option("--selector", metavar="SELECTOR", help="Watch pods with these labels only."),
    text_option(
        "--trust-domain", metavar="NAME",
        help="The trust domain of the cluster's pods.  [default: that of the first --credentials]",
    ),
    text_option(
        "--id-template", metavar="PATH",
        help="With --kubernetes: the path of the pods' SPIFFE IDs, with {namespace}, {account}, {pod} and "
        "{label:KEY}.  [default: /ns/{namespace}/sa/{account}]",
    ),
    click.option(
        "--applications", is_flag=True,
        help="With --kubernetes: also scrape applications' own metrics ports, by their pods' annotations.",
    ),
)  # fmt: skip

# A command with these options gets them as one value, `chosen`.
source_options = gathered(_OPTIONS, "chosen", ChosenSources)


def sources_of(
    chosen: ChosenSources, own: Path, credentials: Sequence[tuple[str, Path]], patience: float
) -> list[Source]:
    """Return the chosen sources of targets. The proxy's directory `own` keeps the last targets of some.

    Raises InputError when there is none.
    """
    sources = list(_sources(chosen, own, credentials, patience))
    if not sources:
        raise InputError(
            "no source of targets given",
            remedy="give --targets FILE, --mesh DIR, --kubernetes or --follow IP:PORT",
        )
    return sources


def _sources(
    chosen: ChosenSources, own: Path, credentials: Sequence[tuple[str, Path]], patience: float
) -> Iterator[Source]:
    from meshscrape.proxy.discovery import target_file_source
    from meshscrape.proxy.remembered import RememberedSource

    for job, path in map(_job_and_file, chosen.targets):
        yield target_file_source(path, job)
    if chosen.kubernetes:
        yield RememberedSource(_pods(chosen, credentials, patience), own / LAST_TARGETS)
    if chosen.follow:
        yield RememberedSource(_shared(chosen.follow, chosen.follow_token_file), own / LAST_SHARED)
    if chosen.meshes:
        from meshscrape.local.discovery import mesh_source

        yield from map(mesh_source, chosen.meshes)


def _pods(chosen: ChosenSources, credentials: Sequence[tuple[str, Path]], patience: float) -> Source:
    from meshscrape.cluster.access import find_access
    from meshscrape.cluster.pod_source import PodScope
    from meshscrape.cluster.proxy_source import pod_source
    from meshscrape.spiffe.templates import IdTemplate

    return pod_source(
        find_access(chosen.kubeconfig, chosen.context),
        PodScope(chosen.namespaces, chosen.selector),
        trust_domain=chosen.trust_domain,
        applications=chosen.applications,
        template=IdTemplate(chosen.id_template) if chosen.id_template else None,
        credentials=credentials,
        patience=patience,
    )


def _shared(address: str, token_file: Path | None) -> Source:
    from meshscrape.istio.host_port import parse_host_port
    from meshscrape.prometheus.targets import JOBS
    from meshscrape.proxy.shared import SharedSource

    if token_file is None:
        raise InputError("--follow needs the other proxy's token", remedy="add --follow-token-file FILE")
    return SharedSource(parse_host_port(address, "--follow"), token_file, JOBS)


def _job_and_file(text: str) -> tuple[str, Path]:
    job, equals, path = text.partition("=")
    return (job, Path(path)) if equals and "/" not in job else (Path(text).stem, Path(text))
