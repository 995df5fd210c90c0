"""The agent with the real CA and a real Envoy: from the first certificate to a complete stop."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from meshscrape.spiffe.certificates import key_matches
from meshscrape.spiffe.keys import load_key
from support.agent import AgentProcess, agent_process
from support.ca import CaProcess, ca_process
from support.polling import eventually

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaProcess]:
    """One CA for the whole module."""
    with ca_process(tmp_path_factory.mktemp("ca")) as running:
        yield running


@pytest.fixture(scope="module")
def agent(ca: CaProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """A ready agent that tests only look at."""
    with agent_process(tmp_path_factory.mktemp("agent"), ca) as running:
        running.await_ready()
        yield running


def gone(pid: int) -> bool:
    """Whether no process with this id runs (a zombie does not run)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def last_line(agent: AgentProcess) -> str:
    return agent.log().strip().splitlines()[-1]


def test_its_secure_ports_serve_the_scraper(agent: AgentProcess) -> None:
    """With the first certificate both secure ports answer over mutual TLS: Envoy's and the merged metrics."""
    status, statistics = agent.scrape(15091, agent.output)
    assert (status, "envoy_server_live" in statistics) == (200, True)
    status, merged = agent.scrape(15092, agent.output)
    assert (status, "meshscrape_agent_build_info" in merged) == (200, True)


def test_a_workload_that_is_not_listed_gets_403(agent: AgentProcess, ca: CaProcess, tmp_path: Path) -> None:
    """The allow list of the environment reaches Envoy: another workload of the mesh is refused."""
    other = ca.issue("demo", "other").write(tmp_path / "other")
    assert agent.scrape(15091, other)[0] == 403


def test_pod_address_serves_health(agent: AgentProcess) -> None:
    """A prober outside the pod sees readiness on 15021."""
    assert agent.get(agent.pod, 15021, "/healthz/ready")[0] == 200


