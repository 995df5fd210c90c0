"""Find workloads whose replicas an autoscaler sets, because files must not reset them."""

import json

from meshscrape.kube.objects import LAST_APPLIED, Inventory, Ref, annotations, dig


def autoscaled(inventory: Inventory) -> frozenset[Ref]:
    """Return the autoscaled workloads whose `spec.replicas` can be left out of files.

    Workloads that got the field from an earlier `kubectl apply` are not included: kubectl would remove the
    field, and the API server's default is one replica.
    """
    refs = set()
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
            refs.add(ref)
    return frozenset(refs)


def _applied_replicas(applied: object) -> bool:
    if not applied:
        return False
    try:
        return dig(json.loads(str(applied)), "spec", "replicas") is not None
    except ValueError:
        # An unreadable record may contain the field.
        return True
