"""Check documents against the schemas that the package ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

from meshscrape.cli.schema import schema


def faults(document: Any, kind: str) -> list[str]:
    """Return what is wrong with a document; a key that its schema does not describe is wrong, too."""
    closed = _closed(schema(kind))
    Draft202012Validator.check_schema(closed)
    # As a program reads it: without tuples.
    plain = json.loads(json.dumps(document))
    return [f"{each.json_path}: {each.message}" for each in Draft202012Validator(closed).iter_errors(plain)]


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    inside = {key: _closed(value) for key, value in node.items()}
    return inside | ({"additionalProperties": False} if isinstance(node.get("properties"), Mapping) else {})
