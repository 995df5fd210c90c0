"""apply while somebody else acts on the same API server: writes, reverts, refuses, or kills it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.api_server import ApiServer
from conformance.cluster import certificates
from conformance.kube import until
from conformance.lone_mesh import COMMAND, SCRAPER, objects, run, start
from support.addresses import loopback

NOTE = "proxy.istio.io/config"
ARGO = "argocd-controller"
TRACKED = {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/web"}
EVERY = ("injection", "credentials", "listeners", "scrape", "hardening", "removal")


class Asked:
    """An apply on a terminal that waits for its answer, with the plan of that moment."""

    def __init__(self, server: ApiServer, *words: str) -> None:
        self._keyboard, terminal = pty.openpty()
        command = [str(COMMAND), "apply", "--kubeconfig", str(server.kubeconfig), *words]
        self._process = subprocess.Popen(
            command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        os.close(terminal)
        self.shown = ""
        assert self._process.stdout is not None
        while "Only 'yes'" not in self.shown:
            piece = self._process.stdout.read(1)
            assert piece, self._process.communicate()
            self.shown += piece

    def answer(self) -> subprocess.CompletedProcess[str]:
        """Say yes, and return how it ended."""
        os.write(self._keyboard, b"yes\n")
        out, errors = self._process.communicate(timeout=300)
        os.close(self._keyboard)
        return subprocess.CompletedProcess(self._process.args, self._process.returncode, out, errors)


def annotate(server: ApiServer, name: str, text: str) -> None:
    """Write the pod's annotation with the proxy's settings, as somebody else."""
    patch = {"spec": {"template": {"metadata": {"annotations": {NOTE: text}}}}}
    server("-n", "shop", "patch", "deployment", name, "--type=merge", "-p", json.dumps(patch))


def settings(server: ApiServer, name: str) -> Any:
    """Return the proxy's settings of a Deployment."""
    found = server.get("-n", "shop", "deployment", name)["spec"]["template"]["metadata"]
    return yaml.safe_load((found.get("annotations") or {}).get(NOTE, "{}"))


def jobs(server: ApiServer) -> dict[str, Any]:
    """Return the scrape jobs of Prometheus."""
    text = server.get("-n", "monitoring", "configmap", "prometheus")["data"]["prometheus.yml"]
    return {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}


@pytest.mark.parametrize("before", ["", "concurrency: 1\n"], ids=["new", "changed"])
def test_settings_that_somebody_writes_meanwhile_are_kept(
    mesh: ApiServer, before: str, lone_row: Callable[..., None]
) -> None:
    """The plan of before is refused for that object, and the next run merges both."""
    if before:
        annotate(mesh, "web", before)
    asked = Asked(mesh, "-n", "shop", *SCRAPER, "--phase", "listeners")
    annotate(mesh, "web", "concurrency: 3\n")
    done = asked.answer()
    assert (done.returncode, "no longer as it was planned" in done.stderr) == (1, True), done.stderr
    assert settings(mesh, "web") == {"concurrency": 3}
    run(mesh, "apply", "-n", "shop", "--yes", *SCRAPER)
    merged = settings(mesh, "web")
    assert merged.pop("concurrency") == 3
    assert merged == settings(mesh, "cart") != {}
    lone_row(
        f"somebody writes proxy.istio.io/config between plan and apply: {'changed' if before else 'new'}",
        "apply stops before it overwrites; run again: both settings",
    )


def test_a_configuration_that_somebody_writes_meanwhile_is_kept(
    mesh: ApiServer, lone_row: Callable[..., None]
) -> None:
    """prometheus.yml gets a job between plan and apply; the job is there after both runs."""
    made = run(
        mesh, "apply", "-n", "shop", "--yes", *SCRAPER, "--phase", "credentials", "--phase", "listeners"
    )
    assert "updated Deployment.apps shop/web" in made.stderr, made.stderr
    asked = Asked(mesh, "-n", "shop", *SCRAPER, "--phase", "scrape")
    config = mesh.get("-n", "monitoring", "configmap", "prometheus")
    found = yaml.safe_load(config["data"]["prometheus.yml"])
    found["scrape_configs"].append({"job_name": "mine", "static_configs": [{"targets": ["a.example:1"]}]})
    text = yaml.safe_dump(found, sort_keys=False)
    patch = json.dumps({"data": {"prometheus.yml": text}})
    mesh("-n", "monitoring", "patch", "configmap", "prometheus", "-p", patch)
    done = asked.answer()
    assert (done.returncode, "no longer as it was planned" in done.stderr) == (1, True), done.stderr
    assert jobs(mesh) == {job["job_name"]: job for job in found["scrape_configs"]}
    run(mesh, "apply", "-n", "shop", "--yes", *SCRAPER)
    after = jobs(mesh)
    assert after["mine"] and any(name.startswith("istio-secure") for name in after), sorted(after)
    lone_row(
        "somebody writes prometheus.yml between plan and apply",
        "apply stops before it overwrites; run again: their job and the moved ones",
    )


