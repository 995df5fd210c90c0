"""The environment and the arguments of a container: pure functions on a pod."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from conformance.cluster.api import Object

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NODE_RESOURCES = {"cpu": "2", "memory": "4Gi"}
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
Lookup = Callable[[str, str, bool], Mapping[str, bytes]]  # kind, name, optional


@dataclass(frozen=True)
class Place:
    """Where a pod runs."""

    node: str
    node_address: str
    pod_address: str


def field(pod: Object, place: Place, source: Object, container: Object | None = None) -> str:
    """Return the value of a `fieldRef` or `resourceFieldRef`."""
    if "resourceFieldRef" in source:
        return resource(source["resourceFieldRef"], container or {})
    path = source["fieldRef"]["fieldPath"]
    meta = pod["metadata"]
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": place.node,
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": place.pod_address,
        "status.hostIP": place.node_address,
    }
    if path in known:
        return str(known[path])
    match = re.fullmatch(r"metadata\.(labels|annotations)(?:\['(.*)'\])?", path)
    if match is None:
        raise ValueError(f"this kubelet does not know the field {path}")
    values = meta.get(match[1]) or {}
    if match[2]:
        return str(values.get(match[2], ""))
    return "".join(f"{name}={json.dumps(value)}\n" for name, value in sorted(values.items()))


def resource(source: Object, container: Object) -> str:
    """Return a limit or request of a container; the node's own where the container has none."""
    kind, what = source["resource"].split(".")
    amount = str((container.get("resources", {}).get(kind) or {}).get(what) or NODE_RESOURCES.get(what, "0"))
    if what == "cpu":
        return str(max(1, -(-int(amount[:-1]) // 1000))) if amount.endswith("m") else amount
    return str(int(amount[:-2]) * UNITS[amount[-2:]]) if amount[-2:] in UNITS else amount


def variables(pod: Object, place: Place, api_port: int, container: Object, lookup: Lookup) -> dict[str, str]:
    """Return a container's environment."""
    values = {
        "PATH": PATH,
        "HOME": "/",
        "HOSTNAME": pod["metadata"]["name"],
        "KUBERNETES_SERVICE_HOST": place.node_address,
        "KUBERNETES_SERVICE_PORT": str(api_port),
    }
    for source in container.get("envFrom", []):
        kind = "configMap" if "configMapRef" in source else "secret"
        reference = source[f"{kind}Ref"]
        data = lookup(kind, reference["name"], bool(reference.get("optional")))
        values |= {source.get("prefix", "") + name: value.decode() for name, value in data.items()}
    for entry in container.get("env", []):
        if "valueFrom" not in entry:
            values[entry["name"]] = expand(entry.get("value", ""), values)
            continue
        source = entry["valueFrom"]
        kind = "configMap" if "configMapKeyRef" in source else "secret"
        reference = source.get(f"{kind}KeyRef")
        if reference is None:
            values[entry["name"]] = field(pod, place, source, container)
            continue
        data = lookup(kind, reference["name"], bool(reference.get("optional")))
        if reference["key"] in data:
            values[entry["name"]] = data[reference["key"]].decode()
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by the variable's value; unknown names stay, `$$` is a dollar sign."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][\w.-]*)\)",
        lambda match: "$" if match[0] == "$$" else values.get(match[1], match[0]),
        text,
    )
