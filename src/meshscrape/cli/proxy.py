"""`meshscrape proxy`: the scrape proxy next to a Prometheus."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshscrape.istio.names import MESHSCRAPE_ENVOY, MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION

if TYPE_CHECKING:
    from meshscrape.proxy.discovery import Source

DEFAULT_LISTEN = "127.0.0.1:15094"
LAST_TARGETS = "last-targets.json"
LAST_SHARED = "last-shared-targets.json"
DEFAULT_DISCOVERY = "127.0.0.1:15095"


def default_directory() -> Path:
    """Return `$XDG_STATE_HOME/meshscrape-proxy`, by default `~/.local/state/meshscrape-proxy`."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "meshscrape-proxy"


@click.command()
@click.option(
    "--credentials",
    "credentials",
    multiple=True,
    metavar="[TRUST_DOMAIN=]DIR",
    help="Directory with certificate and key (shown to targets) and roots (verify targets), for targets of "
    "TRUST_DOMAIN; by default the certificate's own. Files: cert-chain.pem, key.pem, root-cert.pem; or "
    "tls.crt, tls.key, ca.crt; or svid.pem, svid_key.pem, svid_bundle.pem. Repeatable.",
)
@click.option(
    "--targets",
    "targets",
    multiple=True,
    metavar="[JOB=]FILE",
    help="Target file: Prometheus's file_sd format with the label __meshscrape_spiffe_id, followed while the "
    "proxy runs. The job is by default the file's name without suffix. Repeatable.",
)
@click.option(
    "--mesh",
    "meshes",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Scrape the targets of the mesh of `meshscrape up --state DIR`. Repeatable.",
)
@click.option(
    "--follow",
    default="",
    metavar="IP:PORT",
    help="Scrape the targets of another scrape proxy (its --discovery), which watches a cluster for several.",
)
@click.option(
    "--follow-token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The other proxy's token, for --follow.",
)
@click.option("--kubernetes", is_flag=True, help="Scrape the pods of a Kubernetes cluster.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For --kubernetes.  [default: $KUBECONFIG, the pod's ServiceAccount, ~/.kube/config]",
)
@click.option(
    "--context", default="", metavar="NAME", help="The kubeconfig's context.  [default: the current]"
)
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NAME",
    help="Watch the pods of this namespace only (repeatable). A Role in it is enough.",
)
@click.option("--selector", default="", metavar="SELECTOR", help="Watch pods with these labels only.")
@click.option(
    "--trust-domain",
    default="",
    metavar="NAME",
    help="The trust domain of the cluster's pods.  [default: that of the first --credentials]",
)
@click.option(
    "--trust-domain-alias",
    "aliases",
    multiple=True,
    metavar="[TRUST_DOMAIN=]NAME",
    help="Another trust domain that targets' certificates may have while the trust domain is renamed. "
    "TRUST_DOMAIN defaults to that of the first --credentials. Repeatable.",
)
@click.option(
    "--id-template",
    default="",
    metavar="PATH",
    help="With --kubernetes: the path of the pods' SPIFFE IDs, with {namespace}, {account}, {pod} and "
    "{label:KEY}.  [default: /ns/{namespace}/sa/{account}]",
)
@click.option(
    "--listen", default=DEFAULT_LISTEN, show_default=True, metavar="IP:PORT", help="Address for scrapes."
)
@click.option(
    "--discovery",
    default=DEFAULT_DISCOVERY,
    show_default=True,
    metavar="IP:PORT",
    help="Address for HTTP SD (/targets/JOB) and /metrics.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The proxy's own directory.  [default: $XDG_STATE_HOME/meshscrape-proxy]",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with the bearer token of the jobs; created (0600) if missing.  [default: token, in --dir]",
)
@click.option(
    "--role",
    type=click.Choice(["all", "routes", "envoy"]),
    default="all",
    show_default=True,
    help="Run Envoy and what keeps its routes together, or each as a process of its own with the same --dir. "
    "An Envoy of its own goes on when the other process dies.",
)
@click.option(
    "--applications",
    is_flag=True,
    help="With --kubernetes: also scrape applications' own metrics ports, by their pods' annotations.",
)
@click.option(
    "--share-token",
    is_flag=True,
    help="Make the token file readable by every user (0644): for a volume that only the containers of "
    "Prometheus's pod mount.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Do not run. Exit with 0 if the proxy at --discovery is ready, else with 1: for a pod's probe.",
)
@click.option("--remote", is_flag=True, help="Allow addresses that other machines can reach.")
@click.option(
    "--wait",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="Seconds to wait for the credentials at the start.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Envoy's threads.")
