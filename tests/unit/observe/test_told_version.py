"""The version of an istiod whose image does not tell it."""

from __future__ import annotations

from typing import Any

from meshscrape.observe import observe
from meshscrape.observe.control import istiods_of_unknown_version
from support.objects import cluster, control_plane


def untold(**annotations: str) -> Any:
    """A control plane whose images are pinned by digest."""
    found = []
    for thing in control_plane():
        if thing["kind"] == "Deployment":
            (container,) = thing["spec"]["template"]["spec"]["containers"]
            container["image"] = "docker.io/istio/pilot@sha256:abc"
            thing = {**thing, "metadata": {**thing["metadata"], "annotations": annotations}}
        if thing["kind"] != "ConfigMap" or "values" not in thing.get("data", {}):
            found.append(thing)
    return found


def test_an_istiod_of_a_digest_is_asked_for_its_version() -> None:
    assert [each.ref.name for each in istiods_of_unknown_version(cluster(untold()))] == ["istiod"]
    assert istiods_of_unknown_version(cluster(control_plane())) == []


def test_what_istiod_told_is_its_version() -> None:
    (plane,) = observe(cluster(untold(**{"meshscrape.io/told-version": "1.31.2"}))).control_planes
    assert (str(plane.version), plane.version_source.rpartition(": ")[2]) == ("1.31.2", "/version")
