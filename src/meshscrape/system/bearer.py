"""Share a bearer token between two processes of one user through a file, and check it in requests."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from meshscrape.errors import InputError
from meshscrape.system.files import private_dir, read_input, write_atomic
from meshscrape.system.http.server import Request

_BYTES = 32


def load_token(path: Path, *, shared: bool = False) -> str:
    """Return the bearer token in `path` (mode 0600); make the file if it is missing.

    Raises InputError when other users can read it. With `shared`, other users may read the file (mode 0644).
    This is for a volume that only the containers of one pod mount, because they run as different users.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        private = path.parent
        if not private.exists():
            private_dir(private)
        mode = 0o644 if shared else 0o600
        write_atomic(path, f"{secrets.token_urlsafe(_BYTES)}\n".encode(), mode=mode)
        status = path.stat()
    open_to_others = stat.S_IMODE(status.st_mode) & (0o022 if shared else 0o077)
    if open_to_others or status.st_uid not in (os.geteuid(), 0):
        raise InputError(
            f"other users can {'change' if shared else 'read'} the token",
            where=str(path),
            remedy="remove the file: a new token is made at the start",
        )
    token = read_input(path, "the token").decode("ascii", "replace").strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            "this is not a token", where=str(path), remedy="remove the file: a new token is made at the start"
        )
    return token


def carries(request: Request, token: str) -> bool:
    """Return whether the request has `Authorization: Bearer TOKEN`, compared in constant time."""
    given = request.headers.get("authorization", "").encode("latin-1", "replace")
    return hmac.compare_digest(given, f"Bearer {token}".encode())