def command(
    credentials: tuple[str, ...], targets: tuple[str, ...], meshes: tuple[Path, ...], follow: str,
    follow_token_file: Path | None, kubernetes: bool,
    kubeconfig: Path | None, context: str, namespaces: tuple[str, ...], selector: str, trust_domain: str,
    aliases: tuple[str, ...], id_template: str, listen: str, discovery: str, directory: Path | None,
    token_file: Path | None, role: str, applications: bool, share_token: bool, check: bool, remote: bool,
    wait: float, workers: int,
) -> int:  # fmt: skip
    """Run the scrape proxy until SIGTERM: it verifies the SPIFFE ID of each target that Prometheus scrapes.

    `meshscrape prometheus-config --proxy` writes the scrape jobs. docs/scrape-proxy.md has the rest.
    Exit codes: 0 stopped by a signal (--check: ready), 1 (--check) not ready, 2 could not run.
    """
    from meshscrape.errors import InputError
    from meshscrape.istio.host_port import parse_host_port
    from meshscrape.proxy.discovery import target_file_source
    from meshscrape.proxy.options import ProxyOptions
    from meshscrape.proxy.remembered import RememberedSource
    from meshscrape.proxy.run import run, run_envoy

    own = directory or default_directory()
    if check:
        return _checked(discovery, token_file or own / "token")
    named = os.environ.get(MESHSCRAPE_ENVOY)
    if role == "envoy":
        run_envoy(own, Path(named) if named else None, workers, wait)
    if not credentials:
        raise InputError("there are no credentials", remedy="give --credentials DIR")
    if not targets and not meshes and not kubernetes and not follow:
        raise InputError(
            "no source of targets given",
            remedy="give --targets FILE, --mesh DIR, --kubernetes or --follow IP:PORT",
        )
    directories = [domain_and_directory(each) for each in credentials]
    sources: list[Source] = [target_file_source(path, job) for job, path in map(_job_and_file, targets)]
    if kubernetes:
        from meshscrape.cluster.access import find_access
        from meshscrape.cluster.pod_source import PodScope
        from meshscrape.cluster.proxy_source import pod_source
        from meshscrape.spiffe.templates import IdTemplate

        pods = pod_source(
            find_access(kubeconfig, context),
            PodScope(namespaces, selector),
            trust_domain=trust_domain,
            applications=applications,
            template=IdTemplate(id_template) if id_template else None,
            credentials=directories,
            patience=wait,
        )
        sources.append(RememberedSource(pods, own / LAST_TARGETS))
    if follow:
        sources.append(RememberedSource(_shared(follow, follow_token_file), own / LAST_SHARED))
    sources += _mesh_sources(meshes)
    options = ProxyOptions(
        listen=parse_host_port(listen, "--listen"),
        discovery=parse_host_port(discovery, "--discovery"),
        directory=own,
        token_file=token_file or own / "token",
        credentials=directories,
        sources=sources,
        aliases=[_alias(each) for each in aliases],
        share_token=share_token,
        separate_envoy=role == "routes",
        remote=remote,
        workers=workers,
        patience=wait,
        requests_per_connection=_requests_per_connection(),
        envoy=Path(named) if named else None,
    )
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s proxy: %(message)s"
    )
    run(options)
    return 0


def _checked(discovery: str, token_file: Path) -> int:
    from meshscrape.istio.host_port import parse_host_port
    from meshscrape.proxy.readiness import why_not_ready

    reason = why_not_ready(parse_host_port(discovery, "--discovery"), token_file)
    if reason:
        print(f"not ready: {reason}", file=sys.stderr)
    return 1 if reason else 0


def _shared(address: str, token_file: Path | None) -> Source:
    from meshscrape.errors import InputError
    from meshscrape.istio.host_port import parse_host_port
    from meshscrape.prometheus.targets import JOBS
    from meshscrape.proxy.shared import SharedSource

    if token_file is None:
        raise InputError("--follow needs the other proxy's token", remedy="add --follow-token-file FILE")
    return SharedSource(parse_host_port(address, "--follow"), token_file, JOBS)


def _mesh_sources(meshes: tuple[Path, ...]) -> list[Source]:
    if not meshes:
        return []
    from meshscrape.local.discovery import mesh_source

    return [mesh_source(path) for path in meshes]


def _requests_per_connection() -> int:
    """Return how many requests a connection to a target may carry; 0 sets no limit."""
    from meshscrape.errors import InputError

    requests = os.environ.get(MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION, "0")
    if not requests.isdecimal():
        raise InputError(
            f"{requests!a} is not a number of requests", where=MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION
        )
    return int(requests)


def _job_and_file(text: str) -> tuple[str, Path]:
    job, equals, path = text.partition("=")
    return (job, Path(path)) if equals and "/" not in job else (Path(text).stem, Path(text))


def _alias(text: str) -> tuple[str, str]:
    from meshscrape.spiffe.ids import check_trust_domain

    domain, equals, alias = text.partition("=")
    return (
        (check_trust_domain(domain), check_trust_domain(alias)) if equals else ("", check_trust_domain(text))
    )


def domain_and_directory(text: str) -> tuple[str, Path]:
    """Split `[TRUST_DOMAIN=]DIR`; the name is empty if missing. Raise InputError for an invalid name."""
    from meshscrape.spiffe.ids import check_trust_domain

    name, equals, path = text.partition("=")
    return (check_trust_domain(name), Path(path)) if equals and "/" not in name else ("", Path(text))
