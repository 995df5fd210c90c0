"""`meshscrape rbac`: write the roles that a verb needs in a cluster."""

from __future__ import annotations

import re
import sys

import click
import yaml

from meshscrape.cluster.rights import RULES, rights
from meshscrape.errors import InputError

_ACCOUNT = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-.a-z0-9]*[a-z0-9])?")

# Verbs that need their rights in some namespaces only.
_IN_NAMESPACES = ("proxy", "verify-image")


@click.command()
@click.argument("verb", type=click.Choice(list(RULES)), metavar="VERB")
@click.option(
    "--service-account",
    "account",
    default="meshscrape/meshscrape",
    show_default=True,
    metavar="NAMESPACE/NAME",
    help="Grant the rights to this ServiceAccount.",
)
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NAME",
    help="For proxy and verify-image: grant the rights only in this namespace (repeatable).  [default: the "
    "whole cluster]",
)
def command(verb: str, account: str, namespaces: tuple[str, ...]) -> None:
    """Write the Role that VERB needs in a cluster, and its binding, as YAML.

    VERB is observe, plan, render, apply, remove, verify, verify-image or proxy. No verb reads a Secret; only
    `apply` and `remove` change objects. verify-image is what `verify --image` needs besides verify: it makes
    Jobs, and removes them. Apply it with kubectl. Exit codes: 0 written, 2 error.
    """
    if not _ACCOUNT.fullmatch(account):
        raise InputError(
            f"{account!a} is not the name of a ServiceAccount",
            where="--service-account",
            remedy="write it as NAMESPACE/NAME",
        )
    if namespaces and verb not in _IN_NAMESPACES:
        raise InputError(
            f"{verb} reads the whole cluster: rights in single namespaces are not enough",
            where="--namespace",
            remedy="omit it",
        )
    objects = rights(verb, account=account, namespaces=namespaces)
    yaml.safe_dump_all(objects, sys.stdout, sort_keys=False)
