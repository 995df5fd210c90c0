"""`meshscrape remove`: take back what meshscrape wrote, from files or from a live cluster."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from meshscrape.cli.apply import confirm, confirm_interruption, finish, live_options, running
from meshscrape.cli.live import chosen_access, progress
from meshscrape.cli.manifests import files_option, manifests_in, named_files, read_inventory
from meshscrape.cli.output import coloured, print_document, say
from meshscrape.cluster.applying import ApplyOptions, PlannedCluster
from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory, Object, Ref, load_inventory
from meshscrape.kube.selectors import parse_selector
from meshscrape.observe import observe
from meshscrape.plan.inverse.commands import kubectl_commands
from meshscrape.plan.inverse.evidence import Evidence
from meshscrape.plan.inverse.planner import InverseIntent, plan_inverse
from meshscrape.plan.model import INVERSE_PHASES, Phase, Plan
from meshscrape.plan.render.diff import plan_text, summary
from meshscrape.plan.render.plan_document import plan_document


@click.command()
@files_option
@click.option(
    "-n", "--namespace", "namespaces", multiple=True, metavar="NAME",
    help="Limit to workloads of this namespace (repeatable).",
)  # fmt: skip
@click.option("-l", "--selector", metavar="LABELS", help="Limit to workloads whose pods have these labels.")
@click.option(
    "--originals",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Objects as they were before, from `meshscrape render` (its directory originals). They show what "
    "was there already; what was edited since stays.",
)
@click.option(
    "--unscraped",
    is_flag=True,
    help="Also take back where no plaintext scrape job takes over, so that these scrapes end.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["diff", "kubectl", "json", "yaml"]),
    default="diff",
    show_default=True,
    help="With files: the inverse plan as a diff, as kubectl commands in order, or as a document.",
)
@live_options(INVERSE_PHASES)
@click.option("--yes-plaintext", is_flag=True, help="Do not ask before plaintext ports open.")
def command(
    files: tuple[str, ...], namespaces: tuple[str, ...], selector: str | None, originals: Path | None,
    unscraped: bool, output: str, yes: bool, yes_plaintext: bool, yes_interruption: bool,
    applying: ApplyOptions,
) -> int:  # fmt: skip
    """Take back what meshscrape wrote, from today's objects, phase by phase.

    From a cluster, it shows the inverse plan and asks, and asks again before plaintext ports open. They open
    first; then plaintext jobs read the pods again; when Prometheus has all of them up, secure ports close and
    scrapers lose their certificates. Fields that others wrote or edited since stay. From files, it prints the
    inverse plan and changes nothing. Exit codes: 0 everything is taken back, or nothing was there; from
    files: no changes. 1 stopped, held back, or changes are pending. 2 could not run.
    """
    intent = InverseIntent(
        namespaces=namespaces,
        selector=parse_selector(selector) if selector else None,
        unscraped=unscraped,
        evidence=Evidence(dict(_originals(originals))),
    )

    def planner(inventory: Inventory) -> PlannedCluster:
        observation = observe(inventory)
        _check(inventory, namespaces)
        return PlannedCluster(inventory, observation, plan_inverse(observation, inventory, intent))

    if named_files(files):
        return _print(planner(read_inventory(files)).plan, output)
    if output != "diff":
        raise InputError("a cluster is changed, not printed", where="--output", remedy="give a dump with -f")
    access = chosen_access()
    run = running(access, planner, applying)
    with progress(access) as told:
        reading = asyncio.run(run(told).read())
    print(plan_text(reading.plan, colour=coloured(sys.stdout)), end="")
    if not reading.plan.changes:
        return _code(reading.plan)
    if not applying.dry_run:
        _confirm(reading.plan, access.place, applying, yes=yes, yes_plaintext=yes_plaintext)
        confirm_interruption(reading, applying, yes=yes_interruption)
    reading = finish(access, run, reading)
    say("the API server accepts every change" if applying.dry_run else summary(reading.plan))
    return 0 if applying.dry_run else _code(reading.plan)


def _print(plan: Plan, output: str) -> int:
    if output == "kubectl":
        sys.stdout.write("".join(f"{line}\n" for line in kubectl_commands(plan)))
        say(summary(plan))
    elif output != "diff":
        print_document(plan_document(plan), output)
        say(summary(plan))
    else:
        print(plan_text(plan, colour=coloured(sys.stdout)), end="")
    return _code(plan)


def _confirm(plan: Plan, place: str, applying: ApplyOptions, *, yes: bool, yes_plaintext: bool) -> None:
    """Ask for the plan, and apart for plaintext ports. Raise InputError without a terminal."""
    phases: tuple[Phase, ...] = applying.phases or plan.phases
    opened = [change for change in plan.changes if change.phase == "hardening" and "hardening" in phases]
    if not yes:
        confirm(f"Take these changes back at {place}?", "--yes")
    if opened and not yes_plaintext:
        restarted = len({each for change in opened for each in change.restarts})
        confirm(
            f"Metrics of {restarted or len(opened)} workloads become readable in plaintext, without "
            "authentication. Open their ports?",
            "--yes-plaintext",
        )


def _originals(directory: Path | None) -> Iterator[tuple[Ref, Object]]:
    if directory is None:
        return
    inventory = load_inventory(manifests_in(directory))
    created = {each.ref for each in inventory if Path(each.where.partition(":")[0]).parent.name == "delete"}
    for manifest in inventory:
        # `delete/` has the objects that were not there before.
        if manifest.ref not in created:
            yield manifest.ref, manifest.data


def _check(inventory: Inventory, namespaces: tuple[str, ...]) -> None:
    used = {each.ref.namespace for each in inventory} | {
        each.ref.name for each in inventory.of_kind("Namespace", "")
    }
    for name in namespaces:
        if name not in used:
            raise InputError(
                f"no object is in namespace {name!r}", where="--namespace", remedy="correct the name"
            )


def _code(plan: Plan) -> int:
    return 1 if plan.changes or plan.outcome.held or plan.outcome.refused else 0
