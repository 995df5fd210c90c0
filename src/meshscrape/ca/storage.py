"""The CA's files at rest: private keys that nobody else can read, and the lock of its directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from meshscrape.errors import InputError
from meshscrape.spiffe.keys import PrivateKey, key_to_pem, load_key
from meshscrape.system.files import create_atomic, unreadable, write_atomic

# Names of Istio's plugged-in CA certificates, for a CA's directory too.
CA_CERTIFICATE = "ca-cert.pem"
CA_KEY = "ca-key.pem"
SERVER_CREDENTIALS = "server.pem"
TOKEN_ISSUER_KEY = "token-issuer-key.pem"  # noqa: S105 - a file's name
JWKS = "jwks.json"


def save_key(path: Path, key: PrivateKey) -> None:
    """Write `key` as PKCS #8 PEM, mode 0600, in one step, and to the disk."""
    write_atomic(path, key_to_pem(key), 0o600, durable=True)


def create_key(path: Path, key: PrivateKey) -> None:
    """As `save_key`, unless there is a key already: of several processes at once, one makes it."""
    create_atomic(path, key_to_pem(key), 0o600)


def read_key(path: Path, what: str) -> PrivateKey:
    """The private key in the file `path`.

    InputError when it cannot be read, is no key, or others could have read or replaced it: a key that was
    readable must be taken as known, so its mode is never repaired silently.
    """
    # One descriptor: mode and owner are those of the very file that is read, whatever the name leads to next.
    try:
        with path.open("rb") as file:
            seen, pem = os.fstat(file.fileno()), file.read()
    except OSError as error:
        raise unreadable(path, what, error) from error
    mode = stat.S_IMODE(seen.st_mode)
    if mode & 0o077:
        raise InputError(
            f"others may read {what} (mode {mode:04o})",
            where=str(path),
            remedy=f"chmod 600 {path}, and make a new key if anybody may have read it",
        )
    if seen.st_uid not in (0, os.geteuid()):
        raise InputError(
            f"{what} belongs to user {seen.st_uid}", where=str(path), remedy=f"chown {os.geteuid()} {path}"
        )
    return load_key(pem, str(path))
