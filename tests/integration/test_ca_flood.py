"""The CA under a flood of peers that prove nothing: certificates are issued, and no target goes down."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path
from statistics import median

import pytest

from meshscrape.errors import UnavailableError
from meshscrape.prometheus.config import CA_JOB
from meshscrape.prometheus.rules import RuleOptions, rule_groups
from meshscrape.spiffe.certificates import make_csr
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import generate_key
from meshscrape.system.ca_client import create_certificate
from support.ca import CaProcess, ca_process
from support.flooding import Reached, flooded
from support.polling import eventually
from support.rotating import Serials, short_lived_mesh
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(240)
CROWDED = {rule["alert"]: rule["expr"] for group in rule_groups(RuleOptions()) for rule in group["rules"]}[
    "MeshCaCrowded"
]
RENEWALS = 20
# What an agent waits for an answer before it tries again.
DEADLINE = 10.0


def test_every_renewal_succeeds_under_a_flood(tmp_path: Path) -> None:
    """Renewals by certificate and requests by token, from the very address of the flood, all succeed."""
    with ca_process(tmp_path) as ca:
        credentials = ca.issue("foo", "bar").write(tmp_path / "credentials")
        with flooded(ca.address, tmp_path / "flood.log") as flood:
            took = [renew(ca, credentials if number % 2 else None) for number in range(RENEWALS)]
        slowest = f"median {median(took):.3f} s, slowest {max(took):.3f} s"
        print(f"{flood}: {len(took)} certificates, {slowest}")
        assert "Traceback" not in ca.log()
    assert_flooded(flood)


def test_a_flood_takes_no_target_down_and_fires_the_alert(tmp_path: Path) -> None:
    """Every certificate is renewed twice while the CA is flooded, and Prometheus misses no scrape.

    Prometheus scrapes the CA itself, which nobody can without the token, and it sees the flood.
    """
    with short_lived_mesh(tmp_path, ttl="20s", left=0.9) as up:
        watch, serials = Watch(up), Serials(up)
        eventually(lambda: up.query(f'up{{job="{CA_JOB}"}} == 1'), what="a scrape of the CA")
        assert up.query(CROWDED) == []
        (job,) = [job for job in up.prometheus_config()["scrape_configs"] if job["job_name"] == CA_JOB]
        assert _get(f"http://{job['static_configs'][0]['targets'][0]}/metrics") == 401
        with flooded(up.document()["ca"]["address"], tmp_path / "flood.log", silent=2500, rate=200) as flood:
            serials.await_rotations(2)
            account = watch.account()
            found = eventually(lambda: up.query(CROWDED), within=60, what="the alert")
            # What the generator calls a handshake is one for the CA's OpenSSL too.
            eventually(lambda: up.query("meshscrape_ca_handshakes_total > 100"), what="handshakes")
        assert {"instance", "stage"} <= set(found[0]["metric"])
    print(f"{flood}: {sum(serials.rotations.values())} rotations, {account}")
    assert account.failed == 0 and account.fewest_samples > 0
    assert_flooded(flood)


def _get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def assert_flooded(flood: Reached) -> None:
    """There was a flood. How strong it was depends on the machine; `make bench` measures it."""
    assert flood.silent >= 1000 and flood.handshakes >= 1


def renew(ca: CaProcess, credentials: Path | None) -> float:
    """Seconds until a new certificate is there, by certificate or else by token.

    As an agent does, it asks a second time when the CA has no time for it: the machine may be too slow.
    """
    csr = make_csr(generate_key(), workload_id("cluster.local", "foo", "bar"))
    began = time.monotonic()

    def asked() -> bool:
        request = create_certificate(
            ca.address,
            ca.root_pem,
            csr,
            timedelta(hours=1),
            token=None if credentials else ca.token("foo", "bar"),
            client_credentials=credentials,
            deadline=DEADLINE,
        )
        try:
            asyncio.run(request)
        except UnavailableError:
            return False
        return True

    eventually(asked, within=2 * DEADLINE, what="a certificate")
    return time.monotonic() - began
