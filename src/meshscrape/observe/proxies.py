"""Reading a proxy: its container in a pod or pod template, its role, environment, image and version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio import names
from meshscrape.istio.fields import load_documents
from meshscrape.istio.versions import UNKNOWN, IstioVersion, image_version
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.model import RunningPod

_GO_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_ROLES = ("sidecar", "router", "waypoint")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An istio-proxy container as it is written. `role` is empty where the arguments do not tell.

    `complete`: it has an image and arguments of its own, so that nothing needs to inject it.
    """

    container: Mapping[str, Any]
    role: str = ""
    native: bool = False
    complete: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """The image as written."""
        return str(self.container.get("image", ""))


def proxy_of(template: Any) -> Proxy | None:
    """The istio-proxy container of a pod or pod template, among its init containers too; or None."""
    for place in ("initContainers", "containers"):
        for container in objects.as_list(objects.dig(template, "spec", place)):
            if objects.dig(container, "name") != names.PROXY_CONTAINER:
                continue
            arguments = [str(each) for each in objects.as_list(objects.dig(container, "args"))]
            role = next((each for each in arguments[1:2] if arguments[0] == "proxy"), "")
            image = str(objects.dig(container, "image", default=""))
            return Proxy(
                container=container,
                role=role if role in _ROLES else "",
                native=place == "initContainers",
                complete=bool(role) and image not in ("", "auto"),
                env=env_of(container),
            )
    return None


def env_of(container: Any) -> dict[str, str]:
    """The variables of a container that have a value of their own; the last of a repeated name wins."""
    found = {}
    for each in objects.as_list(objects.dig(container, "env")):
        name, value = objects.dig(each, "name"), objects.dig(each, "value")
        if isinstance(name, str) and value is not None:
            found[name] = str(value)
    return found


def is_injected(annotations: Mapping[str, str]) -> bool:
    """Whether the injector has been here."""
    return names.STATUS in annotations


def injected_revision(annotations: Mapping[str, str]) -> str:
    """The revision that injected a pod, as its annotations tell; empty when they do not."""
    try:
        status = json.loads(annotations.get(names.STATUS, "{}"))
    except ValueError:
        status = {}
    revision = status.get("revision") if isinstance(status, dict) else None
    return str(revision or annotations.get(names.REVISION, ""))


def uses_gateway_template(annotations: Mapping[str, str]) -> bool:
    """Whether the injector is asked for its gateway template."""
    return "gateway" in [each.strip() for each in annotations.get(names.TEMPLATES, "").split(",")]


def port_value(text: str | None) -> int | None:
    """A port variable as the agent reads it: a number; 0, empty or unreadable is off."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 5:
        return None
    return int(text) if 0 < int(text) <= 65535 else None


def is_true(text: str | None) -> bool:
    """A boolean variable as Go reads it."""
    return text in _GO_TRUE


def config_annotation(annotations: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """The fields of `proxy.istio.io/config`, and why they cannot be read (empty when they can)."""
    return _parse_config(str(annotations.get(names.PROXY_CONFIG_ANNOTATION, "")))


@lru_cache(maxsize=4096)
def _parse_config(text: str) -> tuple[Mapping[str, Any], str]:
    # All pods of a workload have the same text.
    try:
        documents = load_documents(text, "line")
    except InputError as error:
        return {}, str(error)
    if len(documents) > 1:
        return {}, "more than one YAML document"
    return (documents[0].data if documents else {}), ""


def metadata_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The strings of `proxyMetadata` (or proxy_metadata) of a ProxyConfig."""
    found = objects.as_mapping(config.get("proxyMetadata", config.get("proxy_metadata")))
    return {str(key): value for key, value in found.items() if isinstance(value, str)}


def annotation_metadata(annotations: Mapping[str, str]) -> dict[str, str]:
    """The proxyMetadata of `proxy.istio.io/config`; empty when it cannot be read."""
    return metadata_of(config_annotation(annotations)[0])


def running_pod(pod: Manifest) -> RunningPod:
    """A pod as it runs: what its own environment and annotations say, and the image that was started."""
    annotations = objects.annotations(pod.data)
    proxy = proxy_of(pod.data)
    env = proxy.env if proxy else {}
    version = _running_version(pod, proxy)
    closed = is_true(env.get(names.METRICS_LOCALHOST_ACCESS_ONLY)) and _stats_closed(env, annotations)
    return RunningPod(
        ref=pod.ref,
        phase=str(objects.dig(pod.data, "status", "phase", default="")),
        version=version,
        secure_port=port_value(env.get(names.ENVOY_SECURE_MERGED_METRICS_PORT)),
        secure_envoy_port=port_value(env.get(names.ENVOY_SECURE_METRICS_PORT)),
        hardened=proxy is not None and closed and version.at_least("1.22") is not False,
        native_sidecar=proxy.native if proxy else None,
        injected=is_injected(annotations) or (proxy is not None and proxy.complete),
        annotations={
            key: str(annotations[key])
            for key in (names.SECURE_PORT, names.SECURE_ENVOY_PORT, names.BOOTSTRAP_OVERRIDE)
            if key in annotations
        },
        ip=str(objects.dig(pod.data, "status", "podIP", default="")),
    )


def _stats_closed(env: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    written = annotation_metadata(annotations).get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    if written is None:
        try:
            config = json.loads(env.get(names.PROXY_CONFIG, "{}"))
        except ValueError:
            config = {}
        written = metadata_of(objects.as_mapping(config)).get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    # Istio's bootstrap compares with this one spelling.
    return written == "true"


def _running_version(pod: Manifest, proxy: Proxy | None) -> IstioVersion:
    if proxy is None:
        return UNKNOWN
    for place in ("initContainerStatuses", "containerStatuses"):
        for status in objects.as_list(objects.dig(pod.data, "status", place)):
            if objects.dig(status, "name") == names.PROXY_CONTAINER:
                version = image_version(str(objects.dig(status, "image", default="")))
                if version.known:
                    return version
    return image_version(proxy.image)
