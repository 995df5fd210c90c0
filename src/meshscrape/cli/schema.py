"""`meshscrape schema`: the JSON Schemas of the documents that are printed."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import click

from meshscrape.istio.names import DOCUMENT_VERSION

_FOLDER = files("meshscrape.cli").joinpath("schemas", DOCUMENT_VERSION.rpartition("/")[2])


def kinds() -> list[str]:
    """Return the kinds of documents that have a schema, sorted."""
    return sorted(each.name.removesuffix(".json") for each in _FOLDER.iterdir())


def schema(kind: str) -> dict[str, Any]:
    """Return the schema of a kind."""
    found: dict[str, Any] = json.loads(_FOLDER.joinpath(f"{kind}.json").read_text(encoding="utf-8"))
    return found


@click.command()
@click.argument("kind", required=False, type=click.Choice(kinds()), metavar="KIND")
def command(kind: str | None) -> None:
    """Write the JSON Schema of the document KIND, or list the kinds.

    Exit codes: 0 written, 2 no such kind.
    """
    click.echo("\n".join(kinds()) if kind is None else json.dumps(schema(kind), indent=2))
