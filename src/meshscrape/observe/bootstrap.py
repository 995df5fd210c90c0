"""Read bootstrap overrides: the ConfigMap that a proxy uses, and the listeners that it adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from meshscrape.envoy.override import SCRAPERS_FILE
from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.istio.names import BOOTSTRAP_OVERRIDE, ISTIO_BOOTSTRAP_OVERRIDE, PROXY_CONTAINER
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Ref

KEY = "custom_bootstrap.json"


@dataclass(frozen=True, slots=True)
class Listener:
    """A static listener of an override."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Override:
    """An override: its ConfigMap, key and contents; `problem` is why the contents are missing.

    `problem`: `missing` (no such ConfigMap), `key` (no such key), `unreadable`, or empty. `allowed` are the
    entries of the allow list beside it (`spiffe:SPIFFE_ID`); None without a readable one.
    """

    config_map: Ref
    key: str = KEY
    problem: str = ""
    listeners: tuple[Listener, ...] = ()
    clusters: tuple[str, ...] = ()
    size: int = 0
    allowed: frozenset[str] | None = None

    def refuses(self, spiffe_id: str) -> bool:
        """Return whether the allow list is known and does not admit this identity."""
        domain = spiffe_id.removeprefix("spiffe://").partition("/")[0]
        entries = {f"spiffe:{spiffe_id}", f"spiffe:spiffe://{domain}/*"}
        return self.allowed is not None and self.allowed.isdisjoint(entries)


def override_of(
    namespace: str,
    annotations: Mapping[str, str],
    env: Mapping[str, str],
    template: Any,
    inventory: Inventory,
) -> Override | None:
    """Return the override that a proxy starts with, by annotation or by its own environment; or None."""
    if name := annotations.get(BOOTSTRAP_OVERRIDE):
        return read_override(Ref("", "ConfigMap", namespace, name), KEY, inventory)
    if path := env.get(ISTIO_BOOTSTRAP_OVERRIDE):
        return _mounted(namespace, path, template, inventory)
    return None


def _mounted(namespace: str, path: str, template: Any, inventory: Inventory) -> Override | None:
    volumes = {
        objects.dig(volume, "name"): objects.dig(volume, "configMap", "name")
        for volume in objects.as_list(objects.dig(template, "spec", "volumes"))
    }
    for container in objects.containers(template):
        if container.get("name") != PROXY_CONTAINER:
            continue
        for mount in objects.as_list(container.get("volumeMounts")):
            directory = str(objects.dig(mount, "mountPath", default="")).rstrip("/")
            name = volumes.get(objects.dig(mount, "name"))
            if directory and name and path.startswith(f"{directory}/"):
                return read_override(
                    Ref("", "ConfigMap", namespace, name), path.removeprefix(f"{directory}/"), inventory
                )
    return None


def read_override(ref: Ref, key: str, inventory: Inventory) -> Override:
    """Return the override in a key of a ConfigMap, or what is wrong with it."""
    config_map = inventory.get(ref)
    if config_map is None:
        return Override(ref, key, "missing")
    text = objects.dig(config_map.data, "data", key)
    if not isinstance(text, str):
        return Override(ref, key, "key")
    static = _static(text)
    if static is None:
        return Override(ref, key, "unreadable", size=len(text.encode()))
    allow_list = objects.dig(config_map.data, "data", SCRAPERS_FILE)
    allowed = _allowed(allow_list) if isinstance(allow_list, str) else None
    return Override(ref, key, "", *static, len(text.encode()), allowed)


# All workloads of a namespace share a text, and every observation of one plan reads the same texts.
@lru_cache(maxsize=1024)
def _static(text: str) -> tuple[tuple[Listener, ...], tuple[str, ...]] | None:
    """Return the listeners and the names of the clusters of an override; None if it cannot be read."""
    try:
        documents = load_documents(text, "")
    except InputError:
        return None
    if len(documents) != 1:
        return None
    static = _either(documents[0].data, "static_resources", "staticResources")
    listeners = tuple(_listener(listener) for listener in objects.as_list(objects.dig(static, "listeners")))
    clusters = objects.as_list(objects.dig(static, "clusters"))
    return listeners, tuple(str(objects.dig(cluster, "name")) for cluster in clusters)


@lru_cache(maxsize=1024)
def _allowed(text: str) -> frozenset[str] | None:
    """Return the entries of an allow list that `envoy.override` wrote, from the names of its matchers."""
    try:
        documents = load_documents(text, "")
    except InputError:
        return None
    return frozenset(
        str(objects.dig(matcher, "on_match", "action", "name", default=""))
        for document in documents
        for resource in objects.as_list(objects.dig(document.data, "resources"))
        for matcher in objects.as_list(
            objects.dig(resource, "typed_config", "matcher", "matcher_list", "matchers")
        )
    )


def _either(data: Any, *names: str) -> Any:
    return next((data[name] for name in names if isinstance(data, Mapping) and name in data), None)


def _listener(data: Any) -> Listener:
    socket = _either(objects.dig(data, "address"), "socket_address", "socketAddress")
    port = _either(socket, "port_value", "portValue")
    return Listener(
        name=str(objects.dig(data, "name", default="")),
        address=str(objects.dig(socket, "address", default="")),
        port=port if isinstance(port, int) else 0,
    )
