"""`kubectl meshscrape`: the plugin and its completion, found and started by the real kubectl."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from conformance.cluster import programs
from conformance.kube import Kube

Row = Callable[..., None]


def test_kubectl_runs_and_completes_the_plugin(kube: Kube, meshscrape: Path, row: Row) -> None:
    """kubectl lists it, passes words, environment and exit code on, and asks it for completions."""

    def kubectl(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "KUBECONFIG": str(kube.kubeconfig),
            "PATH": f"{meshscrape.parent}:{os.environ['PATH']}",
        }
        return subprocess.run(
            [str(programs.program("kubectl")), *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert str(meshscrape.parent / "kubectl-meshscrape") in kubectl("plugin", "list").stdout.split()
    told = kubectl("meshscrape", "version", "-o", "json")
    assert told.returncode == 0, told.stderr
    cluster = json.loads(told.stdout)["cluster"]
    assert cluster["kubernetes"] == json.loads(kube("get", "--raw", "/version"))["gitVersion"]
    assert [plane["namespace"] for plane in cluster["istio"]] == ["istio-system"]
    assert kubectl("meshscrape", "plan", "--example").returncode == 1
    wrong = kubectl("meshscrape", "nonsense")
    assert wrong.returncode == 2
    assert wrong.stderr == ("meshscrape: there is no verb 'nonsense'; see `kubectl meshscrape --help`\n")
    completed = kubectl("__complete", "meshscrape", "pl").stdout.splitlines()
    assert [line.partition("\t")[0] for line in completed] == ["plan", ":4"]
    row(
        "kubectl meshscrape",
        "listed as a plugin, runs, completes its verbs; version names Kubernetes and istiod of the cluster",
        kubectl=programs.BY_NAME["kubectl"].version,
    )
