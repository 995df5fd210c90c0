"""The overlays in kustomize's own hands (that of kubectl)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.cluster import programs
from meshscrape.cli.render import write_directory
from meshscrape.kube.objects import load_inventory, manifest_of
from meshscrape.plan.model import PHASES
from meshscrape.plan.render.files import phase_directory
from meshscrape.plan.render.kustomize import kustomize_files
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    own_proxy,
    rendered_gateway,
    service,
)
from support.planning import planned
from support.scraping_objects import plain_prometheus

BUILT = programs.program("kubectl")  # where the conformance suite puts it
KUBECTL = shutil.which("kubectl") or (str(BUILT) if BUILT.exists() else None)
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="no kubectl on PATH, none built")


@pytest.mark.parametrize("mode", ["native", "bootstrap", "legacy"])
def test_kustomize_builds_the_planned_objects(mode: Any, tmp_path: Path) -> None:
    """The last overlay upon the user's base gives the objects of the plan, and leaves all others alone."""
    before = cluster(
        control_plane(), injected_namespace(), deployment(), service(), rendered_gateway(),
        plain_prometheus(),
        own_proxy("egress", labels={"istio": "egressgateway"}, image="docker.io/istio/proxyv2:1.31.0"),
    )  # fmt: skip
    plan = planned(before, mode=mode)
    base = tmp_path / "base"
    base.mkdir()
    (base / "all.yaml").write_text(yaml.safe_dump_all([each.data for each in before]))
    (base / "kustomization.yaml").write_text("resources: [all.yaml]\n")
    write_directory(tmp_path / "overlays", kustomize_files(plan, "../../base"))
    last = [phase for phase in PHASES if any(change.phase == phase for change in plan.changes)][-1]
    built = subprocess.run(
        [str(KUBECTL), "kustomize", str(tmp_path / "overlays" / phase_directory(last))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    found = load_inventory(manifest_of(data) for data in yaml.safe_load_all(built.stdout))
    wanted = {each.ref: normal(each.data) for each in plan.apply(before)}
    assert {each.ref: normal(each.data) for each in found} == wanted


def normal(data: Any) -> Any:
    """Kustomize puts new items of a list merged by name before the others: their order means nothing."""
    if isinstance(data, dict):
        return {key: normal(value) for key, value in data.items()}
    if isinstance(data, list):
        items = [normal(each) for each in data]
        named = all(isinstance(each, dict) and ("name" in each or "mountPath" in each) for each in items)
        return sorted(items, key=repr) if named else items
    return data
