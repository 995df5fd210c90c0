"""The state directory of one mesh. It is private, and `up` locks it and cleans it at its start.

DIR               itself is locked (flock) by the running `up`
DIR/ca/           the CA's keys and certificates, which are kept between runs
DIR/run/          the files of one run: agents, tokens, credentials, Prometheus, logs
DIR/status.json   the status document of the running mesh
DIR/up.log        the output of a detached `up`
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.system.files import DirectoryLock, private_dir, read_input, remove_staged, write_atomic

GIVE_STATUS = (
    "give what `meshscrape status -o json` prints; a mesh that a manifest declares must run first: "
    "`meshscrape up MANIFEST`"
)
OWN = frozenset({"ca", "run", "status.json", "up.log"})


class NotRunningError(MeshscrapeError):
    """No mesh runs in the state directory."""


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The paths of one mesh's state."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> StateDirectory:
        """Return the state directory at `path`, with its links resolved."""
        return cls(path.resolve())

    @property
    def ca(self) -> Path:
        """Return the CA's own directory."""
        return self.path / "ca"

    @property
    def run(self) -> Path:
        """Return the directory that exists only while the mesh runs."""
        return self.path / "run"

    @property
    def status_file(self) -> Path:
        """Return the path of the status document."""
        return self.path / "status.json"

    @property
    def log(self) -> Path:
        """Return the path of a detached `up`'s output. The file outlives the run, to show why it ended."""
        return self.path / "up.log"

    def publish(self, document: Mapping[str, Any]) -> None:
        """Replace the status document by one rename."""
        text = json.dumps(document, indent=2) + "\n"
        write_atomic(self.status_file, text.encode(), mode=0o600)


def default_state_path(env: Mapping[str, str]) -> Path:
    """Return `$XDG_STATE_HOME/meshscrape`, by default `~/.local/state/meshscrape`."""
    base = env.get("XDG_STATE_HOME")
    home = env.get("HOME") or os.path.expanduser("~")
    return (Path(base) if base else Path(home) / ".local/state") / "meshscrape"


@contextmanager
def hold_state(path: Path) -> Iterator[StateDirectory]:
    """Create and lock the directory for one `up`. Raise InputError if it is in use or unusable.

    Files that a killed run left behind are removed first. At the end only the CA's directory stays.
    """
    state = StateDirectory.at(path)
    _refuse_foreign(state.path)
    private_dir(state.path)
    lock = _take_lock(state.path)
    try:
        _clean(state)
        private_dir(state.run)
        try:
            yield state
        finally:
            _clean(state)
    finally:
        lock.release()


@contextmanager
def claim_log(state: StateDirectory) -> Iterator[BinaryIO]:
    """Open an empty log for a mesh that is about to start.

    Raises InputError when a mesh runs in `state`, or the directory is not usable.
    """
    _refuse_foreign(state.path)
    private_dir(state.path)
    lock = _take_lock(state.path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(state.log, flags, 0o600), "wb") as stream:
            lock.release()
            yield stream
    finally:
        lock.release()


def _refuse_foreign(directory: Path) -> None:
    """Raise InputError if `up` did not make all the files, because a start deletes the contents."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=str(directory), remedy="name a directory that you own"
        ) from error
    foreign = sorted(name for name in names if name not in OWN and not name.startswith(".status.json."))
    if foreign:
        raise InputError(
            f"contains {foreign[0]!r}, so it is not a state directory of meshscrape",
            where=str(directory),
            remedy="name an empty or a new directory with --state",
        )


def _take_lock(directory: Path) -> DirectoryLock:
    # `is_running` of another process takes a shared lock for an instant. Such a lock is not a running mesh.
    for _ in range(5):
        try:
            return DirectoryLock(directory, "a mesh", "--state")
        except InputError:
            time.sleep(0.02)
    return DirectoryLock(directory, "a mesh", "--state")


def _clean(state: StateDirectory) -> None:
    state.status_file.unlink(missing_ok=True)
    remove_staged(state.path)
    if state.run.is_symlink():
        # The link's destination does not belong to this mesh and must not be emptied.
        raise InputError(
            "is a symbolic link, not a directory of this mesh", where=str(state.run), remedy="remove the link"
        )
    try:
        if state.run.exists():
            shutil.rmtree(state.run)
    except OSError as error:
        raise InputError(
            f"cannot be removed: {error.strerror}", where=str(error.filename or state.run), remedy="remove it"
        ) from error


def is_running(state: StateDirectory) -> bool:
    """Return whether an `up` holds the directory now."""
    try:
        descriptor = os.open(state.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_status(path: Path) -> dict[str, Any]:
    """Return the status document of the mesh running in `path`.

    Raises NotRunningError if none runs; UnavailableError while it has not published anything yet.
    """
    state = StateDirectory.at(path)
    if not is_running(state):
        raise NotRunningError(
            "no mesh is running",
            where=str(state.path),
            remedy="start one with `meshscrape up`, or name its directory with --state DIR",
        )
    if not state.status_file.exists():
        raise UnavailableError(
            "the mesh has not published its status yet", where=str(state.path), remedy="try again in a moment"
        )
    return read_document(
        state.status_file,
        remedy="stop the mesh with `meshscrape down` and start it again with `meshscrape up`",
    )


def read_document(path: Path, *, remedy: str = GIVE_STATUS) -> dict[str, Any]:
    """Return the status document in a file. Raise InputError with `remedy` if it is none."""
    content = read_input(path, "the status of the mesh")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InputError("is not a status document", where=str(path), remedy=remedy)
    return document
