"""The Prometheus Operator, installed from its own bundle in the module cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import yaml

from conformance.cluster import programs
from conformance.kube import Kube, Object

MODULE = "github.com/prometheus-operator/prometheus-operator"
NAMESPACE = "operators"


def bundle() -> tuple[list[Object], list[Object]]:
    """Return the CRDs, and the Operator itself in a namespace of its own."""
    text = (programs.source("operator", MODULE) / "bundle.yaml").read_text()
    objects = [value for value in yaml.load_all(text, Loader=yaml.CSafeLoader) if value]
    definitions = [value for value in objects if value["kind"] == "CustomResourceDefinition"]
    others = [value for value in objects if value["kind"] != "CustomResourceDefinition"]
    for value in others:
        if "namespace" in value["metadata"]:
            value["metadata"]["namespace"] = NAMESPACE
        for subject in value.get("subjects", []):
            subject["namespace"] = NAMESPACE
    return definitions, others


@contextlib.contextmanager
def running(kube: Kube) -> Iterator[None]:
    """Provide a running Operator with its CRDs, and remove both."""
    definitions, others = bundle()
    with kube.namespace(NAMESPACE):
        # Client-side apply cannot hold CRDs of this size in its annotation.
        kube.apply(definitions, "--server-side", "--force-conflicts")
        kube("wait", "--for=condition=Established", "crd", *(d["metadata"]["name"] for d in definitions))
        kube.apply(others, "--server-side", "--force-conflicts")
        try:
            kube.rollout(NAMESPACE, "deployment/prometheus-operator")
            yield
        finally:
            names = [value["metadata"]["name"] for value in definitions]
            kube("delete", "crd", *names, "--ignore-not-found", "--timeout=120s")
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": others})
            kube("delete", "--ignore-not-found", "-f", "-", stdin=text)
