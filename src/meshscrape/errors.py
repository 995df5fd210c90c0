"""The one root of errors that reach a user, as one line: what, where, what to do.

A new type exists only where a caller branches on it or where it maps to an exit code of its own.
"""

from __future__ import annotations


class MeshscrapeError(Exception):
    """An error that a user can act on; `str()` is the whole line to show.

    `what` went wrong, `where` is the place (file and line, variable, address), `remedy` is what to do.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        cure = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{cure}"


class InputError(MeshscrapeError):
    """What the user wrote, or a file they named, cannot be used as it is."""


class MissingBinaryError(MeshscrapeError):
    """A program that meshscrape needs is not on this machine."""


class UnavailableError(MeshscrapeError):
    """Something did not answer; trying again later makes sense."""


class UnauthenticatedError(MeshscrapeError):
    """The CA did not accept the caller's credentials; fresh ones may be accepted."""
