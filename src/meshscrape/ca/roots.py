"""Read and write the CA's own roots on disk: the signing root and, during a rotation, the second root.

    DIR/ca-cert.pem, DIR/ca-key.pem            the root
    DIR/rotation/                              locked (flock) by a running `ca rotate`
    DIR/rotation/ca-cert.pem, ca-key.pem       the root that a rotation has made
    DIR/rotation/rotation.json                 the record, which exists while a rotation is in progress

The record decides, and files are found by their fingerprint. So if the process stops between any two writes,
the directory is in the state before or after the step, never between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from cryptography import x509

from meshscrape.ca.authority import (
    ROOT_LIFETIME,
    Authority,
    check_trust_domain_of,
    open_own,
    prove,
    trust_domain_of,
)
from meshscrape.ca.rotation import Rotation, RotationStage, parse, to_json
from meshscrape.ca.storage import CA_CERTIFICATE, CA_KEY, read_key, save_key
from meshscrape.errors import InputError
from meshscrape.istio.names import ROOTS_FILE
from meshscrape.spiffe.bundles import load_bundle
from meshscrape.spiffe.certificates import (
    Signer,
    certificates_to_pem,
    fingerprint,
    key_matches,
    load_certificates,
    self_signed_root,
)
from meshscrape.spiffe.chains import path_to_root
from meshscrape.spiffe.keys import PrivateKey, generate_key
from meshscrape.system.files import (
    DirectoryLock,
    private_dir,
    read_input,
    remove_staged,
    sync_directory,
    write_atomic,
)
from meshscrape.system.followed import Stamp, stamp_of

ROTATION = "rotation"
RECORD = "rotation.json"


def read_rotation(directory: Path) -> Rotation | None:
    """Return the rotation in progress in a CA's directory, None without one.

    Raises InputError if unreadable.
    """
    path = directory / ROTATION / RECORD
    try:
        return parse(read_input(path, "the record of the rotation"), str(path))
    except InputError:
        if record_state(directory) is None:
            return None
        raise


def record_state(directory: Path) -> Stamp | None:
    """Return a stamp that changes whenever the record changes; None if there is no record."""
    return stamp_of(directory / ROTATION / RECORD)


def open_present(directory: Path, trust_domain: str, now: datetime) -> Authority:
    """Return the self-signed CA of `directory`, with the roots of the current rotation stage."""
    rotation = read_rotation(directory)
    if rotation is None:
        return open_own(directory, trust_domain, now)
    roots = _roots(directory)
    for wanted in rotation.trusted:
        if wanted not in roots:
            raise InputError(
                f"the root {wanted[:16]}… of the current rotation is missing",
                where=str(directory / ROTATION),
                remedy="restore the CA's directory from its backup",
            )
    certificate, path = roots[rotation.signing]
    signer = Signer(
        certificate, _key_of(directory, certificate), (), tuple(roots[name][0] for name in rotation.trusted)
    )
    authority = Authority(trust_domain, signer, certificate)
    path_to_root([certificate], [certificate], now, purposes=(), where=str(path))
    prove(authority, now, str(path))
    check_trust_domain_of(authority, path)
    return authority


def known_roots(directory: Path) -> dict[str, x509.Certificate]:
    """Return the roots whose certificates are in the directory, by fingerprint."""
    return {name: certificate for name, (certificate, _) in _roots(directory).items()}


def published_bundle(directory: Path) -> tuple[str, ...]:
    """Return the fingerprints of the CA's latest published bundle; empty before the first one."""
    path = directory / ROOTS_FILE
    if not path.exists():
        return ()
    return tuple(fingerprint(root) for root in load_bundle(read_input(path, "the CA's bundle"), str(path)))


class RotationRecord:
    """The record of a rotation. One process at a time changes it, and every write survives a power cut."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._own = directory / ROTATION
        self._path = self._own / RECORD

    @property
    def present(self) -> Rotation | None:
        """Return the rotation in progress, None without one."""
        return read_rotation(self._directory)

    def begin(self, now: datetime) -> Rotation:
        """Make a new root and record a rotation to it. Raise InputError if the current root is unusable."""
        path = self._directory / CA_CERTIFICATE
        present = _certificate(path)
        trust_domain = trust_domain_of(present) if present else None
        if present is None or trust_domain is None:
            raise InputError("the root names no trust domain", where=str(path))
        _key_of(self._directory, present)
        self._discard_files()
        key = generate_key()
        root = self_signed_root(trust_domain, key, now, ROOT_LIFETIME)
        save_key(self._own / CA_KEY, key)
        write_atomic(self._own / CA_CERTIFICATE, certificates_to_pem([root]), 0o644, durable=True)
        rotation = Rotation(RotationStage.DISTRIBUTE, fingerprint(present), fingerprint(root), now)
        self.write(rotation)
        return rotation

    def write(self, rotation: Rotation) -> None:
        """Record `rotation` as the current one."""
        write_atomic(self._path, to_json(rotation), 0o600, durable=True)

    def finish(self, rotation: Rotation) -> None:
        """Make the new root the only one, destroy the old root's key, and remove the record.

        Raises ValueError outside the stage "finish". If the process stops in the middle, call this again.
        """
        if rotation.stage is not RotationStage.FINISH:
            raise ValueError("a rotation ends with its last stage")
        certificate = _certificate(self._own / CA_CERTIFICATE)
        if certificate is not None and fingerprint(certificate) == rotation.new:
            _key_of(self._directory, certificate)
            with suppress(FileNotFoundError):
                os.rename(self._own / CA_KEY, self._directory / CA_KEY)
            sync_directory(self._directory)
            os.rename(self._own / CA_CERTIFICATE, self._directory / CA_CERTIFICATE)
            sync_directory(self._directory)
        self._discard_files()
        sync_directory(self._own)
        self._path.unlink()
        sync_directory(self._own)

    def _discard_files(self) -> None:
        remove_staged(self._own)
        for name in (CA_CERTIFICATE, CA_KEY):
            (self._own / name).unlink(missing_ok=True)


@contextmanager
def held_record(directory: Path) -> Iterator[RotationRecord]:
    """Lock and yield the rotation record in `directory`. Raise InputError while another process rotates."""
    if not (directory / CA_CERTIFICATE).is_file():
        raise InputError(
            "this directory has no CA with its own root",
            where=str(directory),
            remedy="rotate an operator's CA with the tools that made its root",
        )
    private_dir(directory / ROTATION)
    lock = DirectoryLock(directory / ROTATION, "a rotation")
    try:
        yield RotationRecord(directory)
    finally:
        lock.release()


def _roots(directory: Path) -> Mapping[str, tuple[x509.Certificate, Path]]:
    roots = {}
    for place in (directory, directory / ROTATION):
        path = place / CA_CERTIFICATE
        certificate = _certificate(path)
        if certificate is not None:
            roots[fingerprint(certificate)] = (certificate, path)
    return roots


def _certificate(path: Path) -> x509.Certificate | None:
    if not path.exists():
        return None
    return load_certificates(read_input(path, "the CA's certificate"), str(path))[0]


def _key_of(directory: Path, certificate: x509.Certificate) -> PrivateKey:
    for place in (directory, directory / ROTATION):
        path = place / CA_KEY
        if path.exists():
            key = read_key(path, "the CA's private key")
            if key_matches(key, certificate):
                return key
    raise InputError(
        "the private key of the signing root is missing",
        where=str(directory / CA_KEY),
        remedy="restore the CA's directory from its backup",
    )
