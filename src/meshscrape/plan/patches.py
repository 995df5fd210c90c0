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

    A list is replaced as a whole. A field that is added must still be absent: the API server takes a test for
    null as a test for that, which RFC 6902 leaves open.
    """
    return list(_operations(before, after, ()))


def _operations(before: Object, after: Object, path: tuple[str, ...]) -> Iterator[Operation]:
    for key in (*before, *(key for key in after if key not in before)):
        field = (*path, key)
        if ".".join(field) in _LEFT:
            continue
        old, new = before.get(key), after.get(key)
        if key not in after:
            yield {"op": "test", "path": pointer(field), "value": old}
            yield {"op": "remove", "path": pointer(field)}
        elif key not in before:
            yield {"op": "test", "path": pointer(field), "value": None}
            yield {"op": "add", "path": pointer(field), "value": new}
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _operations(old, new, field)
        elif old != new:
            yield {"op": "test", "path": pointer(field), "value": old}
            yield {"op": "replace", "path": pointer(field), "value": new}


def pointer(path: tuple[str, ...]) -> str:
    """Return a JSON Pointer (RFC 6901)."""
    return "".join(f"/{key.replace('~', '~0').replace('/', '~1')}" for key in path)