def test_only_the_owner_can_read_secrets(agent: AgentProcess) -> None:
    """Every file and directory of the agent's own is closed to other users, and so is OUTPUT_CERTS."""
    for top in (agent.state, agent.output):
        for path in (top, *top.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & 0o077 == 0, f"{path}: {mode:o}"


def test_the_output_directory_has_a_matching_pair(agent: AgentProcess) -> None:
    """Applications find the certificate, its key and the trust bundle under Istio's names."""
    key = load_key((agent.output / "key.pem").read_bytes(), "key.pem")
    chain = x509.load_pem_x509_certificates((agent.output / "cert-chain.pem").read_bytes())
    assert key_matches(key, chain[0])
    assert (agent.output / "root-cert.pem").read_bytes().count(b"BEGIN CERTIFICATE") == 1


def test_no_secret_is_in_a_log_or_command_line(agent: AgentProcess) -> None:
    """Neither the token nor the key shows in the log or in any process's arguments."""
    token = Path(agent.environment["MESHSCRAPE_TOKEN_PATH"]).read_text()
    key = (agent.output / "key.pem").read_text().splitlines()[1]
    pids = (agent.process.pid, agent.envoy_pid())
    shown = agent.log() + "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
    assert "ready as spiffe://cluster.local/ns/demo/sa/web" in shown
    assert token not in shown
    assert key not in shown


def test_own_metrics_have_names_that_no_other_source_has(agent: AgentProcess) -> None:
    """The agent's families are Istio's or meshscrape's, and say how long the certificate lasts."""
    text = agent.get(agent.inside, 15020, "/metrics")[1]
    own = text.partition("envoy_")[0]
    assert not [line for line in own.splitlines() if line.startswith(("process_", "python_"))]
    assert 86000 < agent.metric("istio_agent_cert_expiry_seconds") <= 86400
    assert agent.metric("meshscrape_agent_certificate_renewals_total") == 0


def test_a_second_agent_on_the_directory_is_refused(
    agent: AgentProcess, ca: CaProcess, tmp_path: Path
) -> None:
    """The directory has one owner: the second agent says who that is, and disturbs nothing."""
    with agent_process(tmp_path, ca, MESHSCRAPE_AGENT_DIR=str(agent.state)) as second:
        assert second.ended() == 2
        assert f"{agent.state}: an agent already runs here (pid {agent.process.pid})" in last_line(second)
    assert agent.health()[0] == 200
    assert agent.scrape(15091, agent.output)[0] == 200


def test_a_taken_port_is_named_with_its_holder(ca: CaProcess, tmp_path: Path) -> None:
    """One line: the port, who has it, which setting to change; and no directory stays behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with agent_process(tmp_path, ca, INSTANCE_IP="127.0.0.1", ENVOY_SECURE_METRICS_PORT=port) as agent:
            assert agent.ended() == 2
            line = agent.log().strip()
    assert "\n" not in line
    assert f"127.0.0.1:{port}: the port is taken by pid {os.getpid()}" in line
    assert "ENVOY_SECURE_METRICS_PORT" in line
    assert not agent.state.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"CA_ROOT_CA": "/no/such/root.pem"}, "/no/such/root.pem: cannot read the CA's root certificate"),
        ({"MESHSCRAPE_TOKEN_PATH": "/no/such/token"}, "/no/such/token: cannot read the token for the CA"),
        ({"MESHSCRAPE_SCRAPERS_CA": "/no/such/ca.pem"}, "/no/such/ca.pem: cannot read the scrapers' CA"),
        ({"MESHSCRAPE_ENVOY": "/no/such/envoy"}, "/no/such/envoy: is not executable"),
        ({"ENVOY_SECURE_METRICS_PORT": "http"}, "environment variable ENVOY_SECURE_METRICS_PORT"),
    ],
)
def test_bad_input_is_one_line(ca: CaProcess, tmp_path: Path, changes: dict[str, str], said: str) -> None:
    """What cannot be used is named in one line, the exit status is 2, and nothing is left behind."""
    with agent_process(tmp_path, ca, **changes) as agent:
        assert agent.ended() == 2
        line = agent.log().strip()
    assert said in line
    assert "\n" not in line
    assert not agent.state.exists()
    assert not agent.output.exists()


def test_agent_ends_when_its_token_is_wrong(ca: CaProcess, tmp_path: Path) -> None:
    """A token that the CA refuses again and again is a clear error, without the token in it."""
    (tmp_path / "token").write_text("not.a.token")
    with agent_process(tmp_path, ca) as agent:
        assert agent.ended() == 2
        line = last_line(agent)
    assert "does not accept the credentials (UNAUTHENTICATED" in line
    assert "not.a.token" not in agent.log()
    assert not agent.state.exists()


def test_a_token_that_is_replaced_is_read_again(ca: CaProcess, tmp_path: Path) -> None:
    """After a refusal the token file is read anew: a fresh token leads to the certificate."""
    token = tmp_path / "token"
    token.write_text("not.a.token")
    with agent_process(tmp_path, ca) as agent:
        eventually(lambda: "waiting for the first certificate" in agent.log())
        token.write_text(ca.token("demo", "web"))
        agent.await_ready()


def test_a_token_of_another_workload_gives_no_certificate(ca: CaProcess, tmp_path: Path) -> None:
    """The CA names whoever the token names; an agent does not take somebody else's identity for its own."""
    (tmp_path / "token").write_text(ca.token("demo", "other"))
    with agent_process(tmp_path, ca) as agent:
        assert agent.ended() == 2
        assert "is spiffe://cluster.local/ns/demo/sa/other's, not spiffe://" in last_line(agent)
        assert not (agent.state / "credentials").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_agent_stops_while_it_waits_for_the_ca(ca: CaProcess, tmp_path: Path, number: signal.Signals) -> None:
    """Without a CA it says once what it waits for, is alive but not ready, and stops when told to."""
    with socket.socket() as closed, agent_process(tmp_path, ca, CA_ADDR=_closed(closed)) as agent:
        eventually(lambda: agent.metric("istio_agent_num_failed_outgoing_requests") >= 2)
        status, reason = agent.health()
        assert (status, "the CA cannot be reached" in reason) == (503, True)
        assert agent.log().count("waiting for the first certificate") == 1
        agent.process.send_signal(number)
        assert agent.ended() == 0
        assert not agent.state.exists()


def test_agent_gives_up_on_an_unreachable_ca(ca: CaProcess, tmp_path: Path) -> None:
    """After MESHSCRAPE_CA_WAIT without a certificate it ends with the CA's address and what to do."""
    with socket.socket() as closed:
        address = _closed(closed)
        with agent_process(tmp_path, ca, CA_ADDR=address, MESHSCRAPE_CA_WAIT="1s") as agent:
            assert agent.ended() == 2
    assert f"no certificate within 1 s: {address}: the CA cannot be reached" in last_line(agent)
    assert "CA_ADDR" in last_line(agent)
    assert not agent.state.exists()


def test_agent_stops_completely(ca: CaProcess, tmp_path: Path) -> None:
    """TERM ends Envoy too, frees the ports and removes the admin socket."""
    with agent_process(tmp_path, ca) as agent:
        agent.await_ready()
        envoy = agent.envoy_pid()
        assert agent.stop() == 0
        assert gone(envoy)
        assert not (agent.state / "admin.sock").exists()
        for address, port in ((agent.pod, 15091), (agent.pod, 15021), (agent.inside, 15020)):
            with socket.socket() as probe:
                assert probe.connect_ex((address, port)) != 0


def test_a_killed_envoy_is_started_again(ca: CaProcess, tmp_path: Path) -> None:
    """After KILL there is a new Envoy on the same ports, and the restart is counted."""
    with agent_process(tmp_path, ca) as agent:
        agent.await_ready()
        first = agent.envoy_pid()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: agent.envoy_pid() not in (0, first) and agent.health()[0] == 200)
        assert agent.scrape(15092, agent.output)[0] == 200
        assert agent.metric("meshscrape_agent_envoy_restarts_total") == 1


