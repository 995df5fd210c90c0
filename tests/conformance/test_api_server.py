"""apply and remove on an API server alone: what they write, and how they fail."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance.api_server import ApiServer
from conformance.kube import until
from conformance.lone_mesh import COMMAND, NAMES, SCRAPER, idle, objects, run, start
from meshscrape.plan.model import PHASES
from support.objects import deployment

RBAC = "rbac.authorization.k8s.io/v1"


@pytest.mark.parametrize("mode", ["native", "bootstrap", "legacy"])
def test_remove_restores_every_object(mesh: ApiServer, mode: str, lone_row: Callable[..., None]) -> None:
    """After apply, and after a second manager's edit: equal objects, with that edit."""
    before = objects(mesh)
    plan = ("--mode", mode, "-n", "shop", *SCRAPER)
    done = run(mesh, "apply", *plan, "--yes")
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "no ready pod proves the scrape" in done.stderr
    done = run(mesh, "apply", *plan, "--yes", "--phase", "hardening")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert objects(mesh) != before
    labels = {"spec": {"template": {"metadata": {"annotations": {"mine": "stays"}}}}}
    mesh("-n", "shop", "patch", "deployment", "cart", "-p", json.dumps(labels))
    refused = run(mesh, "remove", "--yes")
    assert (refused.returncode, refused.stderr.count("--yes-plaintext")) == (2, 1), refused.stderr
    back = run(mesh, "remove", "--yes", "--yes-plaintext")
    assert back.returncode == 0, (back.stdout, back.stderr)
    after = objects(mesh)
    assert after["Deployment cart"]["spec"]["template"]["metadata"].pop("annotations") == {"mine": "stays"}
    assert after == before
    again = run(mesh, "remove", "--yes", "--yes-plaintext")
    assert (again.returncode, again.stdout) == (0, "Nothing to do.\n"), (again.stdout, again.stderr)
    lone_row(
        f"apply and remove on an API server: {mode}",
        "the originals are back, with an edit of another manager",
    )


