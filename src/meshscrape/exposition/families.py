"""Who owns which metric family, so that no name is ever exposed by two sources."""

from __future__ import annotations

from collections.abc import Mapping

# The series names that a family of each type exposes (or could) beside its own name.
Suffixes = Mapping[bytes, tuple[bytes, ...]]
TEXT_SUFFIXES: Suffixes = {
    b"histogram": (b"_bucket", b"_sum", b"_count"),
    b"summary": (b"_sum", b"_count"),
}
OPENMETRICS_SUFFIXES: Suffixes = {
    b"counter": (b"_total", b"_created"),
    b"histogram": (b"_bucket", b"_sum", b"_count", b"_created"),
    b"gaugehistogram": (b"_bucket", b"_gsum", b"_gcount"),
    b"summary": (b"_sum", b"_count", b"_created"),
    b"info": (b"_info",),
}


class FamilyTable:
    """Family name → type and owner. One entry per family, none per series: this is the merge's memory."""

    __slots__ = ("_endings", "_families", "suffixes")

    def __init__(self, suffixes: Suffixes = TEXT_SUFFIXES) -> None:
        self.suffixes = suffixes
        self._endings = tuple({suffix for group in suffixes.values() for suffix in group})
        self._families: dict[bytes, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._families)

    def __contains__(self, name: bytes) -> bool:
        return name in self._families

    def get(self, name: bytes) -> tuple[bytes, int] | None:
        """Type and owner of the family of exactly this name."""
        return self._families.get(name)

    def add(self, name: bytes, kind: bytes, owner: int) -> None:
        """Record a family that `conflicts` has cleared."""
        self._families[name] = (kind, owner)

    def parent(self, name: bytes) -> bytes | None:
        """The histogram or summary that has `name` among its series (`x` for `x_sum`), if there is one."""
        if not name.endswith(self._endings):
            return None
        cut = name.rfind(b"_")
        base, suffix = name[:cut], name[cut:]
        family = self._families.get(base)
        return base if family is not None and suffix in self.suffixes.get(family[0], ()) else None

    def is_distribution(self, name: bytes) -> bool:
        """Whether there is a histogram or summary of exactly this name."""
        family = self._families.get(name)
        return family is not None and family[0] in (b"histogram", b"summary")

    def widens(self, known: bytes, kind: bytes) -> bool:
        """Whether a family of type `kind` has series names that one of type `known` has not."""
        return len(self.suffixes.get(kind, ())) > len(self.suffixes.get(known, ()))

    def conflicts(self, name: bytes, kind: bytes) -> bool:
        """Whether a new family of this name and type would expose a series name that is already owned."""
        if name in self._families or (name.endswith(self._endings) and self.parent(name) is not None):
            return True
        suffixes = self.suffixes.get(kind)
        return suffixes is not None and any(name + suffix in self._families for suffix in suffixes)

    def owners(self, name: bytes, kind: bytes) -> set[int]:
        """The owners of every series name that a family of this name and type would expose."""
        names = [name, *(name + suffix for suffix in self.suffixes.get(kind, ()))]
        parent = self.parent(name)
        if parent is not None:
            names.append(parent)
        return {self._families[each][1] for each in names if each in self._families}
