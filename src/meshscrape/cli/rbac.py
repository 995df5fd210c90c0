"""`meshscrape rbac`: write the roles that a verb needs in a cluster."""

from __future__ import annotations

import re
import sys

import click
import yaml

from meshscrape.cluster.rights import RULES, rights
from meshscrape.errors import InputError

_ACCOUNT = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


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
    help="For proxy: grant the rights only in this namespace (repeatable). Default: in the whole cluster.",
)
def command(verb: str, account: str, namespaces: tuple[str, ...]) -> None:
    """Write the Role that VERB needs in a cluster, and its binding, as YAML.

    VERB is observe, plan, render, apply, remove, verify or proxy. No verb reads a Secret; only `apply` and
    `remove` change objects. Apply it with kubectl. Exit codes: 0 written, 2 error.
    """
    if not _ACCOUNT.fullmatch(account):
        raise InputError(
            f"{account!a} is not the name of a ServiceAccount",
            where="--service-account",
            remedy="write it as NAMESPACE/NAME",
        )
    if namespaces and verb != "proxy":
        raise InputError(
            f"{verb} reads the whole cluster: rights in single namespaces are not enough",
            where="--namespace",
            remedy="omit it",
        )
    objects = rights(verb, account=account, namespaces=namespaces)
    yaml.safe_dump_all(objects, sys.stdout, sort_keys=False)
