"""`meshscrape plan`: what must change in a cluster."""

from __future__ import annotations

import sys
from typing import Any, Literal

import click

from meshscrape.cli.intent import DETAILED, DetailedExitCode, intent_options, make_plan
from meshscrape.cli.output import coloured, print_document, say
from meshscrape.plan.render.diff import plan_text, summary
from meshscrape.plan.render.plan_document import plan_document


@click.command(cls=DetailedExitCode)
@intent_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(["diff", "json", "yaml"]),
    default="diff",
    show_default=True,
    help="Format.",
)
@click.option(DETAILED, is_flag=True, help="Exit like terraform: 0 no changes, 2 changes, 1 error.")
def command(output: Literal["diff", "json", "yaml"], detailed_exitcode: bool, **options: Any) -> int:
    """Tell what must change so that metrics are scraped over mutual TLS, as a readable diff.

    Reads the current context's cluster, or files with -f, and changes nothing. The last line says what
    becomes of every chosen workload.
    Exit codes: 0 nothing to do, 1 changes are pending, or something is held back or refused, 2 error.
    """
    _, found = make_plan(**options)
    if output != "diff":
        print_document(plan_document(found), output)
        say(summary(found))
    else:
        print(plan_text(found, colour=coloured(sys.stdout)), end="")
    if detailed_exitcode:
        return 2 if found.changes else 0
    return 1 if found.changes or found.outcome.held or found.outcome.refused else 0
