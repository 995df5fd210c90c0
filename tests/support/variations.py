"""Clusters written another way: what a plan makes of them must not depend on it.

Each variation takes and returns plain objects, and leaves its input as it is.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml

from support.objects import Object, pod_of

Variation = Callable[[list[Object]], list[Object]]
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
# Namespaces of the platform. Their names mean something to Istio or to the operators.
_PLATFORM = frozenset({"istio-system", "kube-system", "monitoring"})


def shuffled(objects: list[Object]) -> list[Object]:
    """Return the objects in another order."""
    return random.Random(3).sample(objects, len(objects))


def of_helm(objects: list[Object]) -> list[Object]:
    """Return the objects with the marks of a Helm release."""
    found = copy.deepcopy(objects)
    for each in found:
        _mapping(each["metadata"], "labels")["app.kubernetes.io/managed-by"] = "Helm"
        marks = {"meta.helm.sh/release-name": "release", "meta.helm.sh/release-namespace": "default"}
        _mapping(each["metadata"], "annotations").update(marks)
    return found


def in_other_namespaces(objects: list[Object]) -> list[Object]:
    """Return the objects with another name for each namespace of applications."""
    text = yaml.safe_dump_all(objects)
    for space in _spaces(objects):
        text = _replaced(text, space, f"{space}-two")
    return list(yaml.safe_load_all(text))


def under_other_names(objects: list[Object]) -> list[Object]:
    """Return the objects with other names for the workloads of applications, and what is named after them."""
    text = yaml.safe_dump_all(objects)
    spaces = _spaces(objects)
    names = {
        each["metadata"]["name"]
        for each in objects
        if each["kind"] in _WORKLOADS and each["metadata"].get("namespace") in spaces
    }
    for name in sorted(names, key=len, reverse=True):
        text = _replaced(text, name, f"zz-{name}")
    return list(yaml.safe_load_all(text))


def in_two_namespaces(objects: list[Object]) -> list[Object]:
    """Return the objects, and a copy of each namespace of applications that has no scraper."""
    found = list(objects)
    for space in _spaces(objects):
        inside = [each for each in objects if each["metadata"].get("namespace") == space]
        if any(
            re.search(r"image: \S*prometheus|kind: Prometheus$", yaml.safe_dump(each), re.M)
            for each in inside
        ):
            continue
        itself = [
            each for each in objects if each["kind"] == "Namespace" and each["metadata"]["name"] == space
        ]
        for each in (*itself, *inside):
            found.append(yaml.safe_load(_replaced(yaml.safe_dump(each), space, f"{space}-copy")))
    return found


def injected_by_pod_labels(objects: list[Object]) -> list[Object]:
    """Return the objects with injection asked for by each pod template instead of by its namespace."""
    found = copy.deepcopy(objects)
    spaces = set()
    for each in found:
        labels = each["metadata"].get("labels") or {}
        if each["kind"] == "Namespace" and labels.get("istio-injection") == "enabled":
            del labels["istio-injection"]
            spaces.add(each["metadata"]["name"])
    for each in found:
        if each["metadata"].get("namespace") in spaces and each["kind"] in _WORKLOADS:
            labels = _mapping(_mapping(each["spec"]["template"], "metadata"), "labels")
            labels.setdefault("sidecar.istio.io/inject", "true")
    return found


def with_pods(objects: list[Object]) -> list[Object]:
    """Return the objects with a running pod for each injected workload of applications that has none."""
    found = list(objects)
    injected = {
        each["metadata"]["name"]
        for each in objects
        if each["kind"] == "Namespace"
        and (each["metadata"].get("labels") or {}).get("istio-injection") == "enabled"
    }
    known = {each["metadata"].get("namespace") for each in objects if each["kind"] == "Pod"}
    for each in objects:
        place = each["metadata"].get("namespace")
        if (
            each["kind"] in _WORKLOADS
            and place in injected - known
            and not each["metadata"].get("ownerReferences")
        ):
            owner = copy.deepcopy(each)
            _mapping(_mapping(owner["spec"]["template"], "metadata"), "annotations")
            if "istio-proxy" not in [one["name"] for one in owner["spec"]["template"]["spec"]["containers"]]:
                found.append(pod_of(owner))
    return found


def written_elsewhere(objects: list[Object]) -> list[Object]:
    """Return the objects as another team has them: other namespaces, a Helm release, another order."""
    return shuffled(of_helm(in_other_namespaces(objects)))


VARIATIONS: tuple[Variation, ...] = (
    written_elsewhere, under_other_names, in_two_namespaces, injected_by_pod_labels, with_pods,
)  # fmt: skip


def _spaces(objects: Iterable[Object]) -> list[str]:
    spaces = {each["metadata"].get("namespace") for each in objects} - _PLATFORM - {None, ""}
    return sorted(spaces, key=len, reverse=True)


def _replaced(text: str, name: str, by: str) -> str:
    return re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w-])", by, text)


def _mapping(data: Any, key: str) -> Any:
    if not data.get(key):
        data[key] = {}
    return data[key]
