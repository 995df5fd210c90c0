"""Errors that stop a run on a cluster between two steps. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from meshscrape.errors import MeshscrapeError

_NAMED = 5


class StoppedError(MeshscrapeError):
    """The run stopped between two steps: what was applied stays, and running it again goes on."""

    exit_code = 1


class HalfDoneError(MeshscrapeError):
    """The run could not go on: an error in the middle of its changes, and how many of them are made."""

    def __init__(self, error: MeshscrapeError, made: int, verb: str) -> None:
        super().__init__(
            f"{error.what}; {made} change{'s are' if made != 1 else ' is'} made and stay{'s' * (made == 1)}",
            where=error.place,
            remedy=f"run {verb} again, it goes on",
            code="half-done",
        )


def few(items: Iterable[object]) -> str:
    """Return the names of a few items, and how many more there are."""
    named = list(dict.fromkeys(map(str, items)))
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more


def one_line(text: str, longest: int) -> str:
    """Return the start of a server's text on one line, without characters that control a terminal."""
    short = " ".join(text[: 2 * longest].split())[:longest]
    return "".join(character if character.isprintable() else "?" for character in short)
