"""A CA that is away for longer than half a certificate's life, while its mesh is scraped on."""

from __future__ import annotations

import http.client
import ssl
import threading
from pathlib import Path

import pytest

from support.addresses import free_port
from support.agent import AgentProcess, agent_process
from support.ca import ca_process
from support.polling import eventually

pytestmark = pytest.mark.timeout(90)


class Scraper(threading.Thread):
    """Scrapes 50 times a second, each time in a new connection with the credentials of that moment."""

    def __init__(self, agent: AgentProcess) -> None:
        super().__init__(daemon=True)
        self._agent = agent
        self._over = threading.Event()
        self.served = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.02):
            try:
                status, _ = self._agent.scrape(15091, self._agent.output / "..data")
                if status == 200:
                    self.served += 1
                else:
                    self.failures.append(str(status))
            except (OSError, http.client.HTTPException) as error:
                # The three files are read one after the other: a switch in between is the reader's.
                if not (isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"):
                    self.failures.append(repr(error))

    def stop(self) -> None:
        self._over.set()
        self.join(10)


def test_nothing_fails_before_expiry_and_all_recovers_in_time(tmp_path: Path) -> None:
    """Away from before the renewal until well after it: every scrape succeeds, and the next certificate
    comes before the present one ends."""
    listen = f"127.0.0.1:{free_port()}"
    with ca_process(tmp_path / "ca", listen=listen) as ca:
        with agent_process(tmp_path, ca, SECRET_TTL="40s", SECRET_GRACE_PERIOD_RATIO="0.95") as agent:
            agent.await_ready()
            first = agent.served_serial()
            scraper = Scraper(agent)
            scraper.start()
            ca.process.kill()
            ca.process.wait(10)
            # The renewal is due after 2 s of the life; three failures are a second later.
            eventually(lambda: agent.metric("istio_agent_num_failed_outgoing_requests") >= 3)
            assert agent.served_serial() == first
            with ca_process(tmp_path / "ca", listen=listen):
                eventually(lambda: agent.served_serial() != first, what="a new certificate")
                assert agent.health()[0] == 200
                scraper.stop()
        assert scraper.failures == []
        assert scraper.served > 20


def test_everything_recovers_by_itself_after_expiry(tmp_path: Path) -> None:
    """Away until after the end: not ready (why: told inside alone); the CA's return alone brings it back."""
    listen, ttl = f"127.0.0.1:{free_port()}", "4s"
    with (
        ca_process(tmp_path / "ca", listen=listen) as ca,
        agent_process(tmp_path, ca, SECRET_TTL=ttl) as agent,
    ):
        agent.await_ready()
        envoy = agent.envoy_pid()
        ca.process.kill()
        ca.process.wait(10)
        eventually(lambda: agent.health()[0] == 503, what="the end of the certificate")
        assert str(ca.address) in agent.health()[1]
        assert agent.get(agent.pod, 15021, "/healthz/ready") == (503, "not ready\n")
        with pytest.raises((ssl.SSLError, OSError)):
            agent.scrape(15091, agent.output)
        with ca_process(tmp_path / "ca", listen=listen):
            eventually(lambda: agent.health()[0] == 200, what="readiness")
            eventually(lambda: agent.scrape(15091, agent.output)[0] == 200, what="a scrape")
        assert agent.envoy_pid() == envoy
