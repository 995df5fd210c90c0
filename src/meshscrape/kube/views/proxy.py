"""The container istio-proxy of a pod or pod template, and what annotations say about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.proxy_config import proxy_metadata, read_proxy_config
from meshscrape.istio.versions import IstioVersion, image_version
from meshscrape.kube.objects import as_list, dig
from meshscrape.kube.views.pod import env_of

_ROLES = ("sidecar", "router", "waypoint")
_GATEWAY_TEMPLATE = "gateway"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An istio-proxy container as it is written. `role` is empty when the arguments do not tell it.

    A `complete` container has an image and arguments of its own and needs no injection.
    """

    container: Mapping[str, Any]
    role: str = ""
    native: bool = False
    complete: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """Return the image as written."""
        return str(self.container.get("image", ""))


def proxy_of(template: Any) -> Proxy | None:
    """Return the istio-proxy container of a pod or pod template, its init containers included; else None."""
    for place in ("initContainers", "containers"):
        for container in as_list(dig(template, "spec", place)):
            if dig(container, "name") != names.PROXY_CONTAINER:
                continue
            arguments = [str(argument) for argument in as_list(dig(container, "args"))]
            role = next((argument for argument in arguments[1:2] if arguments[0] == "proxy"), "")
            image = str(dig(container, "image", default=""))
            return Proxy(
                container=container,
                role=role if role in _ROLES else "",
                native=place == "initContainers",
                # `auto` is the image that the injector replaces.
                complete=bool(role) and image not in ("", "auto"),
                env=env_of(container),
            )
    return None


def is_injected(annotations: Mapping[str, str]) -> bool:
    """Return whether Istio's injector made the pod with these annotations."""
    return names.STATUS in annotations


def injected_revision(annotations: Mapping[str, str]) -> str:
    """Return the revision that injected a pod, as its annotations tell; empty when they do not."""
    try:
        status = json.loads(annotations.get(names.STATUS, "{}"))
    except ValueError:
        status = {}
    revision = status.get("revision") if isinstance(status, dict) else None
    return str(revision or annotations.get(names.REVISION, ""))


def uses_gateway_template(annotations: Mapping[str, str]) -> bool:
    """Return whether annotations ask the injector for its gateway template."""
    return _GATEWAY_TEMPLATE in [part.strip() for part in annotations.get(names.TEMPLATES, "").split(",")]


def config_annotation(annotations: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """Return the fields of `proxy.istio.io/config`, and why they cannot be read (empty when they can)."""
    return read_proxy_config(str(annotations.get(names.PROXY_CONFIG_ANNOTATION, "")))


def annotation_metadata(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the proxyMetadata of `proxy.istio.io/config`; empty when it cannot be read."""
    return proxy_metadata(config_annotation(annotations)[0])


def written_metadata(env: Mapping[str, str]) -> dict[str, str]:
    """Return the proxyMetadata in PROXY_CONFIG, which the injection template writes for the agent."""
    try:
        return proxy_metadata(json.loads(env.get(names.PROXY_CONFIG, "{}")))
    except ValueError:
        return {}


def running_version(pod: Mapping[str, Any], proxy: Proxy) -> IstioVersion:
    """Return the version of a pod's proxy: of the running image, else of the image in the pod's spec."""
    for place in ("initContainerStatuses", "containerStatuses"):
        for status in as_list(dig(pod, "status", place)):
            if dig(status, "name") == names.PROXY_CONTAINER:
                version = image_version(str(dig(status, "image", default="")))
                if version.known:
                    return version
    return image_version(proxy.image)
