"""The CA's files at rest: private keys that only the CA's user can read, and the lock of its directory."""

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
    """As `save_key`, but keep a key that exists: when several processes run at once, one of them makes it."""
    create_atomic(path, key_to_pem(key), 0o600)


def read_key(path: Path, what: str) -> PrivateKey:
    """Return the private key in the file `path`.

    InputError when it cannot be read, is no key, or other users could have read or replaced it. Such a key
    counts as known to others, so its mode is never repaired silently.
    """
    # One descriptor for all: so the mode and the owner are those of the file that is read, even when the name
    # is given to another file in between.
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
