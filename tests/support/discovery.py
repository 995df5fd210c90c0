"""What Prometheus' Kubernetes discovery (role `pod`) tells of a pod, as label sets.

Facts: prometheus/prometheus `discovery/kubernetes/pod.go`: containers, then init containers; one target per
declared port, one without a port for a container that declares none; pods without an address are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

POD = "__meta_kubernetes_pod_"


def discovered(pod: Mapping[str, Any]) -> list[dict[str, str]]:
    """The label sets of one pod as the API has it (with its status)."""
    return list(_targets(pod))


def _targets(pod: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    address = pod["status"].get("podIP", "")
    if not address:
        return
    shared = _pod_labels(pod)
    spec = pod["spec"]
    named = [(each, "false") for each in spec["containers"]]
    named += [(each, "true") for each in spec.get("initContainers", ())]
    for container, init in named:
        base = {
            **shared,
            f"{POD}container_name": container["name"],
            f"{POD}container_image": container["image"],
            f"{POD}container_init": init,
        }
        if not container.get("ports"):
            yield {**base, "__address__": address}
        for port in container.get("ports", ()):
            number = str(port["containerPort"])
            host = f"[{address}]" if ":" in address else address
            yield {
                **base,
                "__address__": f"{host}:{number}",
                f"{POD}container_port_name": port.get("name", ""),
                f"{POD}container_port_number": number,
                f"{POD}container_port_protocol": port.get("protocol", "TCP"),
            }


def _pod_labels(pod: Mapping[str, Any]) -> dict[str, str]:
    metadata, status = pod["metadata"], pod["status"]
    found = {
        "__meta_kubernetes_namespace": metadata.get("namespace", "default"),
        f"{POD}name": metadata["name"],
        f"{POD}ip": status["podIP"],
        f"{POD}phase": status["phase"],
        f"{POD}ready": "true" if status["phase"] == "Running" else "false",
        f"{POD}node_name": "node",
    }
    for owner in metadata.get("ownerReferences", ()):
        if owner.get("controller"):
            found |= {f"{POD}controller_kind": owner["kind"], f"{POD}controller_name": owner["name"]}
    for kind in ("label", "annotation"):
        for key, value in metadata.get(f"{kind}s", {}).items():
            name = re.sub(r"[^a-zA-Z0-9_]", "_", key)
            found |= {f"{POD}{kind}_{name}": value, f"{POD}{kind}present_{name}": "true"}
    return found
