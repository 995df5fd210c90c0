"""The owner of each metric family: a name is never exposed by two sources."""

from __future__ import annotations

from collections.abc import Sequence

# The series names that a family of each type exposes beside its own name.
SUFFIXES: dict[bytes, tuple[bytes, ...]] = {
    b"histogram": (b"_bucket", b"_sum", b"_count"),
    b"summary": (b"_sum", b"_count"),
}
_ENDINGS = (b"_bucket", b"_sum", b"_count")

# Owners that are not sources.
AGENT = -1
PROMETHEUS = -2


class FamilyTable:
    """Family name → type and owner. It has one entry per family and none per series, to bound the memory."""

    __slots__ = ("_families",)

    def __init__(self) -> None:
        self._families: dict[bytes, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._families)

    def __contains__(self, name: bytes) -> bool:
        return name in self._families

    def get(self, name: bytes) -> tuple[bytes, int] | None:
        """Return type and owner of the family of exactly this name."""
        return self._families.get(name)

    def add(self, name: bytes, kind: bytes, owner: int) -> None:
        """Record a family. The caller has checked with `conflicts` that its names are free."""
        self._families[name] = (kind, owner)

    def add_all(self, found: Sequence[tuple[bytes, bytes]], owner: int) -> bool:
        """Record all these (name, type) and return True. If one of their series names is taken, return False.

        With False, nothing is recorded. This does `conflicts` and `add` for all families of a chunk at once.
        """
        # Comprehensions, because this is most of the cost of a body of many small families.
        families = self._families
        fresh = {name: (kind, owner) for name, kind in found}
        if len(fresh) < len(found) or not families.keys().isdisjoint(fresh):
            return False
        if any(map(self.parent, [name for name in fresh if name.endswith(_ENDINGS)])):
            return False
        series = [name + suffix for name, kind in found if kind in SUFFIXES for suffix in SUFFIXES[kind]]
        if not (fresh.keys().isdisjoint(series) and families.keys().isdisjoint(series)):
            return False
        families.update(fresh)
        return True

    def parent(self, name: bytes) -> bytes | None:
        """Return the histogram or summary that has `name` among its series (`x` for `x_sum`), if any."""
        if not name.endswith(_ENDINGS):
            return None
        cut = name.rfind(b"_")
        base, suffix = name[:cut], name[cut:]
        family = self._families.get(base)
        return base if family is not None and suffix in SUFFIXES.get(family[0], ()) else None

    def is_distribution(self, name: bytes) -> bool:
        """Return whether there is a histogram or summary of exactly this name."""
        family = self._families.get(name)
        return family is not None and family[0] in SUFFIXES

    def widens(self, known: bytes, kind: bytes) -> bool:
        """Return whether a family of type `kind` has more series names than one of type `known`."""
        return len(SUFFIXES.get(kind, ())) > len(SUFFIXES.get(known, ()))

    def conflicts(self, name: bytes, kind: bytes) -> bool:
        """Return whether a new family of this name and type would expose a series name with an owner."""
        if name in self._families or self.parent(name) is not None:
            return True
        return any(name + suffix in self._families for suffix in SUFFIXES.get(kind, ()))

    def owners(self, name: bytes, kind: bytes) -> set[int]:
        """Return the owners of every series name that a family of this name and type would expose."""
        names = [name, *(name + suffix for suffix in SUFFIXES.get(kind, ()))]
        parent = self.parent(name)
        if parent is not None:
            names.append(parent)
        return {self._families[owned][1] for owned in names if owned in self._families}
