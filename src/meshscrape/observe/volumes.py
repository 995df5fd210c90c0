"""Read the annotations userVolume and userVolumeMount: maps by name for Istio, often written as lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.kube import objects


@dataclass(frozen=True, slots=True)
class NamedItems:
    """The items of the annotation, and how it is written: `map`, `list`, `unreadable`, or empty."""

    items: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    form: str = ""


def named_items(text: str) -> NamedItems:
    """Return the volumes or mounts that an annotation spells, in either form."""
    if not text.strip():
        return NamedItems()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return NamedItems(form="unreadable")
    if isinstance(data, dict):
        return NamedItems(tuple((str(key), objects.as_mapping(value)) for key, value in data.items()), "map")
    if isinstance(data, list):
        named = tuple((str(objects.dig(item, "name", default="")), objects.as_mapping(item)) for item in data)
        return NamedItems(named, "list")
    return NamedItems(form="unreadable")
