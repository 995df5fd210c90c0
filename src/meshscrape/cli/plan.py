"""`meshscrape plan`: show what must change in a cluster."""

from __future__ import annotations

import sys
from typing import Any

import click

from meshscrape.cli.intent import DETAILED, DetailedExitCode, intent_options, make_plan
from meshscrape.cli.output import coloured, print_document, say
from meshscrape.cli.pipeline import FORMATS, pipeline_options, print_results, read_options
from meshscrape.errors import InputError
from meshscrape.observe.model import Severity
from meshscrape.plan.render.diff import plan_text, summary
from meshscrape.plan.render.plan_document import plan_document
from meshscrape.plan.render.plan_results import plan_results


@click.command(cls=DetailedExitCode)
@intent_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(["diff", "json", "yaml", *FORMATS]),
    default="diff",
    show_default=True,
    help="Format.",
)
@pipeline_options
@click.option(DETAILED, is_flag=True, help="Exit like terraform: 0 no changes, 2 changes, 1 error.")
def command(
    output: str, detailed_exitcode: bool, fail_on: Severity | None, suppress: tuple[str, ...],
    ignore_annotations: bool, **options: Any,
) -> int:  # fmt: skip
    """Show what must change so that metrics are scraped over mutual TLS, as a readable diff.

    It reads the current context's cluster, or files with -f, and changes nothing. The last line counts the
    chosen workloads by outcome.
    Exit codes: 0 nothing to do, 1 changes are pending, or something is held back or refused, 2 error. With
    --fail-on, a refusal is an error, a held-back change a warning; notes and pending changes are infos.
    """
    if fail_on and detailed_exitcode:
        raise InputError(f"{DETAILED} and --fail-on define different exit codes", remedy="omit one of them")
    asked = read_options(fail_on, suppress, ignore_annotations)
    inventory, found = make_plan(**options)
    results = asked.judge(plan_results(found, inventory), inventory)
    if output in FORMATS:
        print_results(results, output, "plan", fail_on)
        say(summary(found))
    elif output != "diff":
        print_document(plan_document(found), output)
        say(summary(found))
    else:
        print(plan_text(found, colour=coloured(sys.stdout)), end="")
    if fail_on:
        return 1 if asked.failed(results) else 0
    if detailed_exitcode:
        return 2 if found.changes else 0
    return 1 if found.changes or found.outcome.held or found.outcome.refused else 0
