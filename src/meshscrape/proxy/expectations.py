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
        # Only of addresses where not all targets are accepted.
        self._accepted: dict[str, tuple[Target, ...]] = {}
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
        accepted, contested = _settled(targets)
        if contested:
            self._contested[address] = contested
        else:
            self._contested.pop(address, None)
        if len(accepted) < len(targets):
            self._accepted[address] = accepted
        else:
            self._accepted.pop(address, None)

    def at(self, address: str) -> tuple[Target, ...]:
        """Return the targets at an address that have a clear identity."""
        accepted = self._accepted.get(address)
        return self._at.get(address, ()) if accepted is None else accepted

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


def _settled(targets: tuple[Target, ...]) -> tuple[tuple[Target, ...], frozenset[str]]:
    """Return the targets of an address with a clear identity, and the contested `IP:port`s.

    A target that is not ready yet never contests one that is: its address may be the other one's by now.
    """
    ready: dict[int, set[SpiffeId]] = {}
    coming: dict[int, set[SpiffeId]] = {}
    for target in targets:
        (ready if target.ready else coming).setdefault(target.port, set()).add(target.spiffe_id)
    accepted = tuple(
        target for target in targets if {target.spiffe_id} == (ready.get(target.port) or coming[target.port])
    )
    contested = frozenset(target.authority for target in targets if len(ready.get(target.port, ())) > 1)
    return accepted, contested
