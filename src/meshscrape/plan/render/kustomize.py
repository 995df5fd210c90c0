"""Render a plan as kustomize overlays, one per phase. Each builds on the previous, the first on the base.

A changed object becomes a patch with only the differences, so the user's base stays unchanged. Kustomize
merges lists of built-in kinds by their items' names, and replaces lists of other kinds as a whole.
"""

from __future__ import annotations

from typing import Any

from meshscrape.kube.objects import Object
from meshscrape.kube.yaml_text import dump
from meshscrape.plan.model import PHASES, Change, Plan
from meshscrape.plan.render.diff import plan_text
from meshscrape.plan.render.files import HEAD, OVERVIEW, clean, file_name, phase_directory, place

_HEADER = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
# In built-in kinds, the items of these lists are merged by a key.
_MERGE_KEYS = {
    "containers": "name", "initContainers": "name", "env": "name", "volumes": "name",
    "volumeMounts": "mountPath",
}  # fmt: skip
_BUILT_IN = ("", "apps", "batch")


def kustomize_files(plan: Plan, base: str) -> dict[str, str]:
    """Return relative paths and their text.

    `base` is the directory (relative to a phase's directory) or the URL of the user's own kustomization.
    """
    files = {OVERVIEW: HEAD + plan_text(plan)}
    trees = sorted({place(plan, change.ref) for change in plan.changes})
    for tree in trees:
        previous = base
        for phase in PHASES:
            changes = [edit for edit in plan.changes if edit.phase == phase and place(plan, edit.ref) == tree]
            if not changes:
                continue
            directory = f"{tree}{phase_directory(phase)}"
            files |= {f"{directory}/{name}": text for name, text in _overlay(changes, previous).items()}
            previous = f"../{phase_directory(phase)}"
    return dict(sorted(files.items()))


def _overlay(changes: list[Change], previous: str) -> dict[str, str]:
    files: dict[str, str] = {}
    resources, patches = [previous], []
    for change in changes:
        name = file_name(change.ref)
        head = f"# why: {change.reason}\n"
        if change.before is None and change.after is not None:
            resources.append(name)
            files[name] = head + dump(clean(change.after))
        elif change.before is not None:
            patches.append({"path": name})
            files[name] = head + dump(patch_of(change.before, change.after))
    document: dict[str, Any] = {**_HEADER, "resources": resources}
    if patches:
        document["patches"] = patches
    return {"kustomization.yaml": dump(document), **files}


def patch_of(before: Object, after: Object | None) -> dict[str, Any]:
    """Return the strategic-merge patch from `before` to `after`; it deletes the object if that is None."""
    metadata = clean(before)["metadata"]
    identity = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
    head = {"apiVersion": before["apiVersion"], "kind": before["kind"]}
    if after is None:
        return {"$patch": "delete", **head, "metadata": identity}
    by_name = before["apiVersion"].rpartition("/")[0] in _BUILT_IN
    changed = _difference(clean(before), clean(after), by_name) or {}
    body = {key: value for key, value in changed.items() if key != "metadata"}
    return {**head, "metadata": {**identity, **changed.get("metadata", {})}, **body}


def _difference(before: Any, after: Any, by_name: bool) -> dict[str, Any]:
    """Return the keys of a mapping that differ, with null for removed keys."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        if key not in before:
            patch[key] = value
        elif before[key] != value:
            patch[key] = _changed(key, before[key], value, by_name)
    return patch


def _changed(key: str, before: Any, after: Any, by_name: bool) -> Any:
    if isinstance(before, dict) and isinstance(after, dict):
        return _difference(before, after, by_name)
    merge_key = _MERGE_KEYS.get(key)
    if by_name and merge_key and _named(before, merge_key) and _named(after, merge_key):
        return _items(before, after, merge_key, by_name)
    return after


def _items(before: list[Any], after: list[Any], merge_key: str, by_name: bool) -> list[Any]:
    old = {item[merge_key]: item for item in before}
    new = {item[merge_key] for item in after}
    patches: list[Any] = []
    for item in after:
        known = old.get(item[merge_key])
        if known is None:
            patches.append(item)
        elif known != item:
            patches.append({merge_key: item[merge_key], **_difference(known, item, by_name)})
    patches += [{"$patch": "delete", merge_key: name} for name in old if name not in new]
    return patches


def _named(items: Any, merge_key: str) -> bool:
    """Return whether the items of a list have distinct names."""
    if not isinstance(items, list):
        return False
    if not all(isinstance(item, dict) and isinstance(item.get(merge_key), str) for item in items):
        return False
    return len({item[merge_key] for item in items}) == len(items)
