"""Allow one run at a time in a cluster: a Lease has the run that applies, and until when. Pure.

Times are those of coordination.k8s.io/v1: RFC 3339 with microseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.kube.objects import Object, dig

GROUP = "coordination.k8s.io"
PATH = f"/apis/{GROUP}/v1/namespaces/{ROOT_NAMESPACE}/leases"
NAME = "meshscrape"
SECONDS = 60
RENEW_SECONDS = 15.0


def lease(holder: str, now: datetime, version: str = "") -> dict[str, Any]:
    """Return the Lease for a holder, empty to give it back. `version` is that of the Lease it replaces."""
    metadata = {"name": NAME, "namespace": ROOT_NAMESPACE} | ({"resourceVersion": version} if version else {})
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": SECONDS if holder else 1,
            "renewTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


def other_holder(data: Object, holder: str, now: datetime) -> str:
    """Return the other holder of a Lease at `now`; empty when it is free, expired, or of this holder."""
    other = str(dig(data, "spec", "holderIdentity", default="") or "")
    try:
        renewed = datetime.fromisoformat(str(dig(data, "spec", "renewTime", default="")))
    except ValueError:
        return ""
    if renewed.tzinfo is None:
        renewed = renewed.replace(tzinfo=UTC)
    seconds = dig(data, "spec", "leaseDurationSeconds", default=0)
    lasts = timedelta(seconds=seconds if isinstance(seconds, int) else 0)
    return other if other != holder and now < renewed + lasts else ""
