"""apply and remove that wait for a GitOps tool, while the API server restarts or takes rights away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest

from conformance.api_server import ApiServer
from conformance.kube import until
from conformance.lone_mesh import SCRAPER, objects, run, start

ARGO = "argocd-controller"
TRACKED = "argocd.argoproj.io/tracking-id=shop:apps/Deployment:shop/web"
EVERY = ("injection", "credentials", "listeners", "scrape", "hardening", "removal")
PHASES = tuple(word for phase in EVERY for word in ("--phase", phase))
THERE = ("apply", "-n", "shop", "--yes", *SCRAPER, *PHASES)
BACK = ("remove", "--yes", "--yes-plaintext")
WAITING = ("--wait-for-gitops=300", "--reconcile-interval", "0")
WAITS = "waiting for Argo CD to bring the change of Deployment.apps shop/web"


def track(server: ApiServer) -> None:
    """Let Argo CD track the Deployment web."""
    server("-n", "shop", "annotate", "deployment", "web", TRACKED)


def follow(server: ApiServer) -> None:
    """Write web as Argo CD, with the settings that meshscrape has just given its twin cart or taken back."""
    cart, web = (server.get("-n", "shop", "deployment", name) for name in ("cart", "web"))
    notes = cart["spec"]["template"]["metadata"].get("annotations", {})
    web["spec"]["template"]["metadata"]["annotations"] = notes
    server("replace", f"--field-manager={ARGO}", "-f", "-", stdin=json.dumps(web))


def lines_of(process: subprocess.Popen[str], seen: list[str]) -> Iterator[str]:
    """Yield the lines of a run's log as they come, and keep them."""
    assert process.stderr is not None
    for line in process.stderr:
        seen.append(line)
        yield line


def phase_of(line: str) -> str:
    """Return the phase that a line is about."""
    return line.split("phase ")[1].partition(":")[0]


def test_remove_waits_until_a_gitops_tool_takes_its_change_back(
    mesh: ApiServer, lone_row: Callable[..., None]
) -> None:
    """A tracked Deployment is refused, or waited for in each phase, and meshscrape never writes it."""
    before = objects(mesh)
    assert run(mesh, *THERE).returncode == 0
    track(mesh)
    refused = run(mesh, *BACK)
    assert (refused.returncode, "Argo CD tracks Deployment.apps shop/web" in refused.stderr) == (2, True)
    log: list[str] = []
    process = start(mesh.kubeconfig, *BACK, *WAITING)
    taken = []
    for line in lines_of(process, log):
        if WAITS in line:
            taken.append(phase_of(line))
            follow(mesh)
    assert process.wait(60) == 0, "".join(log)
    assert not [line for line in log if "updated Deployment.apps shop/web" in line], log
    mesh("-n", "shop", "annotate", "deployment", "web", TRACKED.partition("=")[0] + "-")
    assert objects(mesh) == before
    lone_row(
        "remove: Argo CD tracks a workload of the plan",
        f"refused; with --wait-for-gitops waited for in {' and '.join(taken)}: the originals are back",
    )


@pytest.mark.timeout(600)
def test_waits_through_a_restart_of_the_api_server(mesh: ApiServer, lone_row: Callable[..., None]) -> None:
    """The log says once for each outage that it is away; what Argo CD brings when it is back counts."""
    track(mesh)
    log: list[str] = []
    process = start(mesh.kubeconfig, *THERE, *WAITING)
    restarts, away = 0, False
    for line in lines_of(process, log):
        if WAITS in line and not restarts:
            restarts, away = 1, True
            mesh.stop("kube-apiserver")
        elif WAITS in line:
            follow(mesh)
        elif "the API server cannot be asked now" in line and away:
            # A busy machine may cause more outages, which end by themselves.
            away = False
            mesh.start("kube-apiserver")
            until(mesh.ready, "the API server answers again", timeout=300.0)
        elif "the API server answers again" in line:
            follow(mesh)
    assert process.wait(60) == 0, "".join(log)
    outages = [line for line in log if "the API server cannot be asked now" in line]
    assert outages[0].rstrip().endswith("; 1 of 1 changes have not arrived"), "".join(log)
    assert len([line for line in log if "the API server answers again" in line]) == len(outages)
    assert run(mesh, "plan", "-n", "shop", *SCRAPER).returncode == 0
    lone_row(
        "API server restarted while apply waits for Argo CD",
        "said once, with what has not arrived; it goes on when the API server is back, and finishes",
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("gone", "problem"),
    [
        ("clusterrolebinding", "a right is missing now"),
        ("serviceaccount", "no longer accepts the credentials"),
    ],
    ids=["right", "credentials"],
)
def test_ends_with_one_line_when_a_right_or_the_credentials_are_gone(
    mesh: ApiServer, gone: str, problem: str, lone_row: Callable[..., None]
) -> None:
    track(mesh)
    mesh.apply(run(mesh, "rbac", "apply", "--service-account", "default/waiter").stdout)
    user = mesh.user("waiter", "meshscrape-apply")
    log: list[str] = []
    process = start(user, *THERE, *WAITING)
    for line in lines_of(process, log):
        if WAITS in line:
            name = "meshscrape-apply" if gone == "clusterrolebinding" else "waiter"
            mesh("-n", "default", "delete", gone, name)
    assert process.wait(60) == 1, "".join(log)
    assert problem in log[-1] and "then run apply again: what was applied stays" in log[-1], log
    lone_row(f"apply waits for Argo CD, and the {gone} of its user is deleted", "exit code 1 with one line")
