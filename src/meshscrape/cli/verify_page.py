"""Write the page of `meshscrape verify --html`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from meshscrape.errors import InputError
from meshscrape.system.clock import utcnow
from meshscrape.system.files import write_atomic
from meshscrape.verify.findings import Report
from meshscrape.verify.html.page import empty_page, page


def check_page(path: Path) -> None:
    """Raise InputError if the page's directory does not exist. Call it before the checks run."""
    if not path.parent.is_dir():
        raise InputError("the directory does not exist", where=f"--html {path}", remedy="create it first")


def write_page(path: Path, report: Report | None, failure: str = "") -> None:
    """Replace the page by one rename. Only its owner can read it, because it names every hole.

    `failure` says why the latest run failed. Without a report, the page only shows this.
    """
    now, style = utcnow(), files("meshscrape.verify.html").joinpath("style.css").read_text("utf-8")
    text = page(report, now, style, failure) if report else empty_page(failure, now, style)
    write_atomic(path, text.encode())
