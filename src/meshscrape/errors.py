"""The one root of errors that reach a user, as one line: what, where, what to do.

A new type exists only where a caller branches on it or where it maps to an exit code of its own.
A caller that needs more than the type branches on `code` or on a field of `place`, never on the message.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Place:
    """Where an error lies. Every field may be empty; `str()` joins the ones that are not, outermost first.

    `file` and `line` (from 1) name a spot in a text, `object` a Kubernetes object or a component,
    `field` a path inside it, `variable` an environment variable, `text` any other place, such as an address.
    """

    file: str = ""
    line: int = 0
    object: str = ""
    field: str = ""
    variable: str = ""
    text: str = ""

    def __str__(self) -> str:
        spot = f"{self.file}:{self.line}" if self.file and self.line else self.file
        variable = f"environment variable {self.variable}" if self.variable else ""
        return ": ".join(part for part in (spot, self.object, variable, self.field, self.text) if part)

    def within(self, outer: Place) -> Place:
        """Return this place with the empty fields filled in from the place that contains it."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(outer, **{name: value for name, value in own.items() if value})


class MeshscrapeError(Exception):
    """An error that a user can act on; `str()` is the whole line to show.

    `what` went wrong, `place` is where (`where` is the same as text), `remedy` is what to do.
    `code` is a short kebab-case name for callers that branch on this very problem, else empty.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | Place = "", remedy: str = "", code: str = "") -> None:
        place = where if isinstance(where, Place) else Place(text=where)
        super().__init__(what, place, remedy, code)
        self.what = what
        self.place = place
        self.remedy = remedy
        self.code = code

    @property
    def where(self) -> str:
        """Return the place as text, empty when none is known."""
        return str(self.place)

    def at(self, outer: Place) -> Self:
        """Return the same error with its place set inside an outer one."""
        return type(self)(self.what, where=self.place.within(outer), remedy=self.remedy, code=self.code)

    def __str__(self) -> str:
        place = f"{self.place}: " if str(self.place) else ""
        cure = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{cure}"


class InputError(MeshscrapeError):
    """What the user wrote, or a file they named, cannot be used as it is."""


class MissingBinaryError(MeshscrapeError):
    """A program that meshscrape needs is not on this machine."""


class UnavailableError(MeshscrapeError):
    """Something did not answer; a later try makes sense. `status` is the HTTP status, 0 without one."""

    def __init__(
        self, what: str, *, where: str | Place = "", remedy: str = "", code: str = "", status: int = 0
    ) -> None:
        super().__init__(what, where=where, remedy=remedy, code=code)
        self.status = status


class UnauthenticatedError(MeshscrapeError):
    """The CA did not accept the caller's credentials; fresh ones may be accepted."""
