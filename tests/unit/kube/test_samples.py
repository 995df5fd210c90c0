"""Pods as Istio's own injector writes them: what it leaves behind must never be a mistake to us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from meshscrape.istio.annotations import parse_annotations
from meshscrape.istio.proxy_config import parse_proxy_config
from support.upstream import INJECTED, needs_upstream

pytestmark = needs_upstream


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """File name, metadata and spec of every injected pod of the samples."""
    for path in sorted(INJECTED.glob("*.yaml")):
        for document in filter(None, yaml.safe_load_all(path.read_text())):
            pod = document["spec"]["template"] if document["kind"] == "Deployment" else document
            yield path.name, pod["metadata"], pod["spec"]


def test_annotations_of_injected_pods_are_understood() -> None:
    """All are recognised as injected; what they say of scraping is the agent's own endpoint, not a source."""
    found = {name: parse_annotations(metadata["annotations"], name) for name, metadata, _ in pods()}
    assert len(found) == 5
    assert all(annotations.injected for annotations in found.values())
    assert all(annotations.sources == () for annotations in found.values())
    assert found["gateway.yaml"].templates == ("gateway",)


def test_proxy_config_of_injected_proxies_is_understood() -> None:
    """The variable PROXY_CONFIG has the syntax of the annotation."""
    parsed = [
        parse_proxy_config(variable["value"], name)
        for name, _, spec in pods()
        for container in [*spec["containers"], *spec.get("initContainers", ())]
        for variable in container.get("env", ())
        if variable["name"] == "PROXY_CONFIG"
    ]
    assert len(parsed) == 5
