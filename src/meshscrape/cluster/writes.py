"""Build the requests that make a plan's changes. Pure.

Every request is a compare-and-swap: it fails, and changes nothing, if another manager changed the same fields
since the plan was made. An update is a JSON Patch (RFC 6902) of the fields that differ, each tested first, so
that it neither conflicts with a controller that writes the status nor takes fields away from their owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshscrape.cluster.kinds import Resource, group_path
from meshscrape.errors import InputError
from meshscrape.kube.objects import Object, Ref, dig
from meshscrape.plan.model import MANAGER, Action, Change
from meshscrape.plan.patches import json_patch

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True, slots=True)
class Write:
    """One request to the API server."""

    method: str
    path: str
    body: Any
    media_type: str
    query: Mapping[str, str]


def write_of(change: Change, resources: Iterable[Resource], *, dry_run: bool = False) -> Write:
    """Return the request that makes a change.

    Raises InputError for a kind that the API server does not serve.
    """
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
    data = change.after if change.after is not None else change.before
    assert data is not None  # noqa: S101 - a change has one of both
    collection = collection_path(change.ref, str(data.get("apiVersion")), resources)
    if change.action == "create":
        return Write("POST", collection, change.after, JSON, query)
    path = f"{collection}/{change.ref.name}"
    if change.action == "delete":
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": dig(change.before, "metadata", "uid")},
        }
        return Write("DELETE", path, body, JSON, {key: query[key] for key in ("dryRun",) if key in query})
    assert change.before is not None and change.after is not None  # noqa: S101 - an update has both
    return Write("PATCH", path, json_patch(change.before, change.after), JSON_PATCH, query)


def merged(changes: Iterable[Change]) -> list[Change]:
    """Return one change for each object, from its present state to the result of its last change.

    A change of a later phase begins with what an earlier one has made, which a dry run does not make.
    """
    latest: dict[Ref, Change] = {}
    for change in changes:
        before = latest[change.ref].before if change.ref in latest else change.before
        latest[change.ref] = replace(change, before=before, action=_action(before, change.after))
    return [change for change in latest.values() if (change.before, change.after) != (None, None)]


def _action(before: Object | None, after: Object | None) -> Action:
    if before is None:
        return "create"
    return "update" if after is not None else "delete"


def collection_path(ref: Ref, api_version: str, resources: Iterable[Resource]) -> str:
    """Return the path of the objects like `ref`, in its namespace."""
    plural = next(
        (known.plural for known in resources if (known.group, known.kind) == (ref.group, ref.kind)), ""
    )
    if not plural:
        raise InputError(
            "the API server does not serve this kind",
            where=str(ref),
            remedy="install its CustomResourceDefinition first",
            code="unserved-kind",
        )
    place = f"/namespaces/{ref.namespace}" if ref.namespace else ""
    return f"{group_path(ref.group, api_version.rpartition('/')[2])}{place}/{plural}"
