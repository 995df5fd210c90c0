"""Store the CA's private keys in files that only the CA's user can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from meshscrape.errors import InputError
from meshscrape.spiffe.keys import PrivateKey, key_to_pem, load_key
from meshscrape.system.files import create_atomic, unreadable, write_atomic

# The file names of Istio's plug-in CA certificates.
CA_CERTIFICATE = "ca-cert.pem"
CA_KEY = "ca-key.pem"
SERVER_CREDENTIALS = "server.pem"
TOKEN_ISSUER_KEY = "token-issuer-key.pem"  # noqa: S105 - a file's name
JWKS = "jwks.json"


def save_key(path: Path, key: PrivateKey) -> None:
    """Write `key` as PKCS #8 PEM, mode 0600, atomically, and sync it to disk."""
    write_atomic(path, key_to_pem(key), 0o600, durable=True)


def create_key(path: Path, key: PrivateKey) -> None:
    """Write `key` like `save_key`, but keep an existing file: only one of several processes creates it."""
    create_atomic(path, key_to_pem(key), 0o600)


def read_key(path: Path, what: str) -> PrivateKey:
    """Return the private key in the file `path`.

    Raises InputError if it cannot be read, is not a key, or if other users could have read or replaced it.
    Such a key may be known to others, so its mode is never repaired silently.
    """
    # Use one descriptor, so that the mode and the owner are those of the file that is read, even if the name
    # moves to another file in between.
    try:
        with path.open("rb") as file:
            status, pem = os.fstat(file.fileno()), file.read()
    except OSError as error:
        raise unreadable(path, what, error) from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise InputError(
            f"other users can read {what} (mode {mode:04o})",
            where=str(path),
            remedy=f"chmod 600 {path}, and make a new key if another user may have read it",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise InputError(
            f"{what} belongs to user {status.st_uid}", where=str(path), remedy=f"chown {os.geteuid()} {path}"
        )
    return load_key(pem, str(path))
