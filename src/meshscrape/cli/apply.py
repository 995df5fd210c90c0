"""`meshscrape apply`: the plan, applied to a live cluster."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from meshscrape.cli.intent import live_intent_options, make_intent, plan_for
from meshscrape.cli.live import chosen_access, progress
from meshscrape.cli.options import Decorator, gathered, seconds_option
from meshscrape.cli.output import coloured, say
from meshscrape.cluster.applying import Applier, ApplyOptions, PlannedCluster
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.permissions import MissingRightsError
from meshscrape.cluster.waves import Window, interrupted
from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory
from meshscrape.plan.model import PHASES, Phase
from meshscrape.plan.render.diff import plan_text, summary

Planner = Callable[[Inventory], PlannedCluster]


_OPTIONS = (
    click.option("-y", "--yes", is_flag=True, help="Do not ask before the first change."),
    click.option(
        "--dry-run",
        is_flag=False,
        flag_value="server",
        type=click.Choice(["server"]),
        help="Let the API server and its webhooks check every change; change nothing.",
    ),
    seconds_option(
        "--timeout",
        default=600.0,
        least=1,
        most=86400,
        help="How long a phase may take until its pods are ready and its targets are up.",
    ),
    click.option(
        "--canary",
        "canaries",
        multiple=True,
        metavar="NAMESPACE/NAME",
        help="Restart this workload first in each phase (repeatable). The others follow namespace by "
        "namespace, when it is ready.",
    ),
    seconds_option(
        "--pause",
        default=0.0,
        least=0,
        most=86400,
        help="Wait this long between the waves of a phase.",
    ),
    click.option(
        "--window",
        metavar="HH:MM-HH:MM",
        help="Begin waves only within this time of day (UTC), and wait for it.",
    ),
    click.option(
        "--yes-interruption",
        is_flag=True,
        help="Do not ask before workloads restart that serve nothing meanwhile: a single pod of a "
        "StatefulSet, Recreate, OnDelete.",
    ),
    click.option(
        "--max-lost-scrapes",
        "max_lost",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        metavar="N",
        help="Stop when more scrapes than this are lost: a target of a ready pod was up and is down.",
    ),
    click.option(
        "--max-head-series",
        "max_series",
        type=click.IntRange(1),
        metavar="N",
        help="Stop when a Prometheus has this many series in its head block. Every moved or restarted target "
        "has new series, and the old ones stay for up to three hours. Default: no bound.",
    ),
    click.option(
        "--wait-for-gitops",
        "gitops",
        is_flag=False,
        flag_value=86400.0,
        type=click.FloatRange(1, 30 * 86400),
        metavar="[SECONDS]",
        help="Let Argo CD, Flux, Helm or OLM change what they track, and wait for that in each phase "
        "(a day, unless SECONDS are given). Default: refuse a plan with such objects.",
    ),
    click.option(
        "--reconcile-interval",
        "reconcile",
        type=click.FloatRange(0, 86400),
        metavar="SECONDS",
        help="Wait this long after each phase, then check that nothing was taken back. Default: 180 s beside "
        "objects that Argo CD or OLM track, 600 s beside those of Flux, else 0.",
    ),
)


def live_options(phases: Sequence[Phase]) -> Decorator:
    """Return a decorator that adds the options of a run on a cluster, most of them as `applying`."""
    phase = click.option(
        "--phase",
        "phases",
        multiple=True,
        type=click.Choice(phases),
        help="Run this phase only (repeatable). Default: all, each when the one before has taken effect.",
    )
    return gathered((phase, *_OPTIONS), "applying", _applying)


def _applying(
    *,
    phases: tuple[Phase, ...],
    dry_run: str | None,
    timeout: float,
    canaries: tuple[str, ...],
    pause: float,
    window: str | None,
    max_lost: int,
    max_series: int | None,
    gitops: float | None,
    reconcile: float | None,
) -> ApplyOptions:
    return ApplyOptions(
        phases=phases,
        timeout=timeout,
        dry_run=bool(dry_run),
        holder=f"{socket.gethostname()}/{os.getpid()}",
        verb=str(click.get_current_context().info_name),
        canaries=frozenset(canaries),
        pause=pause,
        window=Window.parse(window) if window else None,
        max_lost=max_lost,
        max_series=max_series,
        gitops=gitops,
        reconcile=reconcile,
    )


@click.command()
@live_intent_options
@live_options(PHASES)
def command(yes: bool, yes_interruption: bool, applying: ApplyOptions, **options: Any) -> int:
    """Apply the plan to the current context's cluster, phase by phase.

    Shows the plan and asks first. After each phase it waits until every pod is ready; before a plaintext port
    is closed, every moved target must be up in Prometheus. It stops at the first step that fails and at the
    first scrape that is lost, and goes on when it is run again. Objects that Argo CD, Flux, Helm or OLM track
    are never changed.
    Exit codes: 0 everything chosen is secured, 1 stopped or held back, 2 could not run.
    """
    intent = make_intent(**options)

    def planner(inventory: Inventory) -> PlannedCluster:
        return PlannedCluster(inventory, *plan_for(inventory, intent))

    access = chosen_access()
    run = running(access, planner, applying)
    with progress(access) as told:
        reading = asyncio.run(run(told).read())
    print(plan_text(reading.plan, colour=coloured(sys.stdout)), end="")
    if not reading.plan.changes:
        return _code(reading)
    if not applying.dry_run:
        if not yes:
            confirm(f"Apply these changes to {access.place}?", "--yes")
        confirm_interruption(reading, applying, yes=yes_interruption)
    reading = finish(access, run, reading)
    say("the API server accepts every change" if applying.dry_run else summary(reading.plan))
    return 0 if applying.dry_run else _code(reading)


def running(access: Access, planner: Planner, applying: ApplyOptions) -> Callable[..., Applier]:
    """Return a function that makes the applier of a run, given what shows its progress.

    With `log`, its steps are lines of a log where standard error is no terminal.
    """

    def make(told: Callable[[str], None], *, log: bool = False) -> Applier:
        shown = _line if log and not sys.stderr.isatty() else told
        return Applier(access, planner, applying, shown)

    return make


def finish(access: Access, run: Callable[..., Applier], reading: PlannedCluster) -> PlannedCluster:
    """Apply what was read and shown, with progress; a missing right is a line of its own."""
    try:
        with progress(access) as told:
            return asyncio.run(run(told, log=True).apply(reading))
    except MissingRightsError as error:
        for right in error.missing:
            say(f"no right to {right}")
        raise


def confirm_interruption(reading: PlannedCluster, applying: ApplyOptions, *, yes: bool) -> None:
    """Ask for each workload that serves nothing while it restarts, by name."""
    phases = applying.phases or reading.plan.phases
    changes = [change for change in reading.plan.changes if change.phase in phases]
    for ref, reason in sorted(interrupted(changes, reading.inventory).items()):
        say(f"{ref}: {reason}")
        if not yes:
            confirm(f"Restart {ref} all the same?", "--yes-interruption")


def _line(text: str) -> None:
    """Write a step of a run to a log; the single lists of a reading are too many."""
    if not text.startswith("read "):
        say(text)


def confirm(question: str, option: str) -> None:
    """Ask on the terminal; only `yes` goes on.

    Raises InputError without a terminal: `option` answers it too.
    """
    if not sys.stdin.isatty():
        raise InputError(
            "the plan cannot be confirmed: standard input is not a terminal", remedy=f"give {option}"
        )
    if click.prompt(f"{question} Only 'yes' is accepted", default="no") != "yes":
        raise click.Abort


def _code(reading: PlannedCluster) -> int:
    outcome = reading.plan.outcome
    return 1 if reading.plan.changes or outcome.held or outcome.refused else 0
