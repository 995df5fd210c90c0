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
    `field` a path inside it, `variable` an environment variable, `annotation` an annotation's name,
    `text_line` a line within the text of one of these, `inner` a part of one of these (`targets[0]`),
    `text` any other place, such as an address.
    """

    file: str = ""
    line: int = 0
    object: str = ""
    field: str = ""
    variable: str = ""
    annotation: str = ""
    text_line: int = 0
    inner: str = ""
    text: str = ""

    @classmethod
    def of(cls, where: Where) -> Place:
        """Return `where` as a place; text is a place without structure."""
        return where if isinstance(where, Place) else cls(text=where)

    def __str__(self) -> str:
        spot = f"{self.file}:{self.line}" if self.file and self.line else self.file
        variable = f"environment variable {self.variable}" if self.variable else ""
        annotation = f"annotation {self.annotation}" if self.annotation else ""
        line = f"line {self.text_line}" if self.text_line else ""
        parts = (spot, self.object, self.text, annotation, variable, self.field, line, self.inner)
        return ": ".join(part for part in parts if part)

    def part(self, text: str) -> Place:
        """Return the place of a part of this one, such as `targets[0]`."""
        return dataclasses.replace(self, inner=": ".join(filter(None, (self.inner, text))))

    def within(self, outer: Place) -> Place:
        """Return this place with the empty fields filled in from the place that contains it."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(outer, **{name: value for name, value in own.items() if value})


# A place as a caller gives it.
Where = str | Place


class MeshscrapeError(Exception):
    """An error that a user can act on; `str()` is the whole line to show.

    `what` went wrong, `place` is where (`where` is the same as text), `remedy` is what to do.
    `code` is a short kebab-case name for callers that branch on this very problem, else empty.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: Where = "", remedy: str = "", code: str = "") -> None:
        place = Place.of(where)
        super().__init__(what, place, remedy, code)
        self.what = what
        self.place = place
        self.remedy = remedy
        self.code = code

    @property
    def where(self) -> str:
        """Return the place as text; empty when it is unknown."""
        return str(self.place)

    def at(self, outer: Place) -> Self:
        """Return the same error with its place set inside an outer one."""
        return type(self)(self.what, where=self.place.within(outer), remedy=self.remedy, code=self.code)

    def __str__(self) -> str:
        place = f"{self.place}: " if str(self.place) else ""
        cure = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{cure}"


class InputError(MeshscrapeError):
    """The user's input, or a file that it names, cannot be used: the same attempt would fail again.

    Callers do not retry, with two exceptions that have a code: `UNREADABLE` (`system.files`; a file that may
    become readable) and `PORT_TAKEN` (`system.net`; a port that another process may release).
    """


class MissingBinaryError(MeshscrapeError):
    """A program that meshscrape needs is not on this machine."""


class UnavailableError(MeshscrapeError):
    """Something did not answer; a later try makes sense. `status` is the HTTP status, 0 without one."""

    def __init__(
        self, what: str, *, where: Where = "", remedy: str = "", code: str = "", status: int = 0
    ) -> None:
        super().__init__(what, where=where, remedy=remedy, code=code)
        self.status = status


class UnauthenticatedError(MeshscrapeError):
    """The CA did not accept the caller's credentials; fresh ones may be accepted."""
