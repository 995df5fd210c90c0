"""The way back on a live cluster: nothing is lost, the originals return, and later edits of others stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance import shop
from conformance.kube import Kube
from conformance.live import Live
from conformance.watch import losses
from meshscrape.kube.objects import stable

Row = Callable[..., None]
KINDS = (
    "deployments,configmaps,peerauthentications,gateways.gateway.networking.k8s.io,networkpolicies,sidecars"
)
YES = ("--yes", "--yes-interruption")
NOTE = "proxy.istio.io/config"


def objects(kube: Kube) -> dict[str, Any]:
    """What a plan can change, without what changes by itself."""
    found = {}
    for namespace in (shop.NAMESPACE, "istio-system"):
        for each in kube.get("-n", namespace, KINDS)["items"]:
            data = stable(each)
            # A Deployment counts its revisions, and a Gateway's is made by istiod.
            data["metadata"].get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
            owners = {owner["kind"] for owner in data["metadata"].get("ownerReferences", ())}
            if "Gateway" not in owners and not each["metadata"]["name"].startswith("istio-"):
                found[f"{each['kind']} {namespace}/{each['metadata']['name']}"] = data
    return found


@pytest.mark.parametrize("mode", ["native", pytest.param("bootstrap", marks=pytest.mark.whole)])
@pytest.mark.timeout(2400)
def test_remove_restores_shop_without_losing_a_scrape(
    kube: Kube, meshscrape: Path, row: Row, mode: str
) -> None:
    """Applied, edited by somebody else, taken back: the originals with that edit, all up in plaintext."""
    live = Live(meshscrape, kube.kubeconfig)
    with shop.shop(kube, strict=True), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        before = objects(kube)
        with losses(kube, prometheus) as applied:
            done = live.run("apply", "--mode", mode, "-n", shop.NAMESPACE, *YES)
            assert done.returncode == 0, (done.stdout, done.stderr)
        note = kube.get("-n", shop.NAMESPACE, "deployment", "productpage")
        text = (
            note["spec"]["template"]["metadata"]["annotations"].get(NOTE, "")
            + "terminationDrainDuration: 6s\n"
        )
        patch = {"spec": {"template": {"metadata": {"annotations": {NOTE: text}}}}}
        kube("-n", shop.NAMESPACE, "patch", "deployment", "productpage", "-p", json.dumps(patch))
        kube.rollout(shop.NAMESPACE)
        refused = live.run("remove", *YES)
        assert (refused.returncode, refused.stderr.count("--yes-plaintext")) == (2, 1), refused.stderr
        with losses(kube, prometheus) as removed:
            back = live.run("remove", *YES, "--yes-plaintext")
            assert back.returncode == 0, (back.stdout, back.stderr)
        targets = prometheus.wait_for_up(set(shop.addresses(kube).values()))
        assert all(target["scrapeUrl"].startswith("http://") for target in targets)
        after = objects(kube)
        name = f"Deployment {shop.NAMESPACE}/productpage"
        notes = after[name]["spec"]["template"]["metadata"]["annotations"]
        assert yaml.safe_load(notes.pop(NOTE)) == {"terminationDrainDuration": "6s"}
        kept = {key: value for key, value in after.items() if value != before.get(key)}
        if mode == "bootstrap":
            # The ConfigMap that a rollback needs stays, and a rollback works.
            assert list(kept) == [f"ConfigMap {shop.NAMESPACE}/meshscrape-bootstrap"], kept
            kube("-n", shop.NAMESPACE, "rollout", "undo", "deployment/httpbin")
            kube.rollout(shop.NAMESPACE)
        else:
            assert after == before, kept
        assert (applied.lost, removed.lost) == ([], [])
        row(
            f"remove on the live cluster: {mode}, Prometheus existing",
            f"the originals are back with somebody else's edit, {len(targets)} targets up over HTTP; "
            f"0 targets lost, looked at {applied.looks} times during apply and {removed.looks} during remove",
            Prometheus=prometheus.version(),
        )
