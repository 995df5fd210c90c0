"""Run `meshscrape verify --watch` until a signal, and print its runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click

from meshscrape.cli.output import say
from meshscrape.cli.verify_page import write_page
from meshscrape.errors import MeshscrapeError
from meshscrape.istio.host_port import host_port
from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.system import life
from meshscrape.system.clock import utcnow
from meshscrape.verify.findings import Finding
from meshscrape.verify.reports import document, summary
from meshscrape.verify.watch import METRICS_PATH, Run, VerifyOnce, Watch, WatchOptions


def watch(verify_once: VerifyOnce, options: WatchOptions, as_json: bool, page_file: Path | None) -> int:
    """Verify again and again until a signal. Return the last run's exit code, 128 + signal before a run.

    Each run is a line on stdout (with `as_json` a document per line). `page_file` is written after each run.
    """

    def tell(run: Run) -> None:
        if page_file is not None:
            try:
                write_page(page_file, run.history.report, run.history.failure)
            except MeshscrapeError as error:
                # A full disk must not end the watch: its metrics are still served.
                say(f"the page could not be written and stays as it was: {error}")
        now = utcnow()
        for line in [_json_line(run, now)] if as_json else _lines(run, now):
            click.echo(line)

    def listening(host: str, port: int) -> None:
        say(f"metrics on http://{host_port(host, port)}{METRICS_PATH}")

    watching = Watch(verify_once, options, tell, listening)
    # It runs until a signal; the last run decides, when there was one.
    ended = life.run(watching.run())
    if watching.history.number or not isinstance(ended, signal.Signals):
        return watching.history.exit_code
    return life.exit_code(ended)


def _lines(run: Run, now: datetime) -> Iterator[str]:
    """Yield a line for the run, then one for each finding that is new or gone."""
    history = run.history
    said = summary(run.report) if run.report else f"COULD NOT RUN: {history.failure}"
    yield f"{now:%Y-%m-%dT%H:%M:%SZ} run {history.number}: {said}; next in {run.next_in:.0f} s"
    for finding in run.changes.new:
        yield f"  NEW   {_finding(finding)}; expected: {finding.expected}; do: {finding.remedy}"
    for finding in run.changes.gone:
        yield f"  GONE  {_finding(finding)}"


def _finding(finding: Finding) -> str:
    place = f"{finding.workload} {finding.target}".strip()
    return f"{finding.severity.upper()} {finding.check} {place}: {finding.seen}"


def _json_line(run: Run, now: datetime) -> str:
    """Return the VerifyReport of the run, or a VerifyFailure, on one line."""
    if run.report is not None:
        return json.dumps(document(run.report))
    failed = {"apiVersion": DOCUMENT_VERSION, "kind": "VerifyFailure"}
    return json.dumps({**failed, "ended": now.isoformat(timespec="seconds"), "reason": run.history.failure})
