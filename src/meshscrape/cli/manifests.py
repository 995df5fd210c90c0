"""Reading the objects that the verbs about a cluster work on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from meshscrape.errors import InputError
from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import Inventory, Manifest, load_inventory

_SUFFIXES = (".yaml", ".yml", ".json")
# Not objects of a cluster.
_OTHERS = ("kustomization.yaml", "kustomization.yml", "Chart.yaml", "values.yaml")


def files_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option `-f FILES` of the verbs about a cluster."""
    return click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        required=True,
        metavar="FILE",
        help="Manifests, a directory of them, a dump (kubectl get … -A -o yaml), or - for standard input.",
    )(function)


def read_inventory(names: Sequence[str]) -> Inventory:
    """The objects in files, in directories (their *.yaml, *.yml and *.json, at any depth), and in `-`.

    Raises InputError with the file and line for what cannot be read, and when there is no object at all.
    """
    inventory = load_inventory(manifest for name in names for manifest in _manifests(name))
    if not len(inventory):
        raise InputError("no object in it", where=", ".join(names), remedy="give manifests, or a dump")
    return inventory


def _manifests(name: str) -> Iterator[Manifest]:
    if name == "-":
        yield from load_manifests(sys.stdin, "standard input")
        return
    path = Path(name)
    for file in _files(path) if path.is_dir() else [path]:
        try:
            with file.open(encoding="utf-8") as lines:
                yield from load_manifests(lines, str(file))
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", where=str(file), remedy="give a file or a directory"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError("not UTF-8 text", where=str(file), remedy="give YAML or JSON") from error


def _files(directory: Path) -> list[Path]:
    found = (path for path in directory.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    return sorted(
        path for path in found if path.name not in _OTHERS and not _hidden(path.relative_to(directory))
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
