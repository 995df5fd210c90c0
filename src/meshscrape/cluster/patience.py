"""Decide how long a wait goes on while the API server does not answer, or refuses. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NoReturn

from meshscrape.cluster.stopping import StoppedError

# An upgrade of a managed control plane takes some minutes.
OUTAGE_SECONDS = 900.0
# An API server that has just started may refuse requests until it has read the roles and their bindings.
REFUSED_SECONDS = 30.0
_EXPIRED, _BUSY = 410, 429
_REFUSALS: dict[int, Literal["credentials", "right"]] = {401: "credentials", 403: "right"}

# Why a request failed: the API server is away, or it does not accept the credentials, or a right is missing.
Failure = Literal["away", "credentials", "right"]


def failure_of(status: int) -> Failure | None:
    """Return what an answer with this status means; None if a later request would fail the same way."""
    if status in _REFUSALS:
        return _REFUSALS[status]
    return "away" if status in (_EXPIRED, _BUSY) or status >= 500 else None


@dataclass(slots=True)
class Patience:
    """The failures of a wait since its last good answer. `where` is the wait, `verb` what the user runs."""

    where: str
    verb: str
    _since: float | None = field(default=None, init=False)
    _refused_since: float | None = field(default=None, init=False)

    def failed(self, failure: Failure, what: str, now: float) -> bool:
        """Note a failure at `now` and its text; return whether it is the first since the last good answer.

        Raises StoppedError after OUTAGE_SECONDS of failures, or after REFUSED_SECONDS of refusals in a row.
        """
        first = self._since is None
        since = self._since = now if self._since is None else self._since
        if failure == "away":
            self._refused_since = None
        else:
            refused = self._refused_since = now if self._refused_since is None else self._refused_since
            if now - refused >= REFUSED_SECONDS:
                self._stop_refused(failure, what)
        if now - since >= OUTAGE_SECONDS:
            raise StoppedError(
                f"the API server has not answered for {now - since:.0f} s: {what}",
                where=self.where,
                remedy=f"run {self.verb} again when it answers: what was applied stays",
                code="api-away",
            )
        return first

    def answered(self) -> bool:
        """Note a good answer; return whether it ends a series of failures."""
        ends = self._since is not None
        self._since = self._refused_since = None
        return ends

    def _stop_refused(self, failure: Failure, what: str) -> NoReturn:
        problem, cure = {
            "credentials": ("the API server no longer accepts the credentials", "log in again"),
            "right": ("a right is missing now", f"grant what `meshscrape rbac {self.verb}` prints"),
        }[failure]
        raise StoppedError(
            f"{problem}: {what}",
            where=self.where,
            remedy=f"{cure}, then run {self.verb} again: what was applied stays",
            code="refused",
        )
