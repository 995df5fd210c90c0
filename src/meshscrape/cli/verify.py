"""`meshscrape verify`: prove from outside which clients can read which ports."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from meshscrape.cli.live import chosen_access, cluster_options, progress
from meshscrape.cli.output import coloured, print_document
from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.local.state import default_state_path, read_status
from meshscrape.system import life
from meshscrape.verify.findings import Report
from meshscrape.verify.reports import Format, document, render
from meshscrape.verify.run import VerifyOptions, check_options, verify
from meshscrape.verify.watch import WatchOptions, metrics_address

_UNLIMITED = 100_000
_REDRAW = 0.05
_SHORTEST, _LONGEST = 1, 24 * 3600


class ProgressBar:
    """A progress bar on stderr; hidden with `quiet` or if stderr is not a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._bar = Progress(
            TextColumn("verify"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.description}"),
            console=Console(stderr=True, color_system="auto" if coloured(sys.stderr) else None),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )  # fmt: skip
        self._task: TaskID | None = None
        self._drawn = 0.0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, message: str) -> None:
        """Show the number of finished probes."""
        # Drawing takes longer than most probes.
        if done < total and (now := monotonic()) - self._drawn < _REDRAW:
            return
        self._drawn = now if done < total else 0.0
        if self._task is None:
            self._task = self._bar.add_task(message, total=total)
        self._bar.update(self._task, completed=done, total=total, description=message)


def print_report(report: Report, form: str) -> None:
    """Write the report to stdout. On a terminal it is coloured and as wide as the terminal."""
    if form == "yaml":
        print_document(document(report), form)
        return
    terminal = sys.stdout.isatty() and form != "wide"
    width = shutil.get_terminal_size().columns if terminal else _UNLIMITED
    shown: Format = "table" if form == "wide" else cast(Format, form)
    click.echo(render(report, shown, color=coloured(sys.stdout), width=width), nl=False, color=True)


def _names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.strip() for value in values for name in value.split(",") if name.strip())


@click.command("verify")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="State directory of the mesh.  [default: the one that `up` uses]",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", "junit"]),
    default="table",
    show_default=True,
)
@click.option(
    "--as",
    "scraper",
    default="",
    metavar="NAMESPACE/NAME",
    help="Scrape as this workload.  [default: the mesh's Prometheus]",
)
@click.option(
    "--only", multiple=True, callback=_names, metavar="CHECK,…", help="Run only these checks (repeatable)."
)
@click.option(
    "--skip", multiple=True, callback=_names, metavar="CHECK,…", help="Skip these checks (repeatable)."
)
@click.option(
    "--patience",
    type=click.FloatRange(0, 600),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for Prometheus to discover new targets, in seconds.",
)
@click.option(
    "--watch", "watching", is_flag=True, help="Repeat the checks until a signal; print one line per run."
)
@click.option(
    "--interval",
    default="60s",
    show_default=True,
    metavar="DURATION",
    help="With --watch: time between the starts of two runs.",
)
@click.option(
    "--metrics",
    metavar="[ADDRESS:]PORT",
    help="With --watch: serve the results as plaintext metrics, on loopback unless ADDRESS is given.",
)
@click.option(
    "--html",
    "page_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the report as one HTML page with a picture of the mesh.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress bar.")
@click.option(
    "--kubernetes",
    is_flag=True,
    help="Verify the mesh of a cluster by what its API server and its Prometheus tell.",
)
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NAME",
    help="With --kubernetes: limit to workloads of this namespace (repeatable).",
)
@cluster_options
def command(
    state: Path | None, output: str, scraper: str, only: frozenset[str], skip: frozenset[str],
    patience: float, watching: bool, interval: str, metrics: str | None, page_file: Path | None,
    quiet: bool, kubernetes: bool, namespaces: tuple[str, ...],
) -> int:  # fmt: skip
    """Connect to every port of the mesh as the scraper, a stranger and an attacker, and judge the answers.

    Exit codes: 0 no finding, 1 findings, 2 could not run; 129, 130, 143 ended by HUP, INT, TERM. With
    --watch, the exit code of the last run counts. docs/verify.md explains every check.
    """
    if page_file is not None:
        from meshscrape.cli.verify_page import check_page

        check_page(page_file)
    if kubernetes:
        report = _cluster(namespaces, only, skip, quiet)
        print_report(report, output)
        return report.exit_code
    place = state or default_state_path(os.environ)
    options = VerifyOptions(scraper=scraper, only=only, skip=skip, patience=patience)
    if watching:
        from meshscrape.cli.verify_watch import watch

        asked = _watch_options(options, interval, metrics, output)
        with ProgressBar(quiet) as progress:
            return watch(place, asked, output == "json", progress, page_file)
    if metrics is not None:
        raise InputError("needs --watch", where="--metrics", remedy="add --watch")
    return _once(place, options, output, page_file, quiet)


def _cluster(namespaces: tuple[str, ...], only: frozenset[str], skip: frozenset[str], quiet: bool) -> Report:
    from meshscrape.cluster.verifying import verify_cluster

    check_options(VerifyOptions(only=only, skip=skip))
    access = chosen_access()
    with progress(access) as told:
        shown = (lambda line: None) if quiet else told
        report = asyncio.run(verify_cluster(access, namespaces, shown))
    kept = [each for each in report.checks if (not only or each.check in only) and each.check not in skip]
    return replace(report, checks=tuple(kept))


def _watch_options(options: VerifyOptions, interval: str, metrics: str | None, output: str) -> WatchOptions:
    seconds = parse_duration(interval, "--interval").total_seconds()
    if not _SHORTEST <= seconds <= _LONGEST:
        raise InputError("out of range", where="--interval", remedy="use 1s to 24h")
    if output in ("junit", "yaml"):
        raise InputError(
            f"--watch cannot write a series of runs as {output}",
            where="-o",
            remedy="use -o table or -o json",
        )
    check_options(options)
    return WatchOptions(options, seconds, metrics=metrics_address(metrics) if metrics is not None else None)


def _once(place: Path, options: VerifyOptions, output: str, page_file: Path | None, quiet: bool) -> int:
    status = read_status(place)
    # The process ends after one run, so collecting cycles among the probes costs more than it frees.
    gc.disable()
    with ProgressBar(quiet) as progress:
        report = life.run(verify(status, options, progress))
    if isinstance(report, signal.Signals):
        return life.exit_code(report)
    if page_file is not None:
        from meshscrape.cli.verify_page import write_page

        write_page(page_file, report)
    print_report(report, output)
    return report.exit_code
