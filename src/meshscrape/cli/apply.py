"""`meshscrape apply`: the plan, applied to a live cluster."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import click

from meshscrape.cli.intent import live_intent_options, make_intent, plan_for
from meshscrape.cli.live import chosen_access, progress
from meshscrape.cli.output import coloured, say
from meshscrape.cluster.applying import Applier, ApplyOptions, PlannedCluster
from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory
from meshscrape.plan.model import PHASES, Phase
from meshscrape.plan.render.diff import plan_text, summary


@click.command()
@live_intent_options
@click.option(
    "--phase",
    "phases",
    multiple=True,
    type=click.Choice(PHASES),
    help="Apply this phase only (repeatable). Default: all, each after the one before has taken effect.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before the first change.")
@click.option(
    "--dry-run", is_flag=True, help="Let the API server and its webhooks check every change; change nothing."
)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1, 86400),
    metavar="SECONDS",
    help="How long a phase may take until its pods are ready and its targets are up.",
)
def command(phases: tuple[Phase, ...], yes: bool, dry_run: bool, timeout: float, **options: Any) -> int:
    """Apply the plan to the current context's cluster, phase by phase.

    Shows the plan and asks first. After each phase it waits until every pod is ready; before a plaintext port
    is closed, every moved target must be up in Prometheus. It stops at the first step that fails, and goes on
    when it is run again. Objects that Argo CD, Flux, Helm or OLM track are never changed.
    Exit codes: 0 everything chosen is secured, 1 stopped or held back, 2 could not run.
    """
    intent = make_intent(**options)

    def planner(inventory: Inventory) -> PlannedCluster:
        return PlannedCluster(inventory, *plan_for(inventory, intent))

    access = chosen_access()
    holder = f"{socket.gethostname()}/{os.getpid()}"
    applying = ApplyOptions(phases=phases, timeout=timeout, dry_run=dry_run, holder=holder)
    with progress(access) as told:
        reading = asyncio.run(Applier(access, planner, applying, told).read())
    print(plan_text(reading.plan, colour=coloured(sys.stdout)), end="")
    if not reading.plan.changes:
        return _code(reading)
    if not (yes or dry_run):
        _confirm(access.place)
    with progress(access) as told:
        applier = Applier(access, planner, applying, told if sys.stderr.isatty() else _line)
        reading = asyncio.run(applier.apply(reading))
    say("the API server accepts every change" if dry_run else summary(reading.plan))
    return 0 if dry_run else _code(reading)


def _line(text: str) -> None:
    """Write a step of an apply to a log; the single lists of a reading are too many."""
    if not text.startswith("read "):
        say(text)


def _confirm(place: str) -> None:
    if not sys.stdin.isatty():
        raise InputError(
            "the plan cannot be confirmed: standard input is not a terminal", remedy="give --yes"
        )
    if click.prompt(f"Apply these changes to {place}? Only 'yes' is accepted", default="no") != "yes":
        raise click.Abort


def _code(reading: PlannedCluster) -> int:
    outcome = reading.plan.outcome
    return 1 if reading.plan.changes or outcome.held or outcome.refused else 0
