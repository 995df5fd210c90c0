"""Read the fields of an object leniently: leave out a field that cannot be used, and note a fault.

One wrong field must not end the reading of a cluster's objects. Where it must (the manifests of a local
mesh), the caller raises the first fault with `refuse_faults`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.fields import Field, Path, suggestion
from meshscrape.istio.ports import parse_port, shorten


@dataclass(frozen=True, slots=True)
class Fault:
    """A field that cannot be used: where it is in its object, what is wrong, and what to do."""

    path: Path
    code: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A field of an object from which a view is made; the faults of all fields go into one list."""

    value: Any
    path: Path
    faults: list[Fault]

    @classmethod
    def of(cls, data: Any) -> Reading:
        """Return the whole object as a field, with an empty list of faults."""
        return cls(data, (), [])

    def fault(self, code: str, what: str, remedy: str) -> None:
        """Note that this field cannot be used."""
        self.faults.append(Fault(self.path, code, what, remedy))

    def at(self, *keys: str) -> Reading:
        """Return the field below this one; its value is None when it is absent."""
        value = self.value
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return Reading(value, (*self.path, *keys), self.faults)

    def mapping(self, *keys: str) -> Reading:
        """Return the mapping below this field; an absent one, and one of another type, is empty."""
        below = self.at(*keys)
        if isinstance(below.value, Mapping):
            return below
        if below.value is not None:
            below.fault("not-a-mapping", "not a mapping", f"write {keys[-1]}: with fields")
        return Reading({}, below.path, self.faults)

    def items(self, *keys: str) -> list[Reading]:
        """Return the elements of a list that are mappings; an absent list has none."""
        below = self.at(*keys)
        if below.value is None:
            return []
        if not isinstance(below.value, list):
            below.fault("not-a-list", "not a list", "write its elements with dashes")
            return []
        elements = [
            Reading(element, (*below.path, index), self.faults) for index, element in enumerate(below.value)
        ]
        for element in elements:
            if not isinstance(element.value, Mapping):
                element.fault("not-a-mapping", "not a mapping", "write its fields as name: value")
        return [element for element in elements if isinstance(element.value, Mapping)]

    def text(self, key: str, default: str = "") -> str:
        """Return the string `key`, or the default when it is absent, empty or of another type."""
        below = self.at(key)
        if isinstance(below.value, str) and below.value:
            return below.value
        if below.value is not None and not isinstance(below.value, str):
            below.fault("not-a-string", f"{shorten(below.value)} is not a string", "quote it")
        return default

    def strings(self, *keys: str) -> dict[str, str]:
        """Return the strings of a mapping (labels, annotations)."""
        below = self.mapping(*keys)
        strings = {}
        for key, value in below.value.items():
            if isinstance(value, str):
                strings[str(key)] = value
            else:
                below.at(key).fault("not-a-string", f"{shorten(value)} is not a string", "quote it")
        return strings

    def port(self, key: str) -> int | None:
        """Return the port number `key`; None if it is absent or not a port number."""
        below = self.at(key)
        if not isinstance(below.value, int) or isinstance(below.value, bool):
            below.fault(
                "missing" if below.value is None else "not-a-number",
                "missing" if below.value is None else "not a number",
                f"write {key}: 9080",
            )
            return None
        return below.port_number()

    def port_number(self) -> int | None:
        """Return the port number that this field's value spells; None when it is no port number."""
        try:
            return parse_port(str(self.value), "")
        except InputError as error:
            self.fault(error.code, error.what, error.remedy)
            return None

    def only(self, *known: str) -> None:
        """Note a fault for each field that is none of `known`."""
        for name in self.value if isinstance(self.value, Mapping) else ():
            if name not in known:
                self.at(name).fault(
                    "unknown-field", f"unknown field {shorten(name)}", suggestion(str(name), known)
                )


def refuse_faults(root: Field, faults: Iterable[Fault]) -> None:
    """Raise InputError for the first fault of the object whose whole document is `root`."""
    for fault in faults:
        root.below(fault.path).refuse(fault.code, fault.what, fault.remedy)
