"""`meshscrape explain` on running sidecars, each with one fault: it stops at that fault, and names it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshscrape.envoy.options import SidecarOptions
from meshscrape.system.clock import utcnow
from meshscrape.verify.explain.explanation import Explanation
from meshscrape.verify.explain.gather import explain_all
from meshscrape.verify.explain.target import find_targets
from meshscrape.verify.mesh_status import parse_mesh
from meshscrape.verify.probes import Timeouts
from support.ca import TestCa, ca_process
from support.subject import (
    MERGED,
    Bootstrap,
    Identities,
    Inside,
    Spoiled,
    inside_server,
    mesh_status,
    subject,
)

ELSEWHERE = TestCa()
STRANGER = ELSEWHERE.workload("istio-system", "prometheus")
FILES, SERVER = ("cert-chain.pem", "key.pem", "root-cert.pem"), "server's identity"
OUTLIVED = ELSEWHERE.expired("istio-system", "prometheus")


def without_tls(config: Bootstrap) -> None:
    """The secure port answers plain HTTP."""
    for each in config["static_resources"]["listeners"]:
        if each["address"]["socket_address"]["port_value"] == 15092:
            del each["filter_chains"][0]["transport_socket"]
            # The filters before the last one refuse a client without a certificate.
            del each["filter_chains"][0]["filters"][:-1]


def elsewhere(options: SidecarOptions) -> SidecarOptions:
    """The merged port is not where the status says."""
    return replace(options, secure_merged_port=15093)


FAULTS = {
    "fine": Spoiled(),
    "unlisted": Spoiled(scrapers=""),
    "impostor": Spoiled(server=lambda known: known.read("default", "somebody-else")),
    "foreign": Spoiled(server=lambda known: ELSEWHERE.workload("default", "foreign")),
    "plaintext": Spoiled(edit=without_tls),
    "moved": Spoiled(real=elsewhere),
    "broken-body": Spoiled(inside=Inside(body=MERGED + b"what is this\n")),
    "app-down": Spoiled(inside=Inside(body=MERGED.replace(b'9080"} 1', b'9080"} 0'))),
    "agent-down": Spoiled(inside=Inside(status=503)),
}
EXPECTED = {
    "unlisted": ("authorisation", "403"),
    "impostor": ("server's identity", "sa/somebody-else instead of spiffe://cluster.local/ns/default/sa/impostor"),
    "foreign": ("server's identity", "does not lead to the trust bundle"),
    "plaintext": ("TLS handshake", "does not speak TLS"),
    "moved": ("TCP connection", "refuses connections"),
    "broken-body": ("exposition", "what is this"),
    "app-down": ("sources", "application:9080 is down"),
    "agent-down": ("HTTP status", "503"),
}  # fmt: skip


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identities]:
    """The CA of a mesh, and who it has vouched for."""
    directory = tmp_path_factory.mktemp("explained")
    with ca_process(directory / "ca") as ca:
        (directory / "identities").mkdir()
        yield Identities(ca, directory / "identities")


@contextlib.contextmanager
def mesh_with(fault: str, identities: Identities, directory: Path) -> Iterator[dict[str, Any]]:
    """The status of a mesh of one running sidecar that has this fault, and is named after it."""
    with subject(directory / fault, identities, fault, FAULTS[fault]) as entry:
        yield mesh_status(identities, [entry])


@pytest.fixture(scope="module")
def fine(identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The status of a mesh without a fault."""
    with mesh_with("fine", identities, tmp_path_factory.mktemp("fine")) as status:
        yield status


def explained(status: dict[str, Any], name: str) -> Explanation:
    """The explanation of the merged port of default/NAME."""
    mesh = parse_mesh(status)
    [target] = [each for each in find_targets(mesh, name) if each.merged]
    scraper = mesh.workload("istio-system/prometheus")
    return asyncio.run(explain_all(mesh, scraper, (target,), utcnow(), Timeouts()))[0]


def test_healthy_target_has_no_broken_step(fine: dict[str, Any]) -> None:
    """Every step is seen to work."""
    assert explained(fine, "fine").broken is None


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fault_is_where_the_explanation_ends(identities: Identities, tmp_path: Path, name: str) -> None:
    """Everything before it was seen to work; nothing after it is claimed."""
    with mesh_with(name, identities, tmp_path) as status:
        found, expected = explained(status, name), EXPECTED[name]
    assert found.broken is not None, found.steps
    assert found.broken.name == expected[0]
    assert expected[1] in found.broken.seen
    assert found.broken.remedy
    assert found.steps[-1] == found.broken
    assert {each.outcome for each in found.steps[:-1]} <= {"ok", "note"}


@pytest.mark.parametrize(
    ("own", "step"),
    [
        ({"key.pem": b""}, "scraper's certificate"),
        ({"key.pem": STRANGER.key_pem}, "scraper's key"),
        ({"root-cert.pem": STRANGER.root_pem}, "certificate's chain"),
        ({"cert-chain.pem": OUTLIVED.chain_pem, "key.pem": OUTLIVED.key_pem}, "certificate's life"),
        (dict(zip(FILES, (STRANGER.chain_pem, STRANGER.key_pem, STRANGER.root_pem), strict=True)), SERVER),
    ],
    ids=["no key", "another key", "another bundle", "ended", "another mesh"],
)
def test_scraper_files_are_checked_first(
    fine: dict[str, Any], tmp_path: Path, own: dict[str, bytes], step: str
) -> None:
    """Files that are no good are told before any target is blamed; those of another mesh fit no server here.

    A file without content stands for one that is missing.
    """
    scraper = next(each for each in fine["workloads"] if each["name"] == "prometheus")
    for name in FILES:
        if content := own.get(name, (Path(scraper["credentials"]) / name).read_bytes()):
            (tmp_path / name).write_bytes(content)
    others = [each for each in fine["workloads"] if each is not scraper]
    spoiled = {**fine, "workloads": [scraper | {"outputCertificates": str(tmp_path)}, *others]}
    found = explained(spoiled, "fine").broken
    assert found is not None
    assert found.name == step


def test_without_a_mesh_it_cannot_run(tmp_path: Path) -> None:
    """Exit code 2, one line."""
    command = [sys.executable, "-m", "meshscrape", "explain", "--state", str(tmp_path), "httpbin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no mesh is running" in done.stderr


def test_each_explanation_is_independent(identities: Identities, tmp_path: Path) -> None:
    """Another thing at the same address is another explanation."""
    with mesh_with("moved", identities, tmp_path) as status:
        entry = next(each for each in status["workloads"] if each["name"] == "moved")
        assert explained(status, "moved").steps[-1].name == "TCP connection"
        with inside_server(entry["address"], entry["ports"]["secure"]["merged"], Inside()):
            assert explained(status, "moved").steps[-1].name == "TLS handshake"
