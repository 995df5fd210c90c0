"""Bad input of every kind: one clear line with the place, exit code 2, and nothing left behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from meshscrape.cli.up import command
from meshscrape.errors import MeshscrapeError
from support.mesh import SECURE, meshscrape, prometheus_manifest, workload_manifest, write_mesh

GOOD = workload_manifest("sleeper", metadata=SECURE)

CASES = {
    "not YAML": ("kind: [Deployment", "mesh.yaml:"),
    "no workload": ("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n", "no workload"),
    "unknown kind": ("apiVersion: v1\nkind: Podd\nmetadata: {name: x}\n", "Podd"),
    "unknown annotation": (
        workload_manifest("x", annotations=['meshscrape.io/locale-command: "x"']),
        "locale-command",
    ),
    "unknown setting": (workload_manifest("x", metadata=['MESHSCRAPE_SCRAPER: "x"']), "MESHSCRAPE_SCRAPER"),
    "port out of range": (workload_manifest("x", metadata=['STATUS_PORT: "70000"']), "70000"),
    "reserved port": (workload_manifest("x", port=15090), "15090"),
    "malformed SPIFFE ID": (workload_manifest("x", metadata=["MESHSCRAPE_SCRAPERS: spiffe:x y"]), "spiffe"),
    "workload twice": (f"{GOOD}\n---\n{GOOD}", "sleeper"),
    "unset variable": (workload_manifest("x", command="run $(NO_SUCH)"), "$(NO_SUCH)"),
    "no such program": (workload_manifest("x", command="no-such-program-xyz"), "no-such-program-xyz"),
    "unbalanced quote": (workload_manifest("x", command="run 'this"), "quot"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_manifest_is_one_line_and_exit_code_2(tmp_path: Path, case: str) -> None:
    """The line names the file and the mistake; no state directory, no process. Run in this process."""
    text, expected = CASES[case]
    manifest = write_mesh(tmp_path / "mesh.yaml", text)
    state = tmp_path / "state"
    with pytest.raises(MeshscrapeError) as refused:
        command.main(["--quiet", "--state", str(state), str(manifest)], standalone_mode=False)
    assert refused.value.exit_code == 2
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not state.exists()


def test_a_bad_manifest_is_one_line_of_the_command(tmp_path: Path) -> None:
    """What the tests above raise is one line on standard error."""
    manifest = write_mesh(tmp_path / "mesh.yaml", CASES["unknown setting"][0])
    done = meshscrape("up", "--state", str(tmp_path / "state"), str(manifest))
    assert done.returncode == 2
    assert "MESHSCRAPE_SCRAPER" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    """A file that is not there is said to be not there."""
    done = meshscrape("up", "--state", str(tmp_path / "state"), str(tmp_path / "nowhere.yaml"))
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_missing_prometheus_says_how_to_get_it(tmp_path: Path) -> None:
    """Without Prometheus on PATH and without apt-get, the line says what to install."""
    manifest = write_mesh(tmp_path / "mesh.yaml", prometheus_manifest())
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = meshscrape("up", "--state", str(tmp_path / "state"), str(manifest), env=env)
    assert done.returncode == 2
    assert "prometheus.io/download" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "state").exists()


def test_file_that_is_not_prometheus_is_refused(tmp_path: Path) -> None:
    """MESHSCRAPE_PROMETHEUS must be a program."""
    env = {**os.environ, "MESHSCRAPE_PROMETHEUS": str(tmp_path)}
    done = meshscrape("up", "--state", str(tmp_path / "state"), env=env)
    assert done.returncode == 2 and "MESHSCRAPE_PROMETHEUS" in done.stderr


def test_file_that_is_not_envoy_is_refused(tmp_path: Path) -> None:
    """MESHSCRAPE_ENVOY must be a program, and that is found out before anything starts."""
    manifest = write_mesh(tmp_path / "mesh.yaml", GOOD)
    env = {**os.environ, "MESHSCRAPE_ENVOY": str(tmp_path / "no-envoy")}
    done = meshscrape("up", "--state", str(tmp_path / "state"), str(manifest), env=env)
    assert done.returncode == 2
    assert "no-envoy" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("script", ["echo no such instruction >&2\nexit 3", "echo something else", "exit 0"])
def test_a_named_envoy_that_does_not_run_is_refused_at_once(tmp_path: Path, script: str) -> None:
    """It is asked for its version before anything starts, instead of being started six times."""
    manifest, broken = write_mesh(tmp_path / "mesh.yaml", GOOD), tmp_path / "broken-envoy"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    env = {**os.environ, "MESHSCRAPE_ENVOY": str(broken)}
    done = meshscrape("up", "--state", str(tmp_path / "state"), str(manifest), env=env)
    assert done.returncode == 2
    assert "broken-envoy" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "state").exists()


def test_a_port_taken_on_every_address_names_its_holder(tmp_path: Path) -> None:
    """Somebody who listens on 0.0.0.0 is found before anything starts, with the process id."""
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        port = listening.getsockname()[1]
        manifest = write_mesh(tmp_path / "mesh.yaml", workload_manifest("sleeper", port=port))
        done = meshscrape("up", "--state", str(tmp_path / "state"), str(manifest))
    assert done.returncode == 2
    assert str(os.getpid()) in done.stderr and f":{port}" in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_taken_port_of_the_proxy_says_which_setting_moves_it(tmp_path: Path) -> None:
    """Of a port that is the proxy's own, the remedy names the variable to change."""
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        port = listening.getsockname()[1]
        manifest = write_mesh(
            tmp_path / "mesh.yaml", workload_manifest("sleeper", metadata=[f'STATUS_PORT: "{port}"'])
        )
        done = meshscrape("up", "--state", str(tmp_path / "state"), str(manifest))
    assert done.returncode == 2
    assert done.stderr.strip().endswith("stop that process, or give STATUS_PORT another port")


def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """--state must be a directory of one's own."""
    manifest = write_mesh(tmp_path / "mesh.yaml", GOOD)
    (tmp_path / "state").write_text("")
    done = meshscrape("up", "--state", str(tmp_path / "state"), str(manifest))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_status_without_a_mesh_is_one_line(tmp_path: Path) -> None:
    """No running mesh: exit code 2 and what to do, for every verb that needs one."""
    for verb in (["status"], ["listeners", "x"], ["curl", "--as", "a/b", "http://x/"], ["prometheus-config"]):
        done = meshscrape(verb[0], "--state", str(tmp_path / "state"), *verb[1:])
        assert done.returncode == 2, verb
        assert "no mesh is running" in done.stderr and len(done.stderr.strip().splitlines()) == 1
