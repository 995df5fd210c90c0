"""The CA's own root and an operator's CA: what starts, and what is refused in one clear line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from meshscrape.ca.authority import OperatorFiles, open_operators, open_own
from meshscrape.errors import InputError
from meshscrape.spiffe.bundles import is_issued_by
from meshscrape.spiffe.certificates import (
    Signer,
    certificates_to_pem,
    identity_of,
    load_certificates,
    self_signed_root,
)
from meshscrape.spiffe.chains import ChainFault
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import generate_key, key_to_pem, load_key
from support.ca import TestCa, issue_intermediate
from support.chains import CLIENT, Maker

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
BAR = workload_id("cluster.local", "foo", "bar")


def write(
    directory: Path, ca: TestCa, *, chain: bytes | None = None, roots: bytes | None = None
) -> OperatorFiles:
    files = OperatorFiles(
        directory / "cert.pem",
        directory / "key.pem",
        None if chain is None else directory / "chain.pem",
        directory / "root.pem",
    )
    files.certificate.write_bytes(certificates_to_pem([ca.signer.certificate]))
    files.key.write_bytes(key_to_pem(ca.signer.key))
    files.key.chmod(0o600)
    files.roots.write_bytes(ca.root_pem if roots is None else roots)
    if files.chain:
        files.chain.write_bytes(chain or b"")
    return files


def test_root_is_created_once(tmp_path: Path) -> None:
    """The first start makes the root, every later one finds it again, with a private key of mode 0600."""
    made = open_own(tmp_path, "cluster.local", NOW)
    again = open_own(tmp_path, "cluster.local", NOW)
    assert made.bundle_pem == again.bundle_pem
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    leaf = again.issue(generate_key().public_key(), BAR, NOW, DAY)
    assert is_issued_by(leaf, made.anchor)


def test_a_start_cut_short_is_finished(tmp_path: Path) -> None:
    """A stop between key and certificate costs nothing: the next start makes the certificate of that key."""
    key = generate_key()
    (tmp_path / "ca-key.pem").write_bytes(key_to_pem(key))
    (tmp_path / "ca-key.pem").chmod(0o600)
    assert open_own(tmp_path, "cluster.local", NOW).anchor.public_key() == key.public_key()


def test_a_lost_key_is_not_replaced(tmp_path: Path) -> None:
    """A root without its key is an error: a new root would cut off every workload silently."""
    open_own(tmp_path, "cluster.local", NOW)
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(InputError, match="missing"):
        open_own(tmp_path, "cluster.local", NOW)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o660])
def test_a_key_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    """A wider mode than 0600 is an error with the remedy, and the mode stays as it was found."""
    open_own(tmp_path, "cluster.local", NOW)
    path = tmp_path / "ca-key.pem"
    path.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o}.*chmod 600 {path}"):
        open_own(tmp_path, "cluster.local", NOW)
    assert path.stat().st_mode & 0o777 == mode


def test_a_directory_belongs_to_one_trust_domain(tmp_path: Path) -> None:
    """The root of one trust domain does not sign for another."""
    open_own(tmp_path, "cluster.local", NOW)
    with pytest.raises(InputError, match=r"trust domain cluster\.local, not of other\.example"):
        open_own(tmp_path, "other.example", NOW)


def test_root_of_an_operator_is_used(tmp_path: Path) -> None:
    """A root from files signs; nothing is sent between leaf and bundle."""
    ca = TestCa(now=NOW)
    authority = open_operators(write(tmp_path, ca), "cluster.local", NOW)
    assert authority.intermediates_pem == []
    assert authority.bundle_pem == ca.root_pem
    assert identity_of(authority.issue(generate_key().public_key(), BAR, NOW, DAY)) == BAR


def test_an_operators_intermediate_and_a_bundle_of_two(tmp_path: Path) -> None:
    """An intermediate below an intermediate: the chain is sent in order, the bundle whole."""
    root, other = TestCa(now=NOW), TestCa(now=NOW)
    key = generate_key()
    # A CA that may have one more below it, unlike those that the product issues.
    middle = root.custom([], common_name="middle", is_ca=True, lifetime=10 * DAY)
    below = issue_intermediate(
        TestCa(signer=_signer(middle.chain_pem, middle.key_pem, root)).signer,
        key.public_key(),
        "cluster.local",
        NOW,
        5 * DAY,
    )
    files = write(tmp_path, root, chain=middle.chain_pem, roots=other.root_pem + root.root_pem)
    files.certificate.write_bytes(certificates_to_pem([below]))
    files.key.write_bytes(key_to_pem(key))
    authority = open_operators(files, "cluster.local", NOW)
    assert authority.intermediates_pem == [certificates_to_pem([below]), middle.chain_pem]
    assert authority.bundle_pem == other.root_pem + root.root_pem
    assert authority.anchor == root.signer.certificate
    leaf = authority.issue(generate_key().public_key(), BAR, NOW, 90 * DAY)
    assert leaf.not_valid_after_utc == below.not_valid_after_utc


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """A key that does not belong to the certificate is named with it."""
    files = write(tmp_path, TestCa(now=NOW))
    files.key.write_bytes(key_to_pem(generate_key()))
    with pytest.raises(InputError, match=r"key\.pem does not belong to this certificate"):
        open_operators(files, "cluster.local", NOW)


def test_a_leaf_cannot_sign(tmp_path: Path) -> None:
    """A workload's certificate with its key is no CA."""
    ca = TestCa(now=NOW)
    files, leaf = write(tmp_path, ca), ca.workload("foo", "bar")
    files.certificate.write_bytes(leaf.chain_pem)
    files.key.write_bytes(leaf.key_pem)
    with pytest.raises(InputError, match="not a CA certificate"):
        open_operators(files, "cluster.local", NOW)


