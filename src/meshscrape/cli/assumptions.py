"""Read the file of `--assume-unread`: scrapers that, as the user declares, read no plaintext port."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from meshscrape.cli.options import text_of
from meshscrape.errors import InputError
from meshscrape.kube.yaml_text import load_text

_FIELDS = ("scraper", "reason", "date")
_FORM = "write a list of {scraper: KIND.GROUP NAMESPACE/NAME, reason: TEXT, date: YYYY-MM-DD}"


def read_assumptions(path: Path | None) -> frozenset[str]:
    """Return the scrapers that a file names. Raise InputError for an entry without reason or date."""
    if path is None:
        return frozenset()
    entries = load_text(text_of(path, "--assume-unread"), str(path))
    if not isinstance(entries, list):
        raise InputError("not a list", where=str(path), remedy=_FORM)
    return frozenset(_scraper(entry, f"{path}: entry {number}") for number, entry in enumerate(entries, 1))


def _scraper(entry: object, where: str) -> str:
    fields = entry if isinstance(entry, Mapping) else {}
    if set(fields) != set(_FIELDS) or not all(str(fields[name] or "").strip() for name in _FIELDS):
        raise InputError("scraper, reason or date is missing", where=where, remedy=_FORM)
    try:
        date.fromisoformat(str(fields["date"]))
    except ValueError as error:
        raise InputError(f"{fields['date']!r} is not a date", where=where, remedy=_FORM) from error
    return str(fields["scraper"])