def rendered(directory: Path, phase: str) -> Any:
    """Return the Deployment web as `render` wrote it for a phase."""
    (place,) = [each for each in directory.iterdir() if each.name.endswith(f"-{phase}")]
    documents = [each for file in place.glob("*.yaml") for each in yaml.safe_load_all(file.read_text())]
    (found,) = [
        each for each in documents if (each["kind"], each["metadata"]["name"]) == ("Deployment", "web")
    ]
    found["metadata"] = {
        key: found["metadata"][key]
        for key in ("name", "namespace", "labels", "annotations")
        if key in found["metadata"]
    }
    found.pop("status", None)
    return found


def test_waits_until_a_gitops_tool_brings_its_change(
    mesh: ApiServer, tmp_path: Path, lone_row: Callable[..., None]
) -> None:
    """A tracked Deployment is refused, or waited for in each phase, and meshscrape never writes it."""
    before = objects(mesh)
    mesh("-n", "shop", "annotate", "deployment", "web", *(f"{key}={value}" for key, value in TRACKED.items()))
    plan = ("-n", "shop", *SCRAPER)
    refused = run(mesh, "apply", *plan, "--yes")
    assert (refused.returncode, "Argo CD tracks Deployment.apps shop/web" in refused.stderr) == (2, True)
    assert "--wait-for-gitops" in refused.stderr
    done = run(mesh, "render", *plan, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    phases = [word for phase in EVERY for word in ("--phase", phase)]
    words = ("--wait-for-gitops=300", "--reconcile-interval", "0", *phases)
    process = start(mesh.kubeconfig, "apply", *plan, "--yes", *words)
    assert process.stderr is not None
    lines, brought = [], []
    for line in process.stderr:
        lines.append(line)
        if "waiting for Argo CD to bring the change of Deployment.apps shop/web" in line:
            phase = line.split("phase ")[1].partition(":")[0]
            brought.append(phase)
            text = json.dumps(rendered(tmp_path / "out", phase))
            own = ("--server-side", "--force-conflicts", f"--field-manager={ARGO}")
            mesh("apply", *own, "-f", "-", stdin=text)
    assert process.wait(60) == 0, lines
    assert brought == ["listeners", "hardening"]
    fields = mesh.get("-n", "shop", "deployment", "web", "--show-managed-fields")["metadata"]["managedFields"]
    assert "meshscrape" not in {each["manager"] for each in fields}
    assert settings(mesh, "web") == settings(mesh, "cart") != {}
    again = run(mesh, "plan", *plan)
    assert again.returncode == 0, again.stdout
    assert objects(mesh) != before
    lone_row(
        "Argo CD tracks a workload of the plan",
        f"refused; with --wait-for-gitops its change is waited for in {' and '.join(brought)}, then finished",
    )


def test_gives_up_on_a_gitops_tool_that_brings_nothing(mesh: ApiServer) -> None:
    mesh("-n", "shop", "annotate", "deployment", "web", *(f"{key}={value}" for key, value in TRACKED.items()))
    done = run(
        mesh, "apply", "-n", "shop", *SCRAPER, "--yes", "--wait-for-gitops=2", "--reconcile-interval", "0"
    )
    assert (done.returncode, "Argo CD brought no change of" in done.stderr) == (1, True), done.stderr
    assert settings(mesh, "web") == {} != settings(mesh, "cart")


def test_a_change_that_is_reverted_later_is_seen_one_interval_later(
    mesh: ApiServer, lone_row: Callable[..., None]
) -> None:
    """The tool compares some seconds after the write; the run names it."""
    annotate(mesh, "web", "concurrency: 1\n")
    web = mesh.get("-n", "shop", "deployment", "web")
    web["metadata"] = {key: web["metadata"][key] for key in ("name", "namespace")}
    web.pop("status")
    own = ("--server-side", "--force-conflicts", f"--field-manager={ARGO}")
    mesh("apply", *own, "-f", "-", stdin=json.dumps(web))
    process = start(mesh.kubeconfig, "apply", "-n", "shop", *SCRAPER, "--yes", "--reconcile-interval", "15")
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "phase listeners: waiting 15 s" in line:
            assert "ENVOY_SECURE" in json.dumps(settings(mesh, "web"))
            mesh("apply", *own, "-f", "-", stdin=json.dumps(web))
    assert process.wait(60) == 1, lines
    assert "Deployment.apps shop/web is not as it was applied" in lines[-1], lines
    assert ARGO in lines[-1] and "run apply again" in lines[-1], lines
    lone_row("a manager that reverts seconds after the phase", "seen one interval later, with its name")


@contextlib.contextmanager
def refusing(server: ApiServer, directory: Path) -> Iterator[list[str]]:
    """A validating webhook that refuses updates of the Deployment web; yields what it was asked about."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        """Answers admission reviews."""

        def do_POST(self) -> None:
            """Refuse web."""
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = review["request"]["name"]
            asked.append(name)
            response: dict[str, Any] = {"uid": review["request"]["uid"], "allowed": name != "web"}
            if name == "web":
                response["status"] = {"message": "web is frozen until Monday", "code": 403}
            body = json.dumps(
                {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Write no log."""

    here = loopback()
    pki = certificates.write(directory / "webhook", here)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.pair("apiserver"))
    with ThreadingHTTPServer((here, 0), Handler) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        rule = {
            "apiGroups": ["apps"],
            "apiVersions": ["v1"],
            "operations": ["UPDATE"],
            "resources": ["deployments"],
        }
        hook = {
            "name": "frozen.example.com",
            "clientConfig": {
                "url": f"https://{here}:{listening.server_port}/",
                "caBundle": base64.b64encode(pki.ca.read_bytes()).decode(),
            },
            "rules": [rule],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail",
            "timeoutSeconds": 5,
        }
        server.apply(
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingWebhookConfiguration",
                "metadata": {"name": "frozen"},
                "webhooks": [hook],
            }
        )
        try:
            refusal = (
                "-n",
                "shop",
                "annotate",
                "deployment",
                "web",
                "a=b",
                "--overwrite",
                "--dry-run=server",
            )
            until(lambda: "frozen until" in server.run(*refusal).stderr, "the webhook is asked")
            yield asked
        finally:
            listening.shutdown()
            thread.join()


