"""`meshscrape verify`: prove from outside which clients can read which ports."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from meshscrape.cli import verify_cluster
from meshscrape.cli.live import cluster_options
from meshscrape.cli.output import coloured, print_document
from meshscrape.cli.verify_cluster import ClusterOptions
from meshscrape.errors import InputError, UnavailableError
from meshscrape.istio.durations import parse_duration
from meshscrape.istio.ports import parse_port
from meshscrape.local.state import GIVE_STATUS, default_state_path, read_document, read_status
from meshscrape.system import life
from meshscrape.verify.findings import Report
from meshscrape.verify.open_ports import Bounds
from meshscrape.verify.reports import Format, document, render
from meshscrape.verify.run import VerifyOptions, check_options, verify
from meshscrape.verify.watch import LONGEST_RUN, VerifyOnce, WatchOptions, metrics_address

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
    help="Scrape as this workload. With --image: as this Prometheus.  [default: the mesh's Prometheus]",
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
    "--mesh",
    "mesh_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Verify the mesh that this status document describes, instead of a state directory's.",
)
@click.option(
    "--ports",
    default="",
    metavar="PORT,…",
    help="At addresses of other machines, look for metrics on these ports.  [default: the usual ones]",
)
@verify_cluster.options
@cluster_options
def command(
    state: Path | None, output: str, scraper: str, only: frozenset[str], skip: frozenset[str],
    patience: float, watching: bool, interval: str, metrics: str | None, page_file: Path | None,
    quiet: bool, mesh_file: Path | None, ports: str, cluster: ClusterOptions,
) -> int:  # fmt: skip
    """Connect to every port of the mesh as the scraper, a stranger and an attacker, and judge the answers.

    Exit codes: 0 no finding, 1 findings, 2 could not run; 129, 130, 143 ended by HUP, INT, TERM. With
    --watch, the exit code of the last run counts. docs/verify.md explains every check.
    """
    if page_file is not None:
        from meshscrape.cli.verify_page import check_page

        check_page(page_file)
    if metrics is not None and not watching:
        raise InputError("needs --watch", where="--metrics", remedy="add --watch")
    options = VerifyOptions(scraper=scraper, only=only, skip=skip, patience=patience, scan=_bounds(ports))
    check_options(options)
    asked = _watch_options(interval, metrics, output, cluster.seconds) if watching else None
    if cluster.kubernetes:
        _refuse_local(state, mesh_file)
        source = verify_cluster.runs(cluster, options, quiet)
    else:
        source = _local_runs(state, mesh_file, options, quiet)
    with source as verify_once:
        if asked is None:
            return _once(verify_once, output, page_file)
        from meshscrape.cli.verify_watch import watch

        if not cluster.kubernetes:
            _refuse_missing_mesh(state, mesh_file)
        return watch(verify_once, asked, output == "json", page_file)


def _refuse_local(state: Path | None, mesh_file: Path | None) -> None:
    """Raise InputError for an option that names a mesh on this machine beside --kubernetes."""
    for option, given in (("--state", state), ("--mesh", mesh_file)):
        if given is not None:
            raise InputError(
                "it names another mesh than --kubernetes", where=option, remedy="omit one of them"
            )


def _refuse_missing_mesh(state: Path | None, mesh_file: Path | None) -> None:
    """Raise an error if there is no mesh to watch, because a watch of nothing would wait for ever.

    A mesh that is just starting is waited for, and so is one that stops later: each run says that it failed.
    """
    if mesh_file is not None:
        _mesh_in(mesh_file)
        return
    with suppress(UnavailableError):
        read_status(_place(state))


def _mesh_in(file: Path) -> dict[str, Any]:
    """Return the status document in the file of --mesh. Raise InputError for any other JSON, too."""
    document = read_document(file)
    if document.get("kind") != "MeshStatus":
        raise InputError("is not a status document", where=str(file), remedy=GIVE_STATUS)
    return document


def _place(state: Path | None) -> Path:
    return state or default_state_path(os.environ)


@contextmanager
def _local_runs(
    state: Path | None, mesh_file: Path | None, options: VerifyOptions, quiet: bool
) -> Iterator[VerifyOnce]:
    """Provide verifications of a local mesh, or of the one that a file describes."""
    if state is not None and mesh_file is not None:
        raise InputError("both name a mesh", where="--state and --mesh", remedy="omit one of them")
    place = _place(state)
    with ProgressBar(quiet) as progress:

        async def verify_once() -> Report:
            return await verify(_mesh_in(mesh_file) if mesh_file else read_status(place), options, progress)

        yield verify_once


def _bounds(ports: str) -> Bounds:
    """Return the bounds of a search for open ports, with these ports if there are any."""
    named = tuple(parse_port(each.strip(), "--ports") for each in ports.split(",") if each.strip())
    return Bounds(ports=named) if named else Bounds()


def _watch_options(interval: str, metrics: str | None, output: str, longest: float) -> WatchOptions:
    seconds = parse_duration(interval, "--interval").total_seconds()
    if not _SHORTEST <= seconds <= _LONGEST:
        raise InputError("out of range", where="--interval", remedy="use 1s to 24h")
    if output in ("junit", "yaml"):
        raise InputError(
            f"--watch cannot write a series of runs as {output}",
            where="-o",
            remedy="use -o table or -o json",
        )
    address = metrics_address(metrics) if metrics is not None else None
    # The Jobs of a cluster have their own limit. Reading the cluster and removing them comes on top.
    return WatchOptions(seconds, longest=LONGEST_RUN + longest, metrics=address)


def _once(verify_once: VerifyOnce, output: str, page_file: Path | None) -> int:
    # The process ends after one run, so collecting cycles among the probes costs more than it frees.
    gc.disable()
    report = life.run(verify_once())
    if isinstance(report, signal.Signals):
        return life.exit_code(report)
    if page_file is not None:
        from meshscrape.cli.verify_page import write_page

        write_page(page_file, report)
    print_report(report, output)
    return report.exit_code