def test_a_killed_agent_leaves_no_orphan_and_a_free_place(ca: CaProcess, tmp_path: Path) -> None:
    """KILL to the agent ends Envoy; a successor starts there and uses the certificate that is still good."""
    with agent_process(tmp_path, ca) as agent:
        agent.await_ready()
        envoy, serial = agent.envoy_pid(), agent.served_serial()
        agent.process.kill()
        agent.ended()
    with agent_process(tmp_path, ca, **dict(agent.environment)) as successor:
        eventually(lambda: gone(envoy), what="Envoy's end")
        successor.await_ready()
        assert successor.served_serial() == serial
        assert successor.metric("istio_agent_num_outgoing_requests") == 0


def test_agent_ends_when_its_envoy_cannot_start(ca: CaProcess, tmp_path: Path) -> None:
    """An Envoy that dies again and again ends the agent, with Envoy's last words shown."""
    broken = tmp_path / "envoy"
    broken.write_text("#!/bin/sh\necho listener cannot be added\nexit 1\n")
    broken.chmod(0o755)
    with agent_process(tmp_path, ca, MESHSCRAPE_ENVOY=str(broken)) as agent:
        assert agent.ended() == 2
        said = "envoy: ended 6 times within 60 s (exit status 1); its last output: listener cannot be added"
        assert last_line(agent).endswith(said)


def test_a_workload_without_envoy_gets_credentials_and_health(ca: CaProcess, tmp_path: Path) -> None:
    """With INBOUND_CAPTURE_PORTS empty there are credentials and health, inside alone, and no Envoy."""
    changes = {
        "INBOUND_CAPTURE_PORTS": "",
        "ENVOY_SECURE_METRICS_PORT": "0",
        "ENVOY_SECURE_MERGED_METRICS_PORT": "0",
        "MESHSCRAPE_OUTPUT_CERTS_MODE": "0640",
    }
    with agent_process(tmp_path, ca, **changes) as agent:
        agent.await_ready()
        assert agent.get(agent.inside, 15021, "/healthz/ready")[0] == 200
        assert agent.envoy_pid() == 0
        assert stat.S_IMODE((agent.output / "key.pem").stat().st_mode) == 0o640
        with socket.socket() as probe:
            assert probe.connect_ex((agent.pod, 15020)) != 0
        assert agent.stop() == 0


def _closed(bound: socket.socket) -> str:
    """An address where nobody listens, and nobody else can while `bound` is open."""
    bound.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{bound.getsockname()[1]}"
