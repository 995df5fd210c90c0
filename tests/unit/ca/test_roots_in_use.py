"""What an Envoy's admin API shows, read as which roots it really uses."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from meshscrape.ca.roots_in_use import RootUser, envoy_use, use_of_roots
from meshscrape.spiffe.certificates import fingerprint, identity_of
from support.ca import Credentials, TestCa

OLD, NEW, OTHER = TestCa(), TestCa(), TestCa("elsewhere.example")
ROOTS = [OLD.signer.certificate, NEW.signer.certificate]
A, B = map(fingerprint, ROOTS)


def secret(kind: str, part: str, pem: bytes) -> dict[str, Any]:
    """A secret as /config_dump has it."""
    return {kind: {part: {"inline_bytes": base64.b64encode(pem).decode()}}}


def secrets(leaf: Credentials, *cas: TestCa) -> list[dict[str, Any]]:
    """The secrets of an Envoy with this certificate and these roots."""
    bundle = b"".join(ca.root_pem for ca in cas)
    return [
        secret("tls_certificate", "certificate_chain", leaf.chain_pem),
        secret("validation_context", "trusted_ca", bundle),
    ]


def context(leaf: Credentials, *cas: TestCa) -> dict[str, Any]:
    """A TLS context as /certs has it."""
    return {
        "ca_cert": [{"serial_number": f"{ca.signer.certificate.serial_number:x}"} for ca in cas],
        "cert_chain": [
            {
                "serial_number": f"{leaf.certificate.serial_number:x}",
                "subject_alt_names": [{"uri": str(identity_of(leaf.certificate))}],
            }
        ],
    }


def test_trust_needs_all_contexts_and_use_needs_one() -> None:
    """A root counts as trusted when each context has it, and as still trusted when one does."""
    leaf, newer = OLD.workload("demo", "web"), NEW.workload("demo", "web")
    certs = {"certificates": [context(leaf, OLD), context(newer, NEW, OLD, OTHER)]}
    both = [*secrets(leaf, OLD, NEW, OTHER), secret("tls_certificate", "certificate_chain", newer.chain_pem)]
    seen = envoy_use("web", certs, both, ROOTS)
    assert seen is not None
    assert (seen.trusts, seen.trusts_anywhere, seen.issuers) == ({A}, {A, B}, {A, B})


def test_a_serial_number_alone_is_no_proof() -> None:
    """What /certs names but no secret contains is not counted: serial numbers can be anybody's."""
    leaf = OLD.workload("demo", "web")
    certs = {"certificates": [context(leaf, OLD, NEW)]}
    seen = envoy_use("web", certs, secrets(leaf, OLD), ROOTS)
    assert seen is not None
    assert seen.trusts == {A}
    unknown = envoy_use("web", certs, secrets(NEW.workload("demo", "web"), OLD), ROOTS)
    assert unknown is not None
    assert unknown.issuers == {""}


def test_contexts_of_another_mesh_are_not_asked() -> None:
    """A scrape proxy that serves two meshes confirms each with what it uses in that one."""
    leaf, foreign = OLD.workload("demo", "web"), OTHER.workload("demo", "web")
    certs = {"certificates": [context(leaf, OLD, NEW), context(foreign, OTHER)]}
    seen = envoy_use("proxy", certs, secrets(leaf, OLD, NEW), ROOTS)
    assert seen is not None
    assert (seen.trusts, seen.issuers) == ({A, B}, {A})
    assert envoy_use("proxy", {"certificates": [context(foreign, OTHER)]}, [], ROOTS) is None


def test_certificate_of_neither_root_counts_for_none() -> None:
    """It cannot pass for one of the new root."""
    leaf = TestCa().workload("demo", "web")
    seen = envoy_use("web", {"certificates": [context(leaf, NEW)]}, secrets(leaf, NEW), ROOTS)
    assert seen is not None
    assert seen.issuers == {""}


def test_an_envoy_without_tls_has_nothing_to_follow() -> None:
    """No TLS context, no statement; malformed secrets are no statement either."""
    assert envoy_use("web", {"certificates": []}, [], ROOTS) is None
    leaf = OLD.workload("demo", "web")
    broken = [secret("tls_certificate", "certificate_chain", b"junk"), {"name": "other"}]
    seen = envoy_use("web", {"certificates": [context(leaf, OLD)]}, broken, ROOTS)
    assert seen is not None
    assert (seen.trusts, seen.issuers) == (set(), {""})


def test_unreachable_envoy_and_unreadable_directory_are_unconfirmed(tmp_path: Path) -> None:
    """A directory shows its certificate and bundle; what is not there, or does not answer, is a problem."""
    NEW.workload("demo", "web").write(tmp_path / "certs")
    user = RootUser("web", tmp_path / "admin.sock", (tmp_path / "certs", tmp_path / "none"))
    found, missing, silent = asyncio.run(use_of_roots([user], ROOTS))
    assert (found.who, found.trusts, found.issuers, found.problem) == ("web (certs)", {B}, {B}, "")
    assert missing.problem == "has no usable certificate yet"
    assert silent.problem == "does not answer on its admin socket"
