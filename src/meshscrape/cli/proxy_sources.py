"""The options of `meshscrape proxy` that name its sources of targets, and the sources themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshscrape.cli.options import gathered, path_option, text_option, within_option
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
    follow_id: str
    follow_token_file: Path | None
    follow_plaintext: bool
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
        help="Scrape the targets of another scrape proxy (its --share), which watches a cluster for several. "
        "Mutual TLS with the first --credentials.",
    ),
    text_option(
        "--follow-id", metavar="SPIFFE_ID",
        help="With --follow: the other proxy's SPIFFE ID.  [default: that of the first --credentials]",
    ),
    path_option(
        "--follow-token-file",
        help="With --follow: ask the other proxy's --discovery with its token instead, in plaintext.",
    ),
    click.option(
        "--follow-plaintext", is_flag=True,
        help="With --follow-token-file: send the token in plaintext to another machine.",
    ),
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
        yield RememberedSource(_shared(chosen, credentials, patience), own / LAST_SHARED)
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


def _shared(chosen: ChosenSources, credentials: Sequence[tuple[str, Path]], patience: float) -> Source:
    """Return the source of `--follow`: over mutual TLS, or with a token in plaintext if that is asked for."""
    from meshscrape.istio.host_port import parse_host_port
    from meshscrape.prometheus.targets import JOBS
    from meshscrape.proxy.following import FollowedProxy, VerifiedLink, plaintext_link
    from meshscrape.spiffe.ids import SpiffeId

    address = parse_host_port(chosen.follow, "--follow")
    if chosen.follow_token_file is None:
        with within_option("--follow-id"):
            expected = SpiffeId.parse(chosen.follow_id) if chosen.follow_id else None
        return FollowedProxy(address, VerifiedLink(credentials, expected, patience), JOBS)
    if chosen.follow_id:
        raise InputError(
            "a proxy that is asked in plaintext proves no SPIFFE ID",
            where="--follow-id",
            remedy="omit --follow-token-file, or --follow-id",
        )
    if not _is_loopback(address[0]) and not chosen.follow_plaintext:
        raise InputError(
            "the token would cross the network in plaintext",
            where="--follow",
            remedy="use the other proxy's --share without --follow-token-file, or add --follow-plaintext",
        )
    return FollowedProxy(address, plaintext_link(chosen.follow_token_file), JOBS)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _job_and_file(text: str) -> tuple[str, Path]:
    job, equals, path = text.partition("=")
    return (job, Path(path)) if equals and "/" not in job else (Path(text).stem, Path(text))
