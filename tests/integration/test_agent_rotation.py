"""Certificates that end within seconds: renewal while Envoy runs, and a CA that goes and comes back."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from meshscrape.system.files import write_atomic
from support.addresses import free_port
from support.agent import agent_process
from support.ca import TestCa, ca_process
from support.polling import eventually

pytestmark = pytest.mark.timeout(60)


def test_envoy_serves_renewed_certificates_without_a_restart(tmp_path: Path) -> None:
    """Half-way through a certificate's life Envoy shows a new one; every scrape in between succeeds."""
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, SECRET_TTL="3s") as agent:
        agent.await_ready()
        envoy, first = agent.envoy_pid(), agent.served_serial()
        serials = {first}

        def renewed_twice() -> bool:
            assert agent.scrape(15091, agent.output)[0] == 200
            serials.add(agent.served_serial())
            return len(serials) >= 3

        eventually(renewed_twice, what="two renewals")
        assert agent.envoy_pid() == envoy
        assert agent.metric("meshscrape_agent_certificate_renewals_total") >= 2
        eventually(lambda: agent.metric("meshscrape_agent_envoy_certificate_current") == 1)


def test_no_scrape_fails_before_expiry_when_the_ca_is_down(tmp_path: Path) -> None:
    """Renewals fail and are counted, the old certificate serves on, and the CA's return is noticed."""
    listen = f"127.0.0.1:{free_port()}"
    with ca_process(tmp_path / "ca", listen=listen) as ca:
        context = agent_process(tmp_path, ca, SECRET_TTL="20s", SECRET_GRACE_PERIOD_RATIO="0.95")
        with context as agent:
            agent.await_ready()
            first = agent.served_serial()
            ca.process.kill()
            ca.process.wait(10)
            eventually(lambda: agent.metric("istio_agent_num_failed_outgoing_requests") >= 2)
            assert agent.health()[0] == 200
            assert agent.scrape(15091, agent.output)[0] == 200
            assert agent.served_serial() == first
            with ca_process(tmp_path / "ca", listen=listen):
                eventually(lambda: agent.served_serial() != first, what="a new certificate")
                assert agent.health()[0] == 200


def test_an_expired_certificate_is_not_ready(tmp_path: Path) -> None:
    """When the CA stays away too long readiness says that the certificate has expired, and why."""
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, SECRET_TTL="2s") as agent:
        agent.await_ready()
        ca.process.kill()
        ca.process.wait(10)
        eventually(lambda: agent.health()[0] == 503)
        reason = agent.health()[1]
        assert "the certificate has expired at" in reason
        assert "could not be renewed" in reason


def test_a_refused_token_is_read_again_when_renewing(tmp_path: Path) -> None:
    """A token that has gone bad is refused, and renewal goes through once the file has a good one."""
    soon = {"SECRET_TTL": "20s", "SECRET_GRACE_PERIOD_RATIO": "0.95"}
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **soon) as agent:
        agent.await_ready()
        first = agent.served_serial()
        token = tmp_path / "token"
        token.write_text("not.a.token")
        eventually(lambda: "does not accept the credentials" in agent.log(), what="a refusal")
        token.write_text(ca.token("demo", "web"))
        eventually(lambda: agent.served_serial() != first, what="a new certificate")


def test_a_certificate_renews_itself_without_a_token(tmp_path: Path) -> None:
    """With the token gone the present certificate is proof enough of who asks."""
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, SECRET_TTL="3s") as agent:
        agent.await_ready()
        first = agent.served_serial()
        (tmp_path / "token").unlink()
        eventually(lambda: agent.served_serial() != first, what="a new certificate")


def test_scrapers_from_outside_the_mesh_follow_their_bundle(tmp_path: Path) -> None:
    """A scraper of another CA is let in by its DNS name while that CA is in the bundle, and only then."""
    outside, later = TestCa("example.org"), TestCa("example.org")
    bundle = tmp_path / "scrapers.pem"
    bundle.write_bytes(outside.root_pem)
    names = [x509.DNSName("prometheus.example.org")]
    changes = {"MESHSCRAPE_SCRAPERS": "dns:prometheus.example.org", "MESHSCRAPE_SCRAPERS_CA": str(bundle)}
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
        agent.await_ready()
        old, new = (
            replace(each.custom(names), root_pem=ca.root_pem).write(tmp_path / name)
            for each, name in ((outside, "old"), (later, "new"))
        )
        assert agent.scrape(15091, old)[0] == 200
        with pytest.raises(ssl.SSLError):
            agent.scrape(15091, new)
        write_atomic(bundle, later.root_pem)

        def switched() -> bool:
            try:
                return agent.scrape(15091, new)[0] == 200
            except ssl.SSLError:
                return False

        eventually(switched, what="the new bundle")
        with pytest.raises(ssl.SSLError):
            agent.scrape(15091, old)
        assert not (agent.output / "scrapers-root-cert.pem").exists()
