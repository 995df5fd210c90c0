"""`meshscrape explain`: why a target is down or refused, step by step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from meshscrape.cli.status import STATE, state_path
from meshscrape.local.state import read_status
from meshscrape.system.clock import utcnow
from meshscrape.verify.explain import Explanation
from meshscrape.verify.explain_target import find_targets
from meshscrape.verify.explaining import explain_all
from meshscrape.verify.mesh import parse_mesh
from meshscrape.verify.probes import Timeouts
from meshscrape.verify.run import scraper_of

_MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN", "skipped": "-"}
_COLOURS = {"ok": "green", "note": "yellow", "broken": "red", "skipped": None}


@click.command()
@click.argument("target")
@STATE
@click.option(
    "--as", "scraper", default="", metavar="NAMESPACE/NAME",
    help="Workload to scrape as; by default the mesh's Prometheus.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, metavar="SECONDS",
    help="How long to wait for each connection and each answer.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(target: str, state: Path | None, scraper: str, timeout: float, output: str) -> int:
    """Say why TARGET is down or refused, from the scraper's certificate to Prometheus, and what to do.

    TARGET is a workload (NAME or NAMESPACE/NAME: all its targets), ADDRESS:PORT, or a target's URL as
    Prometheus shows it. Exit codes: 0 healthy, 1 something is wrong, 2 could not run.
    """
    mesh = parse_mesh(read_status(state_path(state)))
    targets = find_targets(mesh, target)
    chosen = scraper_of(mesh, scraper)
    timeouts = Timeouts(timeout, timeout, timeout, 3 * timeout)
    found = asyncio.run(explain_all(mesh, chosen, targets, utcnow(), timeouts))
    if output == "json":
        click.echo(json.dumps(_document(found), indent=2))
    else:
        click.echo("\n\n".join("\n".join(_lines(each)) for each in found))
    return 1 if any(each.broken for each in found) else 0


def _lines(explanation: Explanation) -> Iterator[str]:
    """The target, its steps, and at the broken one what to do."""
    target = explanation.target
    title = f"{target.workload.title} " if target.workload else ""
    yield click.style(f"{title}{target.url if target.port else ''}".rstrip(), bold=True)
    width = max(len(step.name) for step in explanation.steps)
    for step in explanation.steps:
        mark = click.style(f"{_MARKS[step.outcome]:<7}", fg=_COLOURS[step.outcome])
        yield f"  {mark} {step.name:<{width}}  {step.seen}"
        if step.remedy:
            yield f"  {'':<7} {'':<{width}}  do: {step.remedy}"
    if explanation.broken is None:
        yield "  healthy"


def _document(found: tuple[Explanation, ...]) -> dict[str, Any]:
    """The Explanation document (docs/explain.md)."""
    return {
        "apiVersion": "meshscrape.io/v1",
        "kind": "Explanation",
        "healthy": not any(each.broken for each in found),
        "targets": [
            {
                "workload": each.target.workload.title if each.target.workload else "",
                "url": each.target.url,
                "spiffeId": str(each.target.workload.spiffe_id) if each.target.workload else "",
                "healthy": each.broken is None,
                "broken": each.broken.name if each.broken else "",
                "steps": [
                    {"step": step.name, "outcome": step.outcome, "seen": step.seen, "remedy": step.remedy}
                    for step in each.steps
                ],
            }
            for each in found
        ],
    }
