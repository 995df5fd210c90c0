"""The cluster of a run, and the rows that its scenarios saw."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance import rows
from conformance.api_server import ApiServer
from conformance.api_server import running as alone
from conformance.cluster import machine, programs
from conformance.cluster.istio import Installer
from conformance.cluster.processes import running
from conformance.kube import Capabilities, Kube
from conformance.lone_mesh import mesh_on

OURS = Capabilities("a cluster of processes", local_images=True)
# What the process that writes the page has been told so far; the scenarios may run in others.
ROWS: dict[str, list[rows.Row]] = {}
FAILED: set[str] = set()


class Failures:
    """Says at once why a scenario failed: the run goes on for long, and its details come last."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the first line of the reason, in the process that has the terminal."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash is not None else report.longreprtext
            terminal.write_line(f"{scenario(report.nodeid)}: {report.when}: {reason.partition(chr(10))[0]}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's own options."""
    group = parser.getgroup("conformance")
    group.addoption("--tier", choices=("core", "whole"), default="core", help="which scenarios run")
    group.addoption("--use-kubeconfig", type=Path, help="run on this cluster instead of one of processes")
    group.addoption("--cluster-name", default="the cluster of a kubeconfig", help="what the rows call it")
    group.addoption(
        "--capabilities", default="", help="comma separated: istio-envoy, kube-proxy, policies; or processes"
    )
    group.addoption("--rows", type=Path, help="write what was seen into this page")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line("markers", "whole: runs only in the whole tier")
    config.pluginmanager.register(Failures(config), "conformance-failures")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the scenarios of the other tier."""
    if config.getoption("--tier") == "core":
        left = [item for item in items if item.get_closest_marker("whole")]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what a scenario that ran saw; a failed one loses its rows."""
    name = scenario(report.nodeid)
    if report.failed:
        FAILED.add(name)
    if report.when == "call" or report.failed:
        ROWS[name] = []
    if report.when == "teardown" and name in ROWS and name not in FAILED:
        ROWS[name] = [rows.Row(*cells) for key, cells in report.user_properties if key == "row"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page."""
    file = session.config.getoption("--rows")
    if file and ROWS and not hasattr(session.config, "workerinput"):
        rows.write(file, [row for own in ROWS.values() for row in own], ROWS)


def scenario(nodeid: str) -> str:
    """Return a test's name without the directory."""
    return nodeid.rpartition("/")[2]


@pytest.fixture(scope="session")
def kube(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A cluster with Istio and the Gateway API: the given one, or one of processes."""
    given: Path | None = request.config.getoption("--use-kubeconfig")
    if given is not None:
        names = set(request.config.getoption("--capabilities").split(","))
        if "processes" in names:  # one of `make cluster`
            yield Kube(programs.built("kubectl"), given, OURS)
            return
        capabilities = Capabilities(
            request.config.getoption("--cluster-name"),
            istio_envoy="istio-envoy" in names,
            kube_proxy="kube-proxy" in names,
            network_policies="policies" in names,
        )
        yield Kube(Path(shutil.which("kubectl") or "kubectl"), given, capabilities)
        return
    try:
        with running(whole=request.config.getoption("--tier") == "whole") as cluster:
            installer = Installer(cluster.kubeconfig)
            installer.gateway_api()
            installer.istiod()
            yield Kube(programs.program("kubectl"), cluster.kubeconfig, OURS)
    except machine.MachineError as error:
        pytest.exit(f"conformance: {error}", returncode=2)


@pytest.fixture(scope="session")
def installer(kube: Kube) -> Installer:
    """Return what installs other versions of Istio, which only a cluster of processes has images of."""
    if not kube.capabilities.local_images:
        pytest.skip("needs images of two pinned versions of Istio: only a cluster of processes has them")
    return Installer(kube.kubeconfig)


@pytest.fixture(scope="session")
def versions(kube: Kube) -> dict[str, str]:
    """Return the versions that rows name; scenarios add to it."""
    server = kube("get", "--raw", "/version")
    istiod = kube.get("-n", "istio-system", "deployment", "-l", "app=istiod")["items"][0]
    image = istiod["spec"]["template"]["spec"]["containers"][0]["image"]
    built = programs.BY_NAME["pilot-discovery"].version if kube.capabilities.local_images else ""
    return {
        "Kubernetes": json.loads(server)["gitVersion"],
        "Istio": " ".join(filter(None, [image.rpartition(":")[2], f"({built})" if built else ""])),
        "Envoy": "stock 1.40" if not kube.capabilities.istio_envoy else "Istio's",
    }


def note(request: pytest.FixtureRequest, on: str, versions: dict[str, str]) -> Callable[..., None]:
    """Return a function that notes one thing that the scenario saw: `row(WHAT, SEEN, Prometheus=VERSION)`."""

    def add(what: str, seen: str, **more: str) -> None:
        text = ", ".join(f"{name} {value}" for name, value in (versions | more).items())
        tier = "whole" if request.node.get_closest_marker("whole") else "core"
        when = datetime.datetime.now(datetime.UTC).date().isoformat()
        row = rows.Row(scenario(request.node.nodeid), what, seen, tier, on, text, when)
        request.node.user_properties.append(("row", dataclasses.astuple(row)))

    return add


@pytest.fixture
def row(request: pytest.FixtureRequest, kube: Kube, versions: dict[str, str]) -> Callable[..., None]:
    """Note what was seen on the cluster."""
    return note(request, kube.capabilities.name, versions)


@pytest.fixture
def local_row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note what was seen without a cluster."""
    return note(request, "this machine", {})


@pytest.fixture(scope="session")
def meshscrape() -> Path:
    """The command under test."""
    command = Path(sys.executable).parent / "meshscrape"
    assert os.access(command, os.X_OK), f"{command} is missing: run make setup"
    return command


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server alone, with the kinds of Istio, the Gateway API and the Operator."""
    with alone(tmp_path_factory.mktemp("api-server")) as found:
        yield found


@pytest.fixture
def mesh(api_server: ApiServer) -> Iterator[ApiServer]:
    """A mesh on the API server alone, whose workloads have no pods."""
    with mesh_on(api_server) as found:
        yield found


@pytest.fixture
def lone_row(request: pytest.FixtureRequest, api_server: ApiServer) -> Callable[..., None]:
    """Note what was seen on the API server alone."""
    version = json.loads(api_server("get", "--raw", "/version"))["gitVersion"]
    return note(request, "an API server alone", {"Kubernetes": version})
