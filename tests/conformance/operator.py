"""The Prometheus Operator, installed from its own bundle in the module cache."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
from collections.abc import Iterator

import yaml

from conformance.cluster import programs
from conformance.cluster.istio import wait_for_openapi
from conformance.kube import Kube, Object

MODULE = "github.com/prometheus-operator/prometheus-operator"
NAMESPACE = "operators"


def bundle() -> tuple[str, list[Object]]:
    """Return the CRDs as they are, and the Operator itself in a namespace of its own."""
    documents = (programs.source("operator", MODULE) / "bundle.yaml").read_text().split("\n---\n")
    definitions = [text for text in documents if "\nkind: CustomResourceDefinition\n" in text]
    others = [yaml.safe_load(text) for text in documents if text not in definitions]
    for value in others:
        if "namespace" in value["metadata"]:
            value["metadata"]["namespace"] = NAMESPACE
        for subject in value.get("subjects", []):
            subject["namespace"] = NAMESPACE
    return "\n---\n".join(definitions), others


def generated(kube: Kube, prometheus: Object) -> dict[str, Object]:
    """Return the scrape jobs that the Operator has made for a Prometheus object, by their names."""
    meta = prometheus["metadata"]
    secret = kube.get("-n", meta["namespace"], "secret", f"prometheus-{meta['name']}")
    text = gzip.decompress(base64.b64decode(secret["data"]["prometheus.yaml.gz"]))
    return {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}


@contextlib.contextmanager
def running(kube: Kube) -> Iterator[None]:
    """Provide a running Operator with its CRDs, and remove both."""
    definitions, others = bundle()
    with kube.namespace(NAMESPACE):
        # Client-side apply cannot hold CRDs of this size in its annotation.
        kube.apply(definitions, "--server-side", "--force-conflicts")
        names = re.findall(r"^  name: (\S+\.monitoring\.coreos\.com)$", definitions, re.MULTILINE)
        kube("wait", "--for=condition=Established", "crd", *names)
        wait_for_openapi(kube.run)
        kube.apply(others, "--server-side", "--force-conflicts")
        try:
            kube.rollout(NAMESPACE, "deployment/prometheus-operator")
            yield
        finally:
            kube("delete", "crd", *names, "--ignore-not-found", "--timeout=300s")
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": others})
            kube("delete", "--ignore-not-found", "-f", "-", stdin=text)
