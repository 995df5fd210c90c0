"""Rotation without a local mesh: one CA, one agent, and what the CA itself refuses afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshscrape.ca.roots import held_record, published_bundle
from meshscrape.cli.ca import command
from meshscrape.errors import InputError
from meshscrape.local.state import NotRunningError
from meshscrape.spiffe.keys import generate_key
from meshscrape.system.clock import utcnow
from support.agent import AgentProcess, agent_process
from support.ca import CaProcess, ca_process
from support.grpc_ca import any_csr, call, kept_connection, request_bytes
from support.grpc_peer import GrpcRefusal
from support.polling import eventually

pytestmark = pytest.mark.timeout(90)
CSR = any_csr(generate_key())


def rotate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`meshscrape ca rotate ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "meshscrape", "ca", "rotate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=80)


def named(ca: CaProcess, agent: AgentProcess) -> tuple[str, ...]:
    """Everything that has to follow, for --dir."""
    evidence = ("--envoy", str(agent.state / "admin.sock"), "--credentials", str(agent.output))
    return ("--dir", str(ca.directory), *evidence, "--timeout", "40s")


def test_separate_ca_rotates_with_the_named_root_users(tmp_path: Path) -> None:
    """--envoy and --credentials confirm the stages; in the end the CA refuses certificates of the old root,
    on a connection that was opened with one before, too."""
    changes = {"CA_ROOT_CA": str(tmp_path / "ca/root-cert.pem"), "MESHSCRAPE_RENEWAL_SPREAD": "200ms"}
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
        agent.await_ready()
        before, old = published_bundle(ca.directory), ca.issue("foo", "bar")
        with kept_connection(ca, old) as ask:
            assert ask(request_bytes(CSR))
            done = rotate(*named(ca, agent))
            assert done.returncode == 0, done.stderr
            with pytest.raises(GrpcRefusal):
                ask(request_bytes(CSR))
        after = published_bundle(ca.directory)
        assert (len(after), after != before) == (1, True)
        with pytest.raises(GrpcRefusal):
            call(ca, request_bytes(CSR), credentials=old)
        assert call(ca, request_bytes(CSR), credentials=ca.issue("foo", "bar"))
        assert agent.scrape(15091, agent.output)[0] == 200


def test_an_agent_with_a_stale_copy_of_the_root_holds_the_stage_up(tmp_path: Path) -> None:
    """It is named, its log says why, and going back costs nothing."""
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, SECRET_TTL="6s") as agent:
        agent.await_ready()
        before = published_bundle(ca.directory)
        assert rotate(*named(ca, agent), "--to", "distribute", "-q").returncode == 0
        stuck = rotate(*named(ca, agent)[:-1], "3s")
        assert stuck.returncode == 1
        assert "still has a certificate of the old root" in stuck.stderr
        eventually(lambda: "the CA's certificate is not accepted" in agent.log())
        assert rotate(*named(ca, agent), "--abort", "-q").returncode == 0
        assert published_bundle(ca.directory) == before
        assert agent.scrape(15091, agent.output)[0] == 200


def test_a_ca_that_starts_in_a_rotation_goes_on_with_it(tmp_path: Path) -> None:
    """The record alone decides: a CA that was down when a stage began publishes that stage."""
    with ca_process(tmp_path / "ca") as ca:
        pass
    with held_record(ca.directory) as record:
        rotation = record.begin(utcnow())
    with ca_process(tmp_path / "ca") as again:
        assert published_bundle(again.directory) == rotation.trusted
        with held_record(again.directory) as record:
            record.write(rotation.advanced())
        eventually(lambda: published_bundle(again.directory) == rotation.advanced().trusted)
        (again.directory / "rotation" / "rotation.json").write_text("{}")
        eventually(lambda: "the roots stay as they were" in again.log())
        assert again.issue("foo", "bar").certificate


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--dir", "{}"), "no root user is named"),
        (("--dir", "{}", "--envoy", "x"), "his directory has no CA with its own root"),
        (("--dir", "{}", "--state", "{}"), "--state and --dir both name a CA"),
        (("--envoy", "x"), "need --dir or --state"),
        (("--state", "{}"), "no mesh is running"),
        (("--abort", "--show"), "cannot be used with --to or --show"),
        (("--dir", "{}", "--envoy", "x", "--timeout", "soon"), "--timeout: "),
    ],
)
def test_unusable_options_are_one_line(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    """The reason, exit code 2, and nothing is made in the directory."""
    with pytest.raises(InputError if "no mesh" not in reason else NotRunningError) as caught:
        command.main(["rotate", *(each.format(tmp_path) for each in arguments)], standalone_mode=False)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
