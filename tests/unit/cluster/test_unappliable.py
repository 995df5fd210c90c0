"""Plans that a run refuses: they change what another tool tracks, there and back."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.cluster.applying import refuse_unappliable
from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory
from meshscrape.observe import observe
from meshscrape.plan.inverse.planner import InverseIntent, plan_inverse
from meshscrape.plan.model import Plan
from support.objects import cluster, control_plane, deployment, injected_namespace, service
from support.planning import planned
from support.scraping_objects import plain_prometheus

FLUX = {"kustomize.toolkit.fluxcd.io/name": "apps"}
ARGO = {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:default/httpbin"}


def mesh(kind: str, marks: dict[str, str]) -> Inventory:
    """A mesh with a Deployment that has the marks of a tool, as `labels` or as `annotations`."""
    tracked = deployment()
    tracked["metadata"][kind] = {**tracked["metadata"].get(kind, {}), **marks}
    return cluster(control_plane(), injected_namespace(), tracked, service(), plain_prometheus())


def there(inventory: Inventory) -> Plan:
    """The plan of `apply`."""
    return planned(inventory)


def back(inventory: Inventory) -> Plan:
    """The plan of `remove` after it."""
    applied = planned(inventory).apply(inventory)
    return plan_inverse(observe(applied), applied, InverseIntent())


@pytest.mark.parametrize("plan", [there, back], ids=["apply", "remove"])
@pytest.mark.parametrize(
    ("kind", "marks", "tool"),
    [("labels", FLUX, "Flux"), ("annotations", ARGO, "Argo CD")],
    ids=["Flux", "Argo CD"],
)
def test_tracked_objects_are_refused_unless_the_run_waits(
    plan: Any, kind: str, marks: dict[str, str], tool: str
) -> None:
    found = plan(mesh(kind, marks))
    assert "httpbin" in {change.ref.name for change in found.changes}
    with pytest.raises(InputError, match=f"{tool} tracks Deployment.apps default/httpbin") as refused:
        refuse_unappliable(found, apart=False, waits=False)
    assert refused.value.code == "tracked"
    assert "--wait-for-gitops" in refused.value.remedy
    refuse_unappliable(found, apart=False, waits=True)
