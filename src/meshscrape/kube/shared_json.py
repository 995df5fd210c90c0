"""Decode JSON and keep equal parts once in memory, because the pods of a workload are nearly equal."""

from __future__ import annotations

import json
from typing import Any


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


class SharedJson:
    """A decoder that keeps each distinct part once, over all texts that it decodes.

    The caller must not change the result, because its parts belong to many objects.
    """

    def __init__(self) -> None:
        self._scalars: dict[Any, Any] = {}
        self._parts: dict[tuple[Any, ...], Any] = {}
        self._decoder = json.JSONDecoder(object_pairs_hook=self._mapping)

    def decode(self, text: str) -> Any:
        """Return the data. Raise ValueError for what is not JSON, and RepeatedKeyError for a repeated key."""
        return self._decoder.decode(text)

    def _mapping(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = {key: self._shared(value) for key, value in pairs}
        if len(result) != len(pairs):
            raise RepeatedKeyError("a key is repeated")
        # The index keeps these values alive, so their identities can stand for them.
        key = (*result, *map(id, result.values()))
        shared: dict[str, Any] = self._parts.setdefault(key, result)
        return shared

    def _shared(self, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        if isinstance(value, list):
            items = [self._shared(item) for item in value]
            return self._parts.setdefault((list, *map(id, items)), items)
        return self._scalars.setdefault((type(value), value), value)
