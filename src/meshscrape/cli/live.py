"""Read the objects of a live cluster for the verbs that also read manifests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from meshscrape.cli.output import coloured
from meshscrape.cluster.kubeconfig import Access
from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory

# The files that the user names as plain arguments; only verbs that read files have it.
FILES = "meshscrape.files"
_KUBECONFIG = "meshscrape.kubeconfig"
_CONTEXT = "meshscrape.context"
_CONTROL = "meshscrape.control_plane_kubeconfig"


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--kubeconfig FILE` and `--context NAME`, which choose the cluster to read."""
    kubeconfig = click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        callback=_keep,
        help="Read the cluster of this kubeconfig.  [default: $KUBECONFIG, the pod's ServiceAccount, "
        "~/.kube/config]",
    )
    context = click.option(
        "--context",
        metavar="NAME",
        expose_value=False,
        callback=_keep,
        help="Read the cluster of this context.  [default: the kubeconfig's current context]",
    )
    control = click.option(
        "--control-plane-kubeconfig",
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        callback=_keep,
        help="Kubeconfig of the API server with Istio's objects, if it is another one (ASM).",
    )
    return kubeconfig(context(control(function)))


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> object:
    context.meta[f"meshscrape.{parameter.name}"] = value
    return value


def refuse_cluster_options() -> None:
    """Raise InputError if both files and a cluster are given: only one of them can be read."""
    meta = click.get_current_context().meta
    options = (
        (_KUBECONFIG, "--kubeconfig"),
        (_CONTEXT, "--context"),
        (_CONTROL, "--control-plane-kubeconfig"),
    )
    for key, option in options:
        if meta.get(key):
            raise InputError(
                "files and a cluster cannot both be read", where=option, remedy="omit one of them"
            )


def cluster_is_chosen() -> bool:
    """Return whether an option names the cluster."""
    meta = click.get_current_context().meta
    return any(meta.get(key) for key in (_KUBECONFIG, _CONTEXT, _CONTROL))


def live_inventory() -> Inventory:
    """Return the objects of the cluster that the options name, with progress on a terminal.

    Raises InputError without a usable kubeconfig or without a right. Raises UnavailableError without an API
    server.
    """
    from meshscrape.cluster.dump import read_cluster

    access = chosen_access()
    with progress(access) as told:
        return Inventory(asyncio.run(read_cluster(access, told)))


@contextmanager
def progress(access: Access) -> Iterator[Callable[[str], None]]:
    """Provide a function that shows what goes on at a cluster, in one line of a terminal's standard error."""
    errors = Console(stderr=True, color_system="auto" if coloured(sys.stderr) else None)
    if not errors.is_terminal:
        yield lambda line: None
        return
    with errors.status(escape(access.place)) as status:
        yield lambda line: status.update(escape(f"{access.place}: {line}"))


def chosen_access() -> Access:
    """Return the access to the cluster that the options name."""
    from meshscrape.cluster.access import find_access

    context = click.get_current_context()
    meta = context.meta
    try:
        found = find_access(meta.get(_KUBECONFIG), meta.get(_CONTEXT) or "")
        control = meta.get(_CONTROL)
        return replace(found, control=find_access(control)) if control else found
    except InputError as error:
        reads_files = FILES in meta
        if error.code != "no-cluster" or not reads_files:
            raise
        raise InputError(
            "there is neither a kubeconfig nor a file to read",
            where=error.place,
            remedy="give manifests (FILE), or a cluster with --kubeconfig FILE; --example shows a small one",
            code=error.code,
        ) from None
