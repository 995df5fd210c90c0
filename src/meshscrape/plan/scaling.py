"""Workloads whose number of replicas an autoscaler sets: files must not set it back."""

import json

from meshscrape.kube.objects import LAST_APPLIED, Inventory, Ref, annotations, dig


def autoscaled(inventory: Inventory) -> frozenset[Ref]:
    """Workloads that a HorizontalPodAutoscaler scales and whose `spec.replicas` can be left out of files.

    Not those that `kubectl apply` gave the field before: it would take it away, and an API server makes one
    replica of none.
    """
    found = set()
    for scaler in inventory.of_kind("HorizontalPodAutoscaler", "autoscaling"):
        target = dig(scaler.data, "spec", "scaleTargetRef")
        group = str(dig(target, "apiVersion", default="")).rpartition("/")[0]
        ref = Ref(
            group,
            str(dig(target, "kind", default="")),
            scaler.ref.namespace,
            str(dig(target, "name", default="")),
        )
        workload = inventory.get(ref)
        if workload is not None and not _applied_replicas(annotations(workload.data).get(LAST_APPLIED)):
            found.add(ref)
    return frozenset(found)


def _applied_replicas(applied: object) -> bool:
    if not applied:
        return False
    try:
        return dig(json.loads(str(applied)), "spec", "replicas") is not None
    except ValueError:
        # What cannot be read may have it.
        return True
