"""Closed schemas for every kind of object that is rendered: what an API server silently drops fails here.

Istio's, the Gateway API's and the Operator's come from the CRDs of `support.upstream`, closed (`_closed`);
Kubernetes' own from the strict schemas of the `kubernetes-validate` package. CEL rules are not run.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any

import jsonschema
import referencing
import yaml

from support.upstream import CRDS

# The oldest with all that is rendered (restartPolicy of init containers), and the newest of the package.
KUBERNETES = ("1.29", "1.37")
_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
_OBJECT_META = {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def problems(obj: Mapping[str, Any], versions: Iterable[str] = KUBERNETES) -> list[str]:
    """What is wrong with an object, as `path: message`; empty when it is valid.

    `versions` are Kubernetes' own, for its own kinds. LookupError for a kind without a schema.
    """
    group, _, version = str(obj["apiVersion"]).rpartition("/")
    kind = str(obj["kind"])
    if (group, kind) in crds():
        return _named(kind, "", _errors(_crd_validator(group, kind, version), obj))
    found = []
    for each in versions:
        found += _named(
            kind, f" in Kubernetes {each}", _errors(_own_validator(kind, group, version, each), obj)
        )
    return found


def assert_valid(*objects: Mapping[str, Any]) -> None:
    """Fail with every problem of every object."""
    found = [f"{obj['kind']} {obj['metadata']['name']}: {each}" for obj in objects for each in problems(obj)]
    assert not found, "\n".join(found)


def known(obj: Mapping[str, Any]) -> bool:
    """Whether there is a schema for the object's kind (there is none for ASM's own)."""
    try:
        problems(obj)
    except LookupError:
        return False
    return True


def _errors(validator: Any, obj: Mapping[str, Any]) -> Iterator[str]:
    for error in sorted(validator.iter_errors(obj), key=lambda error: error.json_path):
        yield f"{error.json_path}: {error.message[:300]}"


def _named(kind: str, suffix: str, errors: Iterable[str]) -> list[str]:
    return [f"{error}{suffix}" for error in errors]


@functools.cache
def crds() -> dict[tuple[str, str], str]:
    """The text of each CRD by group and kind. Parsing all of them would take longer than all tests do."""
    found = {}
    for path in sorted(CRDS.rglob("*.yaml")):
        for text in re.split(r"^---$", path.read_text(), flags=re.MULTILINE):
            group = re.search(r"^  group: (\S+)$", text, re.MULTILINE)
            kind = re.search(r"^    kind: (\S+)$", text, re.MULTILINE)
            if group and kind and re.search(r"^kind: CustomResourceDefinition$", text, re.MULTILINE):
                found[group[1], kind[1]] = text
    return found


def _versions(group: str, kind: str) -> dict[str, dict[str, Any]]:
    """The schemas of a kind's served versions."""
    spec = yaml.load(crds()[group, kind], Loader=_LOADER)["spec"]
    assert (spec["group"], spec["names"]["kind"]) == (group, kind)
    return {each["name"]: each["schema"]["openAPIV3Schema"] for each in spec["versions"] if each["served"]}


@functools.cache
def _crd_validator(group: str, kind: str, version: str) -> Any:
    schemas = _versions(group, kind)
    if version not in schemas:
        raise LookupError(f"{kind}.{group} has no served version {version!r}, only {sorted(schemas)}")
    schema = _closed(schemas[version])
    schema["properties"] = {
        **schema["properties"],
        "apiVersion": {"const": f"{group}/{version}"},
        "kind": {"const": kind},
        "metadata": _OBJECT_META,
    }
    schema["required"] = [*schema.get("required", ()), "apiVersion", "kind", "metadata"]
    return _validator(schema, KUBERNETES[-1])


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A structural schema that refuses unknown keys wherever it names the known ones.

    Junctors (`oneOf`, `not`, …) stay as they are: in a structural schema they only narrow what the
    structure around them has. Values may be null only where `nullable` says so.
    """
    result = dict(schema)
    preserves = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema:
        result["properties"] = {key: _closed(value) for key, value in schema["properties"].items()}
        if not preserves:
            result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _closed(schema["additionalProperties"])
    if isinstance(schema.get("items"), Mapping):
        result["items"] = _closed(schema["items"])
    if schema.get("x-kubernetes-embedded-resource"):
        result["additionalProperties"] = True
    if schema.get("nullable") and "type" in schema:
        result["type"] = [schema["type"], "null"]
        if "enum" in schema:
            result["enum"] = [*schema["enum"], None]
    return result


@functools.cache
def _own_validator(kind: str, group: str, version: str, kubernetes: str) -> Any:
    # The package names its files like this: deployment-apps-v1.json, clusterrole-rbac-v1.json, pod-v1.json.
    parts = [kind.lower(), *([group.partition(".")[0]] if group else []), version]
    path = _folder(kubernetes) / f"{'-'.join(parts)}.json"
    if not path.is_file():
        raise LookupError(f"no schema for {kind} of {group or 'the core group'}/{version} in {kubernetes}")
    return _validator(json.loads(path.read_text()), kubernetes)


def _folder(kubernetes: str) -> Any:
    return files("kubernetes_validate") / "kubernetes-json-schema" / f"v{kubernetes}.0-local-strict"


@functools.cache
def _definitions(kubernetes: str) -> Any:
    contents = json.loads((_folder(kubernetes) / "_definitions.json").read_text())
    resource = referencing.Resource.from_contents(contents)
    return referencing.Registry().with_resource(_DEFINITIONS, resource)


def _unique(_: Any, keys: list[str], instance: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    """No two entries of a list that is a map by `keys`: the API server refuses it, or merges them."""
    if isinstance(instance, list):
        seen = [tuple(each.get(key) for key in keys) for each in instance if isinstance(each, dict)]
        for twice in {each for each in seen if seen.count(each) > 1}:
            yield jsonschema.ValidationError(f"two entries with {keys} = {twice}")


# The package has no types for it.
_extend: Any = jsonschema.validators.extend
_Closed = _extend(jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": _unique})


def _validator(schema: Mapping[str, Any], kubernetes: str) -> Any:
    return _Closed(schema, registry=_definitions(kubernetes))
