"""What a scrape proxy tells its followers: all its targets, or what changed since a version. Pure.

Every target gets a number in the order of arrival, and no number is used twice. A version is therefore two
counts: of the numbers that were given, and of the targets that have gone. Targets with later numbers came
after the version; the log of removals says which ones went.

An answer is one JSON value per line. The first line names the new version, the version that the answer is a
change to (empty for the whole list), and how many lines follow. Each of these is the number of a target that
went, or a target that came.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Any, TypeAlias

from meshscrape.errors import InputError
from meshscrape.prometheus.target_rows import parse_target_row, target_row
from meshscrape.prometheus.targets import Target

# A follower that missed more removals than this gets the whole list.
REMOVALS_KEPT = 10_000
# What a follower accepts from the other proxy.
MOST_TARGETS = 200_000
LONGEST_LINE = 1 << 16
_MOST_NAMES = 1 << 10
_VERSION = re.compile(r"[A-Za-z0-9.]{1,100}")
# A follower rests for this many times as long as an answer took: reading takes a bounded part of a core.
_PAUSE_FACTOR, _SHORTEST_PAUSE = 5.0, 0.1
_LONGEST_PAUSE, _LONGEST_PAUSE_AFTER_ALL = 1.0, 30.0

Entry: TypeAlias = tuple[int, str, Target]


class ChangeLog:
    """The targets of the proxy that shares them, with their numbers.

    `run` tells the versions of this process from those of an earlier one. It has letters and digits only.
    """

    def __init__(self, run: str, removals_kept: int = REMOVALS_KEPT) -> None:
        self._run = run
        # By the identity of the target. The entry keeps it alive, so that no other object has its identity.
        self._entries: dict[int, Entry] = {}
        self._given = 0
        self._removals = 0
        self._last_removed: deque[int] = deque(maxlen=removals_kept)

    @property
    def version(self) -> str:
        """Return the version of the targets as they are now."""
        return f"{self._run}.{self._given}.{self._removals}"

    def update(self, targets: Mapping[str, Iterable[Sequence[Target]]]) -> None:
        """Take all targets by job as they are now. A target that did not change is the same object."""
        parts = [(job, part) for job, sequences in targets.items() for part in sequences]
        present = set(map(id, chain.from_iterable(part for _, part in parts)))
        for identity in [identity for identity in self._entries if identity not in present]:
            self._last_removed.append(self._entries.pop(identity)[0])
            self._removals += 1
        if len(present) == len(self._entries):
            return
        for job, part in parts:
            for target in part:
                if id(target) not in self._entries:
                    self._entries[id(target)] = (self._given, job, target)
                    self._given += 1

    def since(self, version: str) -> Iterator[bytes]:
        """Return the lines of the answer to a follower that knows `version` (any text)."""
        position = self._position(version)
        if position is not None:
            given, removals = position
            newest = reversed(self._entries.values())
            arrivals = tuple(takewhile(lambda entry: entry[0] >= given, newest))[::-1]
            first = len(self._last_removed) - (self._removals - removals)
            # What came and went in between is unknown to the follower.
            departures = tuple(number for number in islice(self._last_removed, first, None) if number < given)
            if len(arrivals) + len(departures) <= len(self._entries):
                return _lines(self.version, version, departures, arrivals)
        return _lines(self.version, "", (), tuple(self._entries.values()))

    def _position(self, version: str) -> tuple[int, int] | None:
        """Return the two counts of a version of this run; None if the log does not reach back to it."""
        run, *counts = version.split(".")
        if run != self._run or [count.isdecimal() and len(count) < 20 for count in counts] != [True, True]:
            return None
        given, removals = map(int, counts)
        missed = self._removals - removals
        known = given <= self._given and 0 <= missed <= len(self._last_removed)
        return (given, removals) if known else None


def _lines(version: str, since: str, gone: Sequence[int], come: Sequence[Entry]) -> Iterator[bytes]:
    yield _line({"version": version, "since": since, "gone": len(gone), "come": len(come)})
    for number in gone:
        yield _line(number)
    for number, job, target in come:
        yield _line([number, job, *target_row(target)])


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


@dataclass(slots=True)
class _Head:
    """The first line of an answer."""

    version: str
    since: str
    gone: int
    come: int


@dataclass(slots=True)
class Answer:
    """One answer as it arrives. None of it counts before it is whole (`Replica.take`)."""

    where: str
    names: dict[str, str]
    head: _Head | None = None
    gone: list[int] = field(default_factory=list)
    come: list[Entry] = field(default_factory=list)
    _rest: bytes = b""
    # Equal texts of one answer are one object: thousands of targets have the same namespace and labels.
    _texts: dict[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Return whether it is the whole list, not a change."""
        return self.head is not None and not self.head.since

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raise InputError for what is no such answer, or exceeds a bound."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > LONGEST_LINE:
            raise self.wrong("a line is too long")

    def end(self) -> _Head:
        """Return the first line. Raise InputError if lines are missing."""
        if self.head is None or self._rest or len(self.come) < self.head.come:
            raise self.wrong("it ends too early")
        return self.head

    def _take(self, line: bytes) -> None:
        if len(line) > LONGEST_LINE:
            raise self.wrong("a line is too long")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise self.wrong("a line is not JSON") from None
        if self.head is None:
            self.head = self._parse_head(value)
        elif len(self.gone) < self.head.gone:
            self.gone.append(self._number(value))
        elif len(self.come) < self.head.come:
            self.come.append(self._entry(value))
        else:
            raise self.wrong("it has more lines than it announces")

    def _parse_head(self, value: Any) -> _Head:
        if not isinstance(value, dict) or value.keys() != {"version", "since", "gone", "come"}:
            raise self.wrong("its first line is another")
        for name in ("version", "since"):
            text = value[name]
            if not isinstance(text, str) or not (_VERSION.fullmatch(text) or (not text and name == "since")):
                raise self.wrong(f"`{name}` is not a version")
        for name in ("gone", "come"):
            if self._number(value[name]) > MOST_TARGETS:
                raise self.wrong(f"it has more than {MOST_TARGETS} targets")
        return _Head(**value)

    def _number(self, value: Any) -> int:
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise self.wrong("a number is missing")
        return value

    def _entry(self, value: Any) -> Entry:
        if not isinstance(value, list) or len(value) < 2 or not isinstance(value[1], str):
            raise self.wrong("a target is missing")
        target = parse_target_row(value[2:], self.where, self._same, self._same_name)
        return self._number(value[0]), self._same(value[1]), target

    def _same(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def _same_name(self, name: str) -> str:
        return self.names.setdefault(name, name) if len(self.names) < _MOST_NAMES else self._same(name)

    def wrong(self, why: str) -> InputError:
        """Return the error for an answer of another shape."""
        return InputError(
            f"this is not what a scrape proxy tells its followers: {why}",
            where=self.where,
            remedy="check the address, and that both proxies have the same version",
        )


class Replica:
    """The targets that another proxy told, as of `version` (empty before the first answer)."""

    def __init__(self, jobs: Iterable[str]) -> None:
        """Begin without targets. Targets of other jobs than `jobs` are left out."""
        self.version = ""
        self._targets: dict[str, dict[int, Target]] = {job: {} for job in jobs}
        self._names: dict[str, str] = {}

    def targets(self) -> dict[str, tuple[Target, ...]]:
        """Return the targets by job, every job present."""
        return {job: tuple(targets.values()) for job, targets in self._targets.items()}

    def begin(self, where: str) -> Answer:
        """Return an answer to be read; `where` is the place for errors."""
        return Answer(where, self._names)

    def take(self, answer: Answer) -> bool:
        """Take a whole answer; return whether a target changed.

        Raises InputError for one that is not whole or does not fit, which changes nothing.
        """
        head = answer.end()
        if head.since and head.since != self.version:
            raise answer.wrong("it is a change to another version")
        changed = self._change(answer) if head.since else self._replace(answer)
        self.version = head.version
        return changed

    def _change(self, answer: Answer) -> bool:
        come = [entry for entry in answer.come if entry[1] in self._targets]
        if sum(map(len, self._targets.values())) + len(come) - len(answer.gone) > MOST_TARGETS:
            raise answer.wrong(f"it makes more than {MOST_TARGETS} targets")
        changed = bool(come)
        for number in answer.gone:
            for targets in self._targets.values():
                changed |= targets.pop(number, None) is not None
        for number, job, target in come:
            self._targets[job][number] = target
        return changed

    def _replace(self, answer: Answer) -> bool:
        """Take the whole list. Equal targets stay the same objects, so that later steps see no change."""
        known = {
            (job, target.address, target.port, target.path): target
            for job, targets in self._targets.items()
            for target in targets.values()
        }
        now: dict[str, dict[int, Target]] = {job: {} for job in self._targets}
        for number, job, target in answer.come:
            if job in now:
                before = known.get((job, target.address, target.port, target.path))
                now[job][number] = before if before == target and before is not None else target
        same = all(_identities(now[job]) == _identities(self._targets[job]) for job in now)
        self._targets = now
        return not same


def _identities(targets: Mapping[int, Target]) -> set[int]:
    return {id(target) for target in targets.values()}


def pause_after(seconds: float, *, whole: bool) -> float:
    """Return how long a follower rests after an answer that took so many seconds to read and use.

    The longest pause after the whole list is longer, because the other proxy decides how often it is needed.
    """
    longest = _LONGEST_PAUSE_AFTER_ALL if whole else _LONGEST_PAUSE
    return max(_SHORTEST_PAUSE, min(longest, _PAUSE_FACTOR * seconds))