def test_dates_of_the_whole_chain_are_checked(tmp_path: Path) -> None:
    """An expired signer and one whose time has not come are refused; so is one whose root has ended."""
    files = write(tmp_path, TestCa(now=NOW).intermediate(DAY))
    with pytest.raises(InputError, match=r"intermediate.* expired at"):
        open_operators(files, "cluster.local", NOW + 2 * DAY)
    with pytest.raises(InputError, match="not valid before"):
        open_operators(files, "cluster.local", NOW - 2 * DAY)
    with pytest.raises(InputError, match=r"root.* expired at"):
        open_operators(write(tmp_path, TestCa(now=NOW)), "cluster.local", NOW + 40 * DAY)


def test_nothing_outlives_the_root_above(tmp_path: Path) -> None:
    """A root that ends before the signer bounds every leaf, and ends issuing when it ends."""
    root = TestCa(now=NOW)
    short = self_signed_root("cluster.local", root.signer.key, NOW, DAY)
    files = write(tmp_path, root.intermediate(7 * DAY), roots=certificates_to_pem([short]))
    authority = open_operators(files, "cluster.local", NOW)
    key = generate_key().public_key()
    assert authority.issue(key, BAR, NOW, 5 * DAY).not_valid_after_utc == short.not_valid_after_utc
    assert authority.issue_own(key, ["a"], NOW, 5 * DAY).not_valid_after_utc == short.not_valid_after_utc
    with pytest.raises(InputError, match="expired"):
        authority.issue(key, BAR, NOW + DAY, DAY)
    with pytest.raises(InputError, match="expired"):
        authority.issue_own(key, ["a"], NOW + DAY, DAY)


def test_a_chain_must_reach_a_root(tmp_path: Path) -> None:
    """A bundle with another root of the same name, and a missing intermediate, are noticed at the start."""
    root = TestCa(now=NOW)
    with pytest.raises(InputError, match="does not reach a root of the bundle"):
        open_operators(write(tmp_path, root, roots=TestCa(now=NOW).root_pem), "cluster.local", NOW)
    with pytest.raises(InputError, match="does not reach a root of the bundle"):
        open_operators(
            write(tmp_path, root.intermediate(), roots=TestCa(now=NOW).root_pem), "cluster.local", NOW
        )


def test_path_length_is_kept(tmp_path: Path) -> None:
    """A CA below one that may sign leaves only is refused: no verifier would accept its leaves."""
    above = TestCa(now=NOW).intermediate()
    chain = certificates_to_pem([above.signer.certificate])
    with pytest.raises(InputError, match="path length"):
        open_operators(write(tmp_path, above.intermediate(), chain=chain), "cluster.local", NOW)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "root.pem"])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    """Each file that is missing, empty or junk gives one line with its path."""
    files = write(tmp_path, TestCa(now=NOW))
    path = tmp_path / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_operators(files, "cluster.local", NOW)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def _signer(chain: bytes, key: bytes, root: TestCa) -> Signer:
    certificate = load_certificates(chain, "")[0]
    return Signer(certificate, load_key(key, ""), (certificate,), root.signer.roots)


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        ({"extended": [CLIENT]}, ChainFault.PURPOSE),
        ({"permitted": [x509.UniformResourceIdentifier("example.org")]}, ChainFault.NAMES),
        ({"unknown": True}, ChainFault.EXTENSION),
    ],
    ids=["clients alone", "another trust domain alone", "an unknown critical extension"],
)
def test_a_ca_whose_certificates_the_mesh_refuses_does_not_start(
    tmp_path: Path, odd: dict[str, Any], fault: ChainFault
) -> None:
    """The CA judges a certificate of its own as Envoy will, before any workload asks for one."""
    maker = Maker("operator")
    root = maker.root(begin=NOW - DAY, end=NOW + DAY)
    made = maker.make(root, begin=NOW - DAY, end=NOW + DAY, **odd)
    files = OperatorFiles(tmp_path / "cert.pem", tmp_path / "key.pem", None, tmp_path / "root.pem")
    files.certificate.write_bytes(certificates_to_pem([made.certificate]))
    files.key.write_bytes(made.key_pem)
    files.key.chmod(0o600)
    files.roots.write_bytes(certificates_to_pem([root.certificate]))
    with pytest.raises(InputError) as caught:
        open_operators(files, "cluster.local", NOW)
    assert caught.value.code == fault
