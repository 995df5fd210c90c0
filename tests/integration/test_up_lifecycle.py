"""How a mesh starts, is followed, dies and stops: real processes, none left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.mesh import (
    SECURE,
    Up,
    meshscrape,
    processes_in,
    prometheus_manifest,
    running_up,
    workload_manifest,
    write_mesh,
)
from support.polling import eventually

SLEEPER = workload_manifest("sleeper", metadata=SECURE)


def _gone(pids: set[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_check_proves_the_example_mesh_and_leaves_nothing(tmp_path: Path) -> None:
    """`up --check` starts everything, verifies it without a finding, and stops every process."""
    state = tmp_path / "state"
    done = meshscrape("up", "--check", "--state", str(state), timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no findings" in done.stdout
    assert processes_in(state) == set()
    assert {path.name for path in state.iterdir()} == {"ca"}


def test_interrupt_after_ready_is_a_clean_stop(tmp_path: Path) -> None:
    """Ctrl-C ends a ready mesh with exit code 0, without a process or socket left."""
    manifest = write_mesh(tmp_path / "mesh.yaml", SLEEPER)
    with running_up(tmp_path / "state", str(manifest)) as up:
        up.wait_for_phase()
        pids = up.processes()
        assert len(pids) >= 5
        assert up.stop(signal.SIGINT) == 0
    assert _gone(pids)
    assert meshscrape("status", "--state", str(up.state)).returncode == 2


def test_unread_output_does_not_delay_a_stop(tmp_path: Path) -> None:
    """A closed pipe on stderr is no reason to ignore SIGTERM."""
    manifest = write_mesh(tmp_path / "mesh.yaml", SLEEPER)
    reading, writing = os.pipe()
    with running_up(tmp_path / "state", str(manifest), output=writing) as up:
        os.close(writing)
        up.wait_for_phase()
        os.close(reading)
        assert up.stop(signal.SIGTERM) in (0, 141)
    assert processes_in(up.state) == set()


@pytest.mark.parametrize("stage", ["lock", "ca", "agent", "envoy"])
def test_terminated_while_starting_stops_completely(tmp_path: Path, stage: str) -> None:
    """SIGTERM at each stage of start-up ends with 143 and leaves no process."""
    manifest = write_mesh(tmp_path / "mesh.yaml", workload_manifest("sleeper", metadata=SECURE, port=8099))

    def reached(up: Up) -> bool:
        document = up.document()
        if stage == "lock":
            return bool(document["pid"])
        if stage == "ca":
            return document["ca"]["pid"] is not None
        return any(entry["pids"][stage] for entry in document["workloads"])

    # `sleep` never listens on 8099: the workload is never ready, so that no stage is missed.
    with running_up(tmp_path / "state", str(manifest)) as up:
        eventually(lambda: reached(up), what=stage)
        pids = up.processes()
        assert up.stop(signal.SIGTERM) == 143
    assert _gone(pids)
    assert processes_in(up.state) == set()
    assert not (up.state / "run").exists()


def test_killed_up_leaves_no_orphan_and_the_next_one_works(tmp_path: Path) -> None:
    """After kill -9 the kernel ends every descendant, workers of applications too, and `up` works again."""
    worker = "gunicorn --bind $(INSIDE_ADDRESS):$(PORT) --no-control-socket httpbin:app"
    manifest = write_mesh(
        tmp_path / "mesh.yaml", workload_manifest("httpbin", command=worker, metadata=SECURE, port=8000)
    )
    state = tmp_path / "state"
    with running_up(state, str(manifest)) as up:
        up.wait_for_phase()
        pids = up.processes()
        # up, CA, agent, Envoy, guard, gunicorn and its worker.
        assert len(pids) == 7
        up.process.kill()
        up.process.wait()
        eventually(lambda: _gone(pids - {up.process.pid}), within=10, what="no orphan")
    assert (state / "status.json").exists()
    assert meshscrape("status", "--state", str(state)).returncode == 2
    with running_up(state, str(manifest)) as again:
        assert again.wait_for_phase()["pid"] == again.process.pid


def test_a_dead_agent_and_a_dead_application_are_started_again(tmp_path: Path) -> None:
    """What dies comes back, the workload becomes ready again, and the restarts are counted."""
    manifest = write_mesh(tmp_path / "mesh.yaml", SLEEPER)
    with running_up(tmp_path / "state", str(manifest)) as up:
        up.wait_for_phase()
        before = up.workload("default/sleeper")["pids"]
        os.kill(before["agent"], signal.SIGKILL)
        os.kill(before["application"][0], signal.SIGKILL)

        def recovered() -> bool:
            entry = up.workload("default/sleeper")
            pids = entry["pids"]
            changed = pids["agent"] != before["agent"] and pids["application"] != before["application"]
            return bool(changed and entry["ready"] and pids["envoy"] and entry["restarts"] == 2)

        eventually(recovered, what="recovery")


def test_an_application_that_cannot_run_ends_the_mesh_with_its_output(tmp_path: Path) -> None:
    """A component that dies again and again ends the whole with exit code 2 and its last words."""
    manifest = write_mesh(
        tmp_path / "mesh.yaml", workload_manifest("broken", command="sh -c 'echo last words; exit 3'")
    )
    done = meshscrape("up", "--quiet", "--state", str(tmp_path / "state"), str(manifest))
    assert done.returncode == 2
    assert "application broken of default/broken" in done.stderr
    assert "exit status 3" in done.stderr and "last words" in done.stderr
    assert processes_in(tmp_path / "state") == set()


def test_workloads_follow_the_manifest(tmp_path: Path) -> None:
    """An edit starts what is new and stops what is gone; the others and Prometheus keep their processes.

    A manifest that cannot be used changes nothing, and the status says why.
    """
    manifest = write_mesh(tmp_path / "mesh.yaml", prometheus_manifest(), SLEEPER)
    with running_up(tmp_path / "state", "--scrape-interval", "1s", str(manifest)) as up:
        up.wait_for_phase()
        kept = {t: up.workload(t)["pids"] for t in ("default/sleeper", "istio-system/prometheus")}
        newcomer = workload_manifest("newcomer", metadata=SECURE)
        write_mesh(manifest, prometheus_manifest(), SLEEPER, newcomer)
        eventually(lambda: up.workload("default/newcomer")["ready"], what="the new workload")
        up.wait_until_up("default/newcomer")
        scraped = {name for target in up.active_targets() if (name := target["labels"].get("workload"))}
        assert scraped == {"sleeper", "newcomer"}
        assert {title: up.workload(title)["pids"] for title in kept} == kept

        write_mesh(manifest, prometheus_manifest(), SLEEPER, newcomer.replace("15091", "99999"))
        problem = eventually(lambda: up.document()["message"], what="the problem")
        assert "99999" in problem and f"{manifest}:" in problem
        assert up.workload("default/newcomer")["ready"]

        gone = up.workload("default/newcomer")["pids"]
        write_mesh(manifest, prometheus_manifest(), SLEEPER)
        eventually(lambda: len(up.document()["workloads"]) == 2, what="the workload gone")
        eventually(lambda: _gone({gone["agent"], gone["envoy"], *gone["application"]}), what="its processes")
        eventually(lambda: up.document()["message"] == "", what="the problem gone")
        eventually(
            lambda: (
                {name for target in up.active_targets() if (name := target["labels"].get("workload"))}
                == {"sleeper"}
            ),
            what="its targets gone",
        )
        assert {title: up.workload(title)["pids"] for title in kept} == kept


def test_unusable_edit_affects_no_other_workload_and_can_be_corrected(tmp_path: Path) -> None:
    """A new workload whose program dies is shown as failed, the mesh goes on; a correction starts it.

    Prometheus cannot join a mesh that was started without one: the status says so.
    """
    manifest = write_mesh(tmp_path / "mesh.yaml", SLEEPER)
    with running_up(tmp_path / "state", "--quiet", str(manifest)) as up:
        up.wait_for_phase()
        kept = up.workload("default/sleeper")["pids"]
        broken = workload_manifest("late", command="sh -c 'echo last words; exit 3'")
        write_mesh(manifest, SLEEPER, broken)
        message = eventually(
            lambda: "last words" in up.workload("default/late")["message"] and up.workload("default/late"),
            what="the failure",
        )
        assert not message["ready"] and up.process.poll() is None
        write_mesh(manifest, SLEEPER, workload_manifest("late"))
        eventually(lambda: up.workload("default/late")["ready"], what="the corrected workload")
        write_mesh(manifest, SLEEPER, workload_manifest("late"), prometheus_manifest())
        eventually(lambda: "start the mesh again" in up.document()["message"], what="the refusal")
        assert up.workload("default/sleeper")["pids"] == kept
