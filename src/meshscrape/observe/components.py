"""Find components of Istio whose metrics stay plaintext, because they have no secure metrics port."""

from __future__ import annotations

from meshscrape.kube import objects
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.control import is_istiod
from meshscrape.observe.model import PlaintextComponent

_ZTUNNEL_PORT, _CONTROL_PORT = 15020, 15014


def plaintext_components(cluster: Cluster) -> tuple[PlaintextComponent, ...]:
    """Return istiod, ztunnel and the CNI agent if the dump has them, with their metrics ports."""
    components = [
        PlaintextComponent(deployment.ref, "istiod", _CONTROL_PORT)
        for deployment in cluster.inventory.of_kind("Deployment")
        if is_istiod(deployment)
    ]
    for daemon_set in cluster.inventory.of_kind("DaemonSet"):
        labels = objects.labels(objects.pod_template(daemon_set.data))
        if labels.get("app") == "ztunnel":
            components.append(PlaintextComponent(daemon_set.ref, "ztunnel", _ZTUNNEL_PORT))
        elif labels.get("k8s-app") == "istio-cni-node":
            components.append(PlaintextComponent(daemon_set.ref, "the Istio CNI agent", _CONTROL_PORT))
    return tuple(components)
