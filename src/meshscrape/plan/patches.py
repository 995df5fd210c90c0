"""JSON Patches (RFC 6902) that fail if an object is no longer as it was planned for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.kube.objects import Object

# No plan writes them, and they change all the time.
_LEFT = ("status", "metadata.resourceVersion", "metadata.managedFields")

Operation = dict[str, Any]


def json_patch(before: Object, after: Object) -> list[Operation]:
    """Return the JSON Patch from one object to the other, which fails when what it changes is not as before.

    A list is replaced as a whole. What is added to a mapping of plain values (annotations, labels, data)
    tests the whole mapping, because a missing key cannot be tested.
    """
    return list(_operations(before, after, ()))


def _operations(before: Object, after: Object, path: tuple[str, ...]) -> Iterator[Operation]:
    added = [key for key in after if key not in before]
    if added and before and all(not isinstance(value, Mapping | list) for value in before.values()):
        yield {"op": "test", "path": pointer(path), "value": before}
    for key in (*before, *added):
        field = (*path, key)
        if ".".join(field) in _LEFT:
            continue
        old, new = before.get(key), after.get(key)
        if key not in after:
            yield {"op": "test", "path": pointer(field), "value": old}
            yield {"op": "remove", "path": pointer(field)}
        elif key not in before:
            yield {"op": "add", "path": pointer(field), "value": new}
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _operations(old, new, field)
        elif old != new:
            yield {"op": "test", "path": pointer(field), "value": old}
            yield {"op": "replace", "path": pointer(field), "value": new}


def pointer(path: tuple[str, ...]) -> str:
    """Return a JSON Pointer (RFC 6901)."""
    return "".join(f"/{key.replace('~', '~0').replace('/', '~1')}" for key in path)