def test_kubectl_commands_of_a_dump_restore_every_object(mesh: ApiServer, tmp_path: Path) -> None:
    before = objects(mesh)
    assert run(mesh, "apply", "-n", "shop", "--yes").returncode == 1
    file = tmp_path / "dump.json"
    kinds = f"{NAMES},clusterroles,clusterrolebindings,mutatingwebhookconfigurations"
    file.write_text(mesh("get", kinds, "-A", "-o", "json", "--show-managed-fields"))
    told = subprocess.run(
        [COMMAND, "remove", "-f", file, "-o", "kubectl"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1, told.stderr
    for line in told.stdout.splitlines():
        if not line.startswith("#"):
            mesh(*shlex.split(line)[1:])
    assert objects(mesh) == before


def test_a_user_with_the_rights_of_rbac_may_apply_and_one_without_is_told_each(
    mesh: ApiServer, lone_row: Callable[..., None]
) -> None:
    before = objects(mesh)
    mesh.apply(run(mesh, "rbac", "apply", "--service-account", "default/applier").stdout)
    allowed = mesh.user("applier", "meshscrape-apply")
    tried = run(allowed, "apply", "-n", "shop", "--dry-run=server")
    assert tried.returncode == 0, tried.stderr
    mesh.apply(run(mesh, "rbac", "plan", "--service-account", "default/reader").stdout)
    reader = mesh.user("reader", "meshscrape-plan")
    refused = run(reader, "apply", "-n", "shop", "--yes")
    assert refused.returncode == 2
    for right in ("patch deployments.apps in shop", "patch configmaps in monitoring", "create leases"):
        assert refused.stderr.count(f"no right to {right}") == 1, refused.stderr
    assert objects(mesh) == before
    lone_row("apply without rights", "one line for each missing right, exit code 2, nothing changed")


def test_istio_objects_of_another_api_server(mesh: ApiServer, lone_row: Callable[..., None]) -> None:
    """As with ASM: each of two users may use the objects of one API server only, and both are needed."""
    before = objects(mesh)
    proxy = {"name": "istio-proxy", "image": "registry.aliyuncs.com/acs/proxyv2:v1.18.0.1-g0a1b2c3-aliyun"}
    gateway = idle(deployment("ingress", "istio-system"))
    gateway["spec"]["template"]["spec"]["containers"] = [proxy]
    mesh.apply(gateway)
    istio = ["networking.istio.io", "security.istio.io", "telemetry.istio.io", "istio.alibabacloud.com"]
    served = set(mesh("api-versions").split())
    others = sorted({name.rpartition("/")[0] for name in served} - set(istio))
    files = []
    for name, groups in (("workloads", others), ("control", istio)):
        rule = {"apiGroups": groups, "resources": ["*"], "verbs": ["*"]}
        role = {"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]}
        of = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
        binding = {"kind": "ClusterRoleBinding", "roleRef": of, "subjects": [subject]}
        mesh.apply([role, {"apiVersion": RBAC, "metadata": {"name": name}, **binding}])
        files.append(mesh.user(name, name))
    plan = ("--mode", "legacy", "-n", "shop", "--yes")
    alone = run(mesh, "apply", *plan)
    assert (alone.returncode, "--control-plane-kubeconfig" in alone.stderr) == (2, True), alone.stderr
    both = ("--control-plane-kubeconfig", str(files[1]))
    done = run(files[0], "apply", *plan, *both)
    assert "phase scrape" in done.stderr, (done.stdout, done.stderr)
    assert mesh.get("-n", "shop", "sidecars.networking.istio.io")["items"]
    back = run(files[0], "remove", *both, "--yes", "--yes-plaintext")
    assert back.returncode == 0, (back.stdout, back.stderr)
    assert objects(mesh) == before
    assert not mesh.get("-n", "shop", "sidecars.networking.istio.io")["items"]
    lone_row("apply and remove with a second kubeconfig for Istio's objects", "each object by its own user")


def test_an_absent_namespace_is_told_before_the_first_write(mesh: ApiServer) -> None:
    before = objects(mesh)
    words = ("-n", "shop", "--prometheus", "addon", "--prometheus-namespace", "absent")
    for more in ("--yes", "--dry-run"):
        done = run(mesh, "apply", *words, more)
        assert (done.returncode, "no namespace absent" in done.stderr) == (2, True), done.stderr
    assert objects(mesh) == before


@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_named_phases_run_in_the_order_of_the_plan(mesh: ApiServer, verb: str) -> None:
    """Ports that close before others are open would lose every scrape."""
    phases = ("listeners", "hardening") if verb == "apply" else ("hardening", "listeners")
    there = ("apply", "-n", "shop", "--yes", *SCRAPER)
    if verb == "remove":
        assert run(mesh, *there, *(word for phase in PHASES for word in ("--phase", phase))).returncode == 0
    first = there if verb == "apply" else ("remove", "--yes", "--yes-plaintext")
    named = [word for phase in reversed(phases) for word in ("--phase", phase)]
    done = run(mesh, *first, *named)
    assert done.returncode in (0, 1), done.stderr
    counted = [line for line in done.stderr.splitlines() if re.search(r"phase \w+: \d+ changes?$", line)]
    assert [line.split("phase ")[1].partition(":")[0] for line in counted] == list(phases), done.stderr


@pytest.mark.parametrize("user", [{"token": "expired"}, {}], ids=["expired", "none"])
def test_unusable_credentials_are_one_line(mesh: ApiServer, user: Any) -> None:
    done = run(mesh.with_user("unusable", user), "remove", "--yes")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_the_chosen_context_counts(mesh: ApiServer, tmp_path: Path) -> None:
    """Of two contexts, only the named one is asked; an unknown one is an error."""
    value = json.loads(mesh.kubeconfig.read_text())
    away = {"name": "away", "cluster": {"server": "https://127.0.0.1:1"}}
    value["clusters"].append(away)
    value["contexts"].append({"name": "away", "context": {"cluster": "away", "user": "admin"}})
    file = tmp_path / "two"
    file.write_text(json.dumps(value))
    assert run(file, "remove", "--yes").returncode == 0
    for name in ("away", "unknown"):
        done = run(file, "remove", "--yes", "--context", name)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_a_refusing_admission_policy_stops_before_and_in_the_middle(mesh: ApiServer) -> None:
    """The dry run names what is refused; a run says how many changes stay, and can be taken back."""
    before = objects(mesh)
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no-web"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["apps"],
                        "apiVersions": ["v1"],
                        "operations": ["UPDATE"],
                        "resources": ["deployments"],
                    }
                ]
            },
            "validations": [{"expression": "object.metadata.name != 'web'", "message": "not web"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no-web"},
        "spec": {"policyName": "no-web", "validationActions": ["Deny"]},
    }
    mesh.apply([policy, binding])
    try:
        refusal = ("-n", "shop", "annotate", "deployment", "web", "a=b", "--overwrite", "--dry-run=server")
        until(lambda: mesh.run(*refusal).returncode, "the policy is in force")
        tried = run(mesh, "apply", "-n", "shop", "--dry-run")
        assert (tried.returncode, "not web" in tried.stderr) == (2, True), tried.stderr
        assert objects(mesh) == before
        done = run(mesh, "apply", "-n", "shop", "--yes")
        assert done.returncode == 2, done.stderr
        assert "not web" in done.stderr.splitlines()[-1] and "made and stay" in done.stderr.splitlines()[-1]
    finally:
        mesh("delete", "validatingadmissionpolicies,validatingadmissionpolicybindings", "no-web")
    back = run(mesh, "remove", "--yes", "--yes-plaintext")
    assert back.returncode == 0, (back.stdout, back.stderr)
    assert objects(mesh) == before


def test_a_rollout_that_hangs_stops_the_run(mesh: ApiServer) -> None:
    """A canary that does not become ready keeps the others untouched."""
    mesh("-n", "shop", "scale", "deployment", "web", "--replicas=1")
    before = objects(mesh)
    done = run(mesh, "apply", "-n", "shop", "--yes", "--canary", "shop/web", "--timeout", "2")
    assert (done.returncode, "0 of 1 pods are new" in done.stderr) == (1, True), done.stderr
    after = objects(mesh)
    assert after["Deployment web"] != before["Deployment web"]
    assert after["Deployment cart"] == before["Deployment cart"]


def test_an_api_server_that_goes_away_in_the_middle(mesh: ApiServer, lone_row: Callable[..., None]) -> None:
    """The run says how many changes are made; when the API server is back, it goes on."""
    words = ("-n", "shop", "--yes", "--canary", "shop/web", "--pause", "8")
    process = start(mesh.kubeconfig, "apply", *words)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "pausing" in line:
            mesh.stop("kube-apiserver")
            break
    lines += process.stderr.readlines()
    assert process.wait(120) == 2, lines
    assert "made and stay" in lines[-1], lines
    mesh.start("kube-apiserver")
    until(mesh.ready, "the API server answers again", timeout=300.0)
    # The Lease of the run that could not give it back expires.
    until(lambda: "changes this cluster" not in run(mesh, "apply", *words[:3]).stderr, "the Lease expires")
    assert run(mesh, "apply", "-n", "shop", "--yes", *SCRAPER, "--phase", "hardening").returncode == 0
    lone_row("API server stopped during apply", "exit code 2 with the number of changes; run again: finished")


@pytest.mark.parametrize("forced", [False, True], ids=["reverts", "forces"])
def test_another_manager_that_takes_changes_back(
    mesh: ApiServer, forced: bool, lone_row: Callable[..., None]
) -> None:
    """Argo CD's way and Flux' way: the run stops and names the object."""
    web = mesh.get("-n", "shop", "deployment", "web")
    web["metadata"] = {key: web["metadata"][key] for key in ("name", "namespace")}
    web.pop("status")
    # The annotation is theirs, too, so that a server-side apply of theirs takes it back.
    web["spec"]["template"]["metadata"]["annotations"] = {"proxy.istio.io/config": "concurrency: 1"}
    own = ("--server-side", "--force-conflicts", "--field-manager=flux") if forced else ()
    mesh("apply", *own, "-f", "-", stdin=json.dumps(web))
    ended = threading.Event()

    def take_back() -> None:
        while not ended.wait(0.2):
            mesh.run(*(("apply", *own) if forced else ("replace",)), "-f", "-", stdin=json.dumps(web))

    thread = threading.Thread(target=take_back)
    thread.start()
    try:
        done = run(mesh, "apply", "-n", "shop", "--yes", "--canary", "shop/web", "--pause", "3")
    finally:
        ended.set()
        thread.join()
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "shop/web" in done.stderr.splitlines()[-1], done.stderr
    lone_row(
        f"a manager that {'forces its fields' if forced else 'replaces the object'}",
        "apply stops and names it",
    )
