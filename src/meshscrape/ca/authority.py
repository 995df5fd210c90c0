"""Sign certificates with the CA's own self-signed root, or with an operator's CA from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from meshscrape.ca.storage import CA_CERTIFICATE, CA_KEY, read_key, save_key
from meshscrape.errors import InputError
from meshscrape.spiffe.bundles import bundle_to_pem, load_bundle
from meshscrape.spiffe.certificates import (
    Signer,
    certificates_to_pem,
    is_authority,
    issue_leaf,
    issue_server,
    key_matches,
    load_certificates,
    self_signed_root,
)
from meshscrape.spiffe.chains import path_to_root
from meshscrape.spiffe.ids import SpiffeId, workload_id
from meshscrape.spiffe.keys import PublicKey, generate_key
from meshscrape.system.files import read_input, write_atomic

ROOT_LIFETIME = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class OperatorFiles:
    """An operator's CA: its certificate and key, the intermediates above it (if any), the root bundle."""

    certificate: Path
    key: Path
    chain: Path | None
    roots: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """Issue certificates of one trust domain. `anchor` is the root at the end of the signer's chain."""

    trust_domain: str
    signer: Signer
    anchor: x509.Certificate

    @property
    def not_after(self) -> datetime:
        """Return the earliest end of the certificates in the chain, including the root."""
        return min(self.signer.not_after, self.anchor.not_valid_after_utc)

    @property
    def bundle_pem(self) -> bytes:
        """Return the whole trust bundle."""
        return bundle_to_pem(self.signer.roots)

    @property
    def intermediates_pem(self) -> list[bytes]:
        """Return the intermediates that are sent after a leaf, in order, one PEM each."""
        return [certificates_to_pem([intermediate]) for intermediate in self.signer.intermediates]

    def issue(
        self, public_key: PublicKey, spiffe_id: SpiffeId, now: datetime, lifetime: timedelta
    ) -> x509.Certificate:
        """Return a workload certificate that ends no later than its chain.

        Raises InputError if that chain has expired.
        """
        return issue_leaf(self.signer, public_key, spiffe_id, now, self._left(now, lifetime))

    def issue_own(
        self, public_key: PublicKey, names: Sequence[str], now: datetime, lifetime: timedelta
    ) -> x509.Certificate:
        """Return the certificate that the CA itself serves with."""
        return issue_server(self.signer, public_key, names, now, self._left(now, lifetime))

    def _left(self, now: datetime, lifetime: timedelta) -> timedelta:
        if self.not_after <= now:
            raise InputError("the CA's chain has expired", remedy="renew it")
        return min(lifetime, self.not_after - now)


def open_own(directory: Path, trust_domain: str, now: datetime) -> Authority:
    """Return the self-signed CA of an existing directory; make it on first use.

    The key is written before its certificate. If the process stops in between, the next start makes the
    certificate. Raises InputError when the files are unusable or belong to another trust domain.
    """
    certificate_path, key_path = directory / CA_CERTIFICATE, directory / CA_KEY
    if not key_path.exists():
        if certificate_path.exists():
            raise InputError(
                "the CA's private key is missing",
                where=str(key_path),
                remedy=f"restore it, or remove {certificate_path} to start a new mesh",
            )
        save_key(key_path, generate_key())
    key = read_key(key_path, "the CA's private key")
    if not certificate_path.exists():
        root = self_signed_root(trust_domain, key, now, ROOT_LIFETIME)
        write_atomic(certificate_path, certificates_to_pem([root]), 0o644)
    authority = open_operators(
        OperatorFiles(certificate_path, key_path, None, certificate_path), trust_domain, now
    )
    check_trust_domain_of(authority, certificate_path)
    return authority


def open_operators(files: OperatorFiles, trust_domain: str, now: datetime) -> Authority:
    """Return the operator's CA in `files`.

    Raises InputError, naming the file, if it cannot issue certificates.
    """
    key = read_key(files.key, "the CA's private key")
    where = str(files.certificate)
    certificate, *rest = load_certificates(read_input(files.certificate, "the CA's certificate"), where)
    if not is_authority(certificate):
        raise InputError(
            "this is not a CA certificate", where=where, remedy="name the certificate of the signing CA"
        )
    if not key_matches(key, certificate):
        raise InputError(
            f"the private key {files.key} does not belong to this certificate",
            where=where,
            remedy="name the certificate and the key of the same CA",
        )
    roots = load_bundle(read_input(files.roots, "the root bundle"), str(files.roots))
    others = list(rest)
    if files.chain:
        others += load_certificates(read_input(files.chain, "the CA's chain"), str(files.chain))
    *below, anchor = path_to_root([certificate, *others], roots, now, purposes=(), where=where)
    authority = Authority(trust_domain, Signer(certificate, key, tuple(below), roots), anchor)
    prove(authority, now, where)
    return authority


def prove(authority: Authority, now: datetime, where: str) -> None:
    """Raise InputError unless the mesh accepts this authority's certificates: issue one and verify it."""
    throwaway = generate_key().public_key()
    example = workload_id(authority.trust_domain, "example", "example")
    leaf = authority.issue(throwaway, example, now, timedelta(minutes=1))
    signer = authority.signer
    path_to_root([leaf, *signer.intermediates], signer.roots, now, where=where)


def check_trust_domain_of(authority: Authority, path: Path) -> None:
    """Raise InputError, naming `path`, if the root names another trust domain than the authority's."""
    own = trust_domain_of(authority.anchor)
    if own is not None and own != authority.trust_domain:
        raise InputError(
            f"this is the root of trust domain {own}, not of {authority.trust_domain}",
            where=str(path),
            remedy="use another directory for another trust domain",
        )


def trust_domain_of(root: x509.Certificate) -> str | None:
    """Return the trust domain in a root's URI SAN (X509-SVID.md, section 2), None without one."""
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return SpiffeId.parse(uris[0]).trust_domain if uris else None
