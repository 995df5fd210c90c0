"""Where `meshscrape verify --html` puts its page."""

from __future__ import annotations

from pathlib import Path

from meshscrape.errors import InputError
from meshscrape.system.clock import utcnow
from meshscrape.system.files import write_atomic
from meshscrape.verify.findings import Report
from meshscrape.verify.html.page import empty_page, page


def check_page(path: Path) -> None:
    """InputError when there is no directory for the page: better said before the checks than after."""
    if not path.parent.is_dir():
        raise InputError("there is no such directory", where=f"--html {path}", remedy="make it first")


def write_page(path: Path, report: Report | None, failure: str = "") -> None:
    """Replace the page by one rename, readable by its owner: it names every hole.

    `failure` says why the latest run could not be made; without a report there is nothing else to show.
    """
    now = utcnow()
    text = page(report, now, failure) if report is not None else empty_page(failure, now)
    write_atomic(path, text.encode())
