"""Who is expected at each address, kept up to date at the cost of what changed. Pure.

A source tells all its targets again after every change. Targets that are the same objects as before cost next
to nothing here, so a change of one pod among ten thousand stays cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId


@dataclass(frozen=True, slots=True)
class Changed:
    """The difference to the last targets: addresses where something differs, targets that came and went."""

    addresses: frozenset[str]
    added: tuple[Target, ...]
    removed: tuple[Target, ...]


class Expectations:
    """The targets at each address. An address and port with two expected identities is contested."""

    def __init__(self) -> None:
        self._known: dict[int, Target] = {}
        self._at: dict[str, tuple[Target, ...]] = {}
        self._contested: dict[str, frozenset[str]] = {}
        self._identities: Counter[SpiffeId] = Counter()

    def update(self, targets: Iterable[Target]) -> Changed:
        """Take all targets as they are now."""
        # By identity of the objects: `_known` keeps each alive, so that no other can have its number.
        now = {id(target): target for target in targets}
        removed = tuple(target for number, target in self._known.items() if number not in now)
        added = tuple(target for number, target in now.items() if number not in self._known)
        self._known = now
        gone = {id(target) for target in removed}
        for target in removed:
            self._identities[target.spiffe_id] -= 1
            if not self._identities[target.spiffe_id]:
                del self._identities[target.spiffe_id]
        addresses = frozenset(target.address for target in (*removed, *added))
        come: dict[str, list[Target]] = {}
        for target in added:
            self._identities[target.spiffe_id] += 1
            come.setdefault(target.address, []).append(target)
        for address in addresses:
            stay = (target for target in self._at.get(address, ()) if id(target) not in gone)
            self._put(address, (*stay, *come.get(address, ())))
        return Changed(addresses, added, removed)

    def _put(self, address: str, targets: tuple[Target, ...]) -> None:
        if targets:
            self._at[address] = targets
        else:
            self._at.pop(address, None)
        expected: dict[int, SpiffeId] = {}
        contested = frozenset(
            target.authority
            for target in targets
            if expected.setdefault(target.port, target.spiffe_id) != target.spiffe_id
        )
        if contested:
            self._contested[address] = contested
        else:
            self._contested.pop(address, None)

    def at(self, address: str) -> tuple[Target, ...]:
        """Return the targets at an address, without contested ports."""
        targets, contested = self._at.get(address, ()), self._contested.get(address)
        if not contested:
            return targets
        return tuple(target for target in targets if target.authority not in contested)

    @property
    def contested(self) -> tuple[str, ...]:
        """Return the contested `IP:port`s in their order. None is scraped: the right identity is unknown."""
        return tuple(sorted(chain.from_iterable(self._contested.values())))

    @property
    def identities(self) -> frozenset[SpiffeId]:
        """Return every identity that is expected somewhere."""
        return frozenset(self._identities)

    def __len__(self) -> int:
        return len(self._known)
