"""`meshscrape plan`: what must change in a cluster, from its objects alone."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Literal

import click

from meshscrape.cli.intent import OneIsError, intent_options, make_plan
from meshscrape.cli.output import say
from meshscrape.plan.render.diff import plan_text, summary
from meshscrape.plan.render.plan_document import plan_document


@click.command(cls=OneIsError)
@intent_options
@click.option(
    "-o", "--output", type=click.Choice(["diff", "json"]), default="diff", show_default=True, help="Format."
)
def command(output: Literal["diff", "json"], **options: Any) -> int:
    """Tell what must change so that metrics are scraped over mutual TLS, as a readable diff.

    Nothing is changed, and no cluster is needed. Exit codes: 0 no changes, 2 changes, 1 error. Workloads that
    are refused are no changes: the last line names them, and -o json counts them as `refused`.
    """
    _, found = make_plan(**options)
    if output == "json":
        print(json.dumps(plan_document(found), indent=2))
        say(summary(found))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(plan_text(found, colour=colour), end="")
    return 2 if found.changes else 0
