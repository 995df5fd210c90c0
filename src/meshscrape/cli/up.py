"""`meshscrape up`: start a mesh and show it until Ctrl-C; with --check, verify it and stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from meshscrape.cli.output import WHY_HTTP, console, health_of, mesh_view, print_document, say, workload_line
from meshscrape.cli.status import STATE, state_path
from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.local.detached import start_detached
from meshscrape.local.mesh import EXAMPLE, LocalMesh, MeshOptions
from meshscrape.local.session import prepared_mesh, wait_until_ready, wait_until_up
from meshscrape.system import life
from meshscrape.system.clock import utcnow

if TYPE_CHECKING:
    from meshscrape.verify.findings import Report

REFRESH = 0.5


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options of `up`."""

    mesh: MeshOptions
    state: Path
    check: bool
    quiet: bool
    output: str

    def report(self, line: str) -> None:
        """Print a line of progress, unless --quiet is set."""
        if not self.quiet:
            say(line)


class _ReportHandler(logging.Handler):
    """Show log lines of supervisors as progress."""

    def __init__(self, options: UpOptions) -> None:
        super().__init__()
        self._options = options

    def emit(self, record: logging.LogRecord) -> None:
        self._options.report(record.getMessage())


@click.command()
@click.argument("mesh", required=False, type=click.Path(path_type=Path))
@STATE
@click.option("--check", is_flag=True, help="Start, wait until every target is up, verify, report, stop.")
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Start it in the background and return when every workload is ready; `meshscrape down` stops it.",
)
@click.option("--wait", is_flag=True, help="As --detach, and return when Prometheus scrapes every target.")
@click.option("-q", "--quiet", is_flag=True, help="Show only results and errors.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="json, yaml: the status document once everything is ready (--check: verify's report).",
)
@click.option(
    "--scrape-interval", metavar="DURATION", help="How often Prometheus scrapes. [default: 5s, --check: 1s]"
)
@click.option(
    "--direct",
    is_flag=True,
    help="Let Prometheus scrape without the scrape proxy. Prometheus cannot verify its targets then.",
)
def command(
    mesh: Path | None, state: Path | None, check: bool, detach: bool, wait: bool, quiet: bool, output: str,
    scrape_interval: str | None, direct: bool,
) -> int:  # fmt: skip
    """Start the mesh that the manifest MESH declares (default: the example) and keep it until Ctrl-C.

    Prometheus scrapes through the scrape proxy, which verifies every target's SPIFFE ID. Prometheus asks the
    proxy over plain HTTP on this machine, so its targets read http://; mutual TLS begins in the proxy.

    The manifest is followed: edit it to add, change or remove workloads. Exit codes: 0 stopped after the mesh
    was ready (--check: no findings; --detach: it is ready), 1 findings of --check, 2 could not run, 129, 130
    or 143 interrupted before the mesh was ready.
    """
    interval = parse_duration(
        scrape_interval or ("1s" if check else "5s"), "--scrape-interval"
    ).total_seconds()
    if not 0.1 <= interval <= 3600:
        raise InputError("out of range", where="--scrape-interval", remedy="use 100ms to 1h")
    if detach or wait:
        if check:
            raise InputError(
                "--check stops the mesh at its end", where="--detach", remedy="leave out one of them"
            )
        arguments = ["--scrape-interval", scrape_interval or "5s", *(["--direct"] if direct else [])]
        arguments += ["--", str(mesh.absolute())] if mesh else []
        return _detach(
            arguments, UpOptions(MeshOptions(EXAMPLE), state_path(state), check, quiet, output), wait
        )
    # The example has its own traffic, so that users and verify see changing metrics.
    options = MeshOptions(mesh or EXAMPLE, interval, traffic=mesh is None, direct=direct)
    if direct:
        say("warning: Prometheus scrapes directly and does not verify its targets (insecure_skip_verify)")
    asked = UpOptions(options, state_path(state), check, quiet, output)
    logging.basicConfig(level=logging.WARNING, handlers=[_ReportHandler(asked)])
    shown: list[LocalMesh] = []
    work = _check(asked) if check else _show(asked, shown)
    outcome = life.run(work, lambda number: asked.report("stopping"))
    if not isinstance(outcome, signal.Signals):
        return outcome
    return 0 if shown and shown[0].ready.is_set() else life.exit_code(outcome)


def _detach(arguments: list[str], options: UpOptions, wait: bool) -> int:
    """Start the mesh in the background and show its status once."""
    options.report("starting in the background")
    outcome = life.run(
        start_detached(arguments, options.state, targets=wait), lambda number: options.report("stopping")
    )
    if isinstance(outcome, signal.Signals):
        return life.exit_code(outcome)
    if options.output != "table":
        print_document(outcome, options.output)
    elif not options.quiet:
        console().print(mesh_view(outcome, utcnow()))
        options.report("the mesh runs in the background; stop it with `meshscrape down`")
    return 0


async def _show(options: UpOptions, shown: list[LocalMesh]) -> int:
    """Show the mesh until cancelled; append it to `shown` as soon as it exists."""
    async with (
        prepared_mesh(options.mesh, options.state, options.report) as mesh,
        asyncio.TaskGroup() as tasks,
    ):
        shown.append(mesh)
        tasks.create_task(mesh.run())
        if options.output != "table":
            await _print_document(mesh, options.output)
        elif options.quiet:
            await mesh.ready.wait()
        elif (screen := console()).is_terminal and not screen.is_dumb_terminal:
            await _live(mesh, screen)
        else:
            await _lines(mesh)
    return 0


async def _check(options: UpOptions) -> int:
    """Start the mesh, verify it and stop it; return 0 without findings, else 1."""
    from meshscrape.cli.verify import print_report

    async with prepared_mesh(options.mesh, options.state, options.report) as mesh:
        running = asyncio.create_task(mesh.run())
        proof = asyncio.create_task(_prove(mesh, options))
        try:
            await asyncio.wait({running, proof}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            report = await proof
        finally:
            for task in (proof, running):
                task.cancel()
            await asyncio.wait({proof, running})
    print_report(report, options.output)
    return report.exit_code


async def _prove(mesh: LocalMesh, options: UpOptions) -> Report:
    # Import these here, because only --check needs them, and they take a fifth of the import time of `up`.
    from meshscrape.cli.verify import ProgressBar
    from meshscrape.verify.run import VerifyOptions, verify

    await wait_until_ready(mesh)
    options.report("every workload is ready; waiting for Prometheus")
    for job, url, known in await wait_until_up(mesh, options.report):
        options.report(f"not up: {job} {url}: {known}")
    options.report("verifying")
    with ProgressBar(options.quiet) as progress:
        return await verify(mesh.document(), VerifyOptions(), progress)


async def _print_document(mesh: LocalMesh, form: str) -> None:
    await mesh.ready.wait()
    print_document(mesh.document(), form)


async def _live(mesh: LocalMesh, screen: Console) -> None:
    """Redraw the table until cancelled."""
    with Live(console=screen, auto_refresh=False) as live:
        while True:
            live.update(mesh_view(mesh.document(), utcnow()), refresh=True)
            await asyncio.sleep(REFRESH)


async def _lines(mesh: LocalMesh) -> None:
    """Print a line whenever a workload's health changes, until cancelled."""
    shown: dict[str, str] = {}
    told = False
    while True:
        document = mesh.document()
        for workload in document["workloads"]:
            health = health_of(workload)
            if shown.get(workload["pod"]) != health:
                shown[workload["pod"]] = health
                print(workload_line(workload, utcnow()), flush=True)
        if mesh.ready.is_set() and not told:
            told = True
            where = f"; Prometheus: {mesh.prometheus_url}" if mesh.prometheus_url else ""
            print(f"the mesh is ready{where}; state: {document['stateDirectory']}", flush=True)
            if document["scrapeProxy"]:
                print(WHY_HTTP, flush=True)
        await asyncio.sleep(REFRESH)
