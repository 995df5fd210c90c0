"""Edit pod templates. Each edit is idempotent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import PROXY_CONFIG_ANNOTATION, PROXY_CONTAINER
from meshscrape.kube.objects import as_list, as_mapping, template_path
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.plan.edited_objects import Mutable, covers


def template_of(data: Mutable) -> Mutable:
    """Return the pod template of a Deployment or similar object, to be modified.

    Raises InputError without one.
    """
    path = template_path(str(data.get("kind")))
    if path is None:
        raise InputError(f"{data.get('kind')} has no pod template")
    return child(data, *path)


def child(data: Mutable, *path: str) -> Mutable:
    """Return the mapping at `path`; create it if it is absent or null."""
    for step in path:
        if not isinstance(data.get(step), dict):
            data[step] = {}
        data = data[step]
    return data


def annotate(data: Mutable, values: Mapping[str, str]) -> None:
    """Set annotations of an object or template."""
    if values:
        child(data, "metadata", "annotations").update(values)


def annotation(data: Mapping[str, Any], key: str) -> str:
    """Return an annotation's text; empty without one."""
    metadata = as_mapping(data.get("metadata"))
    value = as_mapping(metadata.get("annotations")).get(key)
    return value if isinstance(value, str) else ""


def label(data: Mutable, values: Mapping[str, str]) -> None:
    """Set labels of an object or template."""
    if values:
        child(data, "metadata", "labels").update(values)


def with_proxy_config(text: str, metadata: Mapping[str, str], fields: Mapping[str, Any] | None = None) -> str:
    """Return the annotation `proxy.istio.io/config` with these variables and fields set.

    The user's other settings are kept. Raises InputError if the text is not a mapping: Istio would refuse the
    pod.
    """
    parsed = load_text(text, PROXY_CONFIG_ANNOTATION)
    if parsed is not None and not isinstance(parsed, dict):
        raise InputError("not a mapping", where=PROXY_CONFIG_ANNOTATION, remedy="write fields of ProxyConfig")
    config: Mutable = dict(parsed or {})
    key = "proxy_metadata" if "proxy_metadata" in config else "proxyMetadata"
    if metadata:
        config[key] = {**as_mapping(config.get(key)), **metadata}
    config.update(fields or {})
    return rewrite(text, config)


def configure_proxy(
    template: Mutable, metadata: Mapping[str, str], fields: Mapping[str, Any] | None = None
) -> None:
    """Set variables (proxyMetadata) and fields in the template's `proxy.istio.io/config`."""
    text = annotation(template, PROXY_CONFIG_ANNOTATION)
    annotate(template, {PROXY_CONFIG_ANNOTATION: with_proxy_config(text, metadata, fields)})


def merged_ports(text: str, ports: Iterable[int], without: Iterable[int] = ()) -> str:
    """Return a list of ports such as `excludeInboundPorts`, with `ports` added and `without` removed."""
    unwanted = {str(port) for port in without}
    merged = [part.strip() for part in text.split(",") if part.strip() and part.strip() not in unwanted]
    merged += [str(port) for port in ports if str(port) not in merged]
    return ",".join(merged)


def container(template: Mutable, name: str = PROXY_CONTAINER) -> Mutable | None:
    """Return the container of this name, which may be a native sidecar; None without one."""
    for group in ("containers", "initContainers"):
        for candidate in as_list(as_mapping(template.get("spec")).get(group)):
            if isinstance(candidate, dict) and candidate.get("name") == name:
                return candidate
    return None


def set_env(data: Mutable, values: Mapping[str, str], key: str = "env") -> None:
    """Set environment variables in the list `key` of a container (or of an IstioGateway's spec)."""
    if not values:
        return
    present = data.get(key)
    variables: list[Any] = present if isinstance(present, list) else []
    data[key] = variables
    for name, value in values.items():
        named = [
            variable for variable in variables if isinstance(variable, dict) and variable.get("name") == name
        ]
        if named:
            # If a variable occurs several times, the last one counts.
            named[-1].pop("valueFrom", None)
            named[-1]["value"] = value
        else:
            variables.append({"name": name, "value": value})


def set_named(data: Mutable, key: str, item: Mutable, by: str = "name") -> None:
    """Put `item` into the list `key`, replacing the item with the same `by`.

    An existing item with the same fields and more is kept, because API servers add fields (`defaultMode`).
    """
    present = data.get(key)
    items: list[Any] = present if isinstance(present, list) else []
    data[key] = items
    for index, present_item in enumerate(items):
        if isinstance(present_item, dict) and present_item.get(by) == item[by]:
            if not covers(present_item, item):
                items[index] = item
            return
    items.append(item)