def test_a_validating_webhook_that_refuses_or_is_gone(
    mesh: ApiServer, tmp_path: Path, lone_row: Callable[..., None]
) -> None:
    """What the webhook says is in the line; what was applied before it stays, and can be taken back."""
    before = objects(mesh)
    words = ("-n", "shop", *SCRAPER)
    try:
        with refusing(mesh, tmp_path) as asked:
            tried = run(mesh, "apply", *words, "--dry-run")
            assert (tried.returncode, "frozen until Monday" in tried.stderr) == (2, True), tried.stderr
            assert objects(mesh) == before
            done = run(mesh, "apply", *words, "--yes", "--canary", "shop/cart")
            assert done.returncode == 2, done.stderr
            last = done.stderr.splitlines()[-1]
            assert "frozen until Monday" in last and "stay" in last and "run apply again" in last, last
            assert "cart" in asked
        gone = run(mesh, "apply", *words, "--yes")
        assert (gone.returncode, "failed calling webhook" in gone.stderr.splitlines()[-1]) == (2, True), (
            gone.stderr
        )
    finally:
        mesh("delete", "validatingwebhookconfiguration", "frozen")
    assert settings(mesh, "web") == {} != settings(mesh, "cart")
    back = run(mesh, "remove", "--yes", "--yes-plaintext")
    assert back.returncode == 0, (back.stdout, back.stderr)
    assert objects(mesh) == before
    lone_row(
        "a validating webhook that refuses one workload, then is gone",
        "exit code 2 with its message and the number of changes; removed: the originals",
    )


@pytest.mark.whole
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_killed_after_each_write_and_run_again(
    mesh: ApiServer, verb: str, lone_row: Callable[..., None]
) -> None:
    """However far the killed run came, a second one ends where an undisturbed one does."""
    phases = [word for phase in EVERY for word in ("--phase", phase)]
    there = ("apply", "-n", "shop", "--yes", *SCRAPER, *phases)
    back = ("remove", "--yes", "--yes-plaintext")
    before = objects(mesh)
    assert run(mesh, *there).returncode == 0
    applied = objects(mesh)
    assert run(mesh, *back).returncode == 0
    assert objects(mesh) == before
    first, second = (there, back) if verb == "apply" else (back, there)
    wanted, origin = (applied, before) if verb == "apply" else (before, applied)
    kills = 0
    while True:
        if verb == "remove":
            assert run(mesh, *there).returncode == 0
        assert objects(mesh) == origin
        if not killed_after(mesh, kills + 1, *first):
            break
        kills += 1
        # The Lease of a killed run lasts for a minute.
        mesh("-n", "istio-system", "delete", "lease", "meshscrape")
        done = run(mesh, *first)
        assert done.returncode == 0, (kills, done.stdout, done.stderr)
        assert objects(mesh) == wanted, kills
        if verb == "apply":
            assert run(mesh, *second).returncode == 0
    assert kills > 4
    lone_row(f"{verb} killed after each of its {kills} writes and run again", "ends like an undisturbed run")


def killed_after(server: ApiServer, count: int, *words: str) -> bool:
    """Kill a run after some writes; return whether it made that many."""
    process = start(server.kubeconfig, *words)
    assert process.stderr is not None
    made = 0
    for line in process.stderr:
        made += any(f": {action} " in line for action in ("created", "updated", "deleted"))
        if made == count:
            process.kill()
            process.communicate()
            return True
    process.communicate()
    return False
