"""The CA under a flood of peers that prove nothing: certificates are issued, and no target goes down."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

import pytest

from meshscrape.spiffe.certificates import make_csr
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import generate_key
from meshscrape.system.ca_client import create_certificate
from support.ca import CaProcess, ca_process
from support.flooding import Reached, flooded
from support.rotating import Serials, short_lived_mesh
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(240)
RENEWALS = 40
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


def test_no_target_goes_down_under_a_flood(tmp_path: Path) -> None:
    """Certificates of 20 s are renewed twice while the CA is flooded, and Prometheus misses no scrape."""
    with short_lived_mesh(tmp_path, ttl="20s") as up:
        watch, serials = Watch(up), Serials(up)
        with flooded(up.document()["ca"]["address"], tmp_path / "flood.log") as flood:
            serials.await_rotations(2)
            account = watch.account()
    print(f"{flood}: {sum(serials.rotations.values())} rotations, {account}")
    assert account.failed == 0 and account.fewest_samples > 0
    assert_flooded(flood)


def assert_flooded(flood: Reached) -> None:
    """There was a flood. How strong it was depends on the machine; `make bench` measures it."""
    assert flood.silent >= 1000 and flood.handshakes >= 1


def renew(ca: CaProcess, credentials: Path | None) -> float:
    """Seconds until a new certificate is there, by certificate or else by token."""
    csr = make_csr(generate_key(), workload_id("cluster.local", "foo", "bar"))
    began = time.monotonic()
    asyncio.run(
        create_certificate(
            ca.address,
            ca.root_pem,
            csr,
            timedelta(hours=1),
            token=None if credentials else ca.token("foo", "bar"),
            client_credentials=credentials,
            deadline=DEADLINE,
        )
    )
    return time.monotonic() - began
