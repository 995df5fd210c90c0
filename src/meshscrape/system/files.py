"""Write files that readers never see half-written, and make directories that only their owner can enter."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from meshscrape.errors import InputError, MeshscrapeError

DATA_LINK = "..data"
LARGEST_INPUT = 64 << 20
# A tmpfs on every Linux (shm_overview(7)). Only their owner can enter the generations in it.
_MEMORY = Path("/dev/shm")  # noqa: S108
# The code of the InputError for a file that cannot be read now but may be readable later.
UNREADABLE = "unreadable"
_STAGED = re.compile(r"\..+\.[a-z0-9_]{8}")
_GENERATION = re.compile(r"\.\.gen-[A-Za-z0-9_]+")


def write_atomic(path: Path, content: bytes, mode: int = 0o600, *, durable: bool = False) -> None:
    """Replace `path` by a file with `content`; a reader sees the whole old file or the whole new one.

    The mode is set before the first byte is written. A `durable` file is on the disk when this returns, and a
    power cut leaves the whole old file or the whole new one. Raises MeshscrapeError when the directory cannot
    be written, unless the file already has this content. A failed call leaves nothing behind.
    """
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        _fill(descriptor, content, mode, durable)
        os.rename(name, path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
        if not _holds(path, content, mode):
            raise _unwritable(path, error) from error


def create_atomic(path: Path, content: bytes, mode: int = 0o600) -> bool:
    """Make the durable file `path` with `content` unless it exists; return whether this call made it.

    When several processes call it at once, exactly one makes the file, and all find the same file afterwards.
    Raises MeshscrapeError when the directory cannot be written.
    """
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        _fill(descriptor, content, mode, durable=True)
        # Unlike a rename, a link never replaces an existing file.
        os.link(name, path)
        sync_directory(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
    return True


def sync_directory(directory: Path) -> None:
    """Write the names in `directory` to the disk. Raise OSError when it cannot be opened."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(
    directory: Path, files: Mapping[str, bytes], mode: int = 0o600, *, in_memory: bool = False
) -> None:
    """Publish `files` (name to content) in `directory`, all of them in one step.

    This works as in Kubernetes Secrets. Each generation is a separate directory. `..data` is a link to the
    current one, which a single rename switches, and every name is a link through `..data`. Users that can
    read the files by `mode` can also list and enter the directories. The previous generation stays until the
    next call, so that a reader between resolving the link and opening the file still finds it. `directory`
    itself may belong to another user (a volume does), but a generation must not. With `in_memory`, the new
    generation needs no space on the directory's disk, and the next call removes it. Raises MeshscrapeError if
    the directory cannot be written, unless it already has exactly these files.
    """
    directory_mode = 0o700 | _searchable(mode)
    generation = Path()
    try:
        _prepare(directory, directory_mode)
        present = _present_generation(directory)
        generation = Path(tempfile.mkdtemp(dir=_MEMORY if in_memory else directory, prefix="..gen-"))
        _fill_directory(generation, files, directory_mode, mode)
        _link(directory / DATA_LINK, str(generation) if in_memory else generation.name)
        for name in files:
            _link(directory / name, f"{DATA_LINK}/{name}")
        _unlink_others(directory, files)
    except OSError as error:
        if generation.name and Path(_present_generation(directory)).name != generation.name:
            shutil.rmtree(generation, ignore_errors=True)
        on_disk = not os.path.isabs(_present_generation(directory))
        if on_disk and all(_holds(directory / name, content, mode) for name, content in files.items()):
            return
        raise _unwritable(directory, error) from error
    _sweep(directory, keep={present, generation.name})
    _remove_from_memory(Path(present))


def unpublish_from_memory(directory: Path) -> None:
    """Remove the current generation of `directory` if it is in memory, where nothing else would remove it."""
    _remove_from_memory(Path(_present_generation(directory)))


def _remove_from_memory(generation: Path) -> None:
    # Another user may own the directory and may have made this link. Remove only a generation, and only one
    # of this user.
    if generation.parent != _MEMORY or not _GENERATION.fullmatch(generation.name):
        return
    with contextlib.suppress(OSError):
        status = generation.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            shutil.rmtree(generation)


def read_input(path: Path, what: str, limit: int = LARGEST_INPUT) -> bytes:
    """Return the bytes of a regular file that the user named, at most `limit`.

    Raises InputError, in which `what` names the file. Its code is UNREADABLE when the file cannot be read (it
    is missing, …); it has no code when the file is too long or not a regular file. The call never waits, not
    even for a named pipe.
    """
    try:
        # Check before opening: to open a device can have effects, and to open a named pipe waits for its
        # writer.
        _check_regular(os.stat(path), path, what)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _check_regular(status, path, what)
            content = file.read(limit + 1) if status.st_size <= limit else b""
    except OSError as error:
        raise unreadable(path, what, error) from error
    if status.st_size > limit or len(content) > limit:
        raise InputError(f"{what} is longer than {limit} bytes", where=str(path), remedy="name another file")
    return content


def _check_regular(status: os.stat_result, path: Path, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{what} is not a regular file", where=str(path), remedy="name a regular file")


def unreadable(path: Path, what: str, error: OSError) -> InputError:
    """Return the error for the file `path` that cannot be read; `what` names it."""
    return InputError(
        f"cannot read {what}: {error.strerror}",
        where=str(path),
        remedy="check the path and its mode",
        code=UNREADABLE,
    )


def private_dir(path: Path, mode: int = 0o700) -> None:
    """Make sure that `path` is a directory of this user with exactly `mode`; missing parents are made.

    A directory of another user, or a link in its place, is refused: its owner could swap the
    keys in it. Raises MeshscrapeError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise InputError("is not a directory", where=str(path), remedy="remove it or name another")
        if status.st_uid != os.geteuid():
            raise InputError(
                f"belongs to user {status.st_uid}, not to this one",
                where=str(path),
                remedy="name a directory of your own",
            )
        if stat.S_IMODE(status.st_mode) != mode:
            path.chmod(mode)
    except OSError as error:
        raise _unwritable(path, error) from error


class DirectoryLock:
    """An exclusive lock on a directory; `release` and the end of the process release it.

    The directory itself is locked (flock(2)): no lock file is left behind.
    """

    def __init__(self, directory: Path, holder: str, option: str = "") -> None:
        """Take the lock without waiting. Raise InputError when another process has it.

        In the error, `holder` names that process and `option` the option for another directory.
        """
        try:
            self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unwritable(directory, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            pid = self.owner(directory)
            raise InputError(
                f"{holder} already runs here{f' (pid {pid})' if pid else ''}",
                where=str(directory),
                remedy=f"stop it, or name another directory{f' with {option}' if option else ''}",
            ) from error

    def release(self) -> None:
        """Release the lock on the directory."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @staticmethod
    def owner(directory: Path) -> int | None:
        """Return the pid of the process that holds `directory`, read from /proc/locks (proc(5)).

        Returns None when no process holds it, and on file systems whose device numbers differ there
        (overlays).
        """
        with contextlib.suppress(OSError):
            status = directory.stat()
            file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5] == file:
                    return int(fields[4])
        return None


def remove_staged(directory: Path) -> None:
    """Remove the half-written files that a killed `write_atomic` or `publish` left in `directory`."""
    with contextlib.suppress(FileNotFoundError):
        present = _present_generation(directory)
        for entry in os.scandir(directory):
            if entry.is_symlink():
                continue
            if _STAGED.fullmatch(entry.name) and entry.is_file():
                os.unlink(entry.path)
        _sweep(directory, keep={present})


def _holds(path: Path, content: bytes, mode: int) -> bool:
    """Return whether the file already has this content and mode: then a full disk does no harm."""
    try:
        return read_input(path, "", len(content)) == content and stat.S_IMODE(path.stat().st_mode) == mode
    except (OSError, InputError):
        return False


def _prepare(directory: Path, mode: int) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=mode)
    status = directory.stat()
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != mode:
        directory.chmod(mode)


def _fill(descriptor: int, content: bytes, mode: int, durable: bool = False) -> None:
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _fill_directory(generation: Path, files: Mapping[str, bytes], directory_mode: int, mode: int) -> None:
    """Write `files` into the directory `generation`, which was just made, and into no other.

    Meanwhile the owner of the directory around it could have put a link or another directory in its place.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    inside = os.open(generation, flags)
    try:
        if os.fstat(inside).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(generation))
        os.fchmod(inside, directory_mode)
        for name, content in files.items():
            new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            _fill(os.open(name, new, 0o600, dir_fd=inside), content, mode)
    finally:
        os.close(inside)


def _link(path: Path, target: str) -> None:
    """Make `path` a link to `target` in one step, whatever was there; an equal link is left alone."""
    if not path.is_symlink() or os.readlink(path) != target:
        link_anew(path, target)


def link_anew(path: Path, target: str) -> None:
    """Make `path` a link to `target` by a rename, so that a watcher of the directory notices it."""
    staged = path.with_name(f"..tmp-{path.name}")
    with contextlib.suppress(FileNotFoundError):
        staged.unlink()
    staged.symlink_to(target)
    os.rename(staged, path)


def _unlink_others(directory: Path, files: Mapping[str, bytes]) -> None:
    """Remove the links to files that are no longer published; leave everything else alone."""
    for entry in os.scandir(directory):
        if entry.name in files or not entry.is_symlink():
            continue
        if os.readlink(entry.path) == f"{DATA_LINK}/{entry.name}":
            os.unlink(entry.path)


def _present_generation(directory: Path) -> str:
    try:
        return os.readlink(directory / DATA_LINK)
    except OSError:
        return ""


def _sweep(directory: Path, keep: set[str]) -> None:
    for entry in os.scandir(directory):
        if _GENERATION.fullmatch(entry.name) and entry.name not in keep and not entry.is_symlink():
            shutil.rmtree(entry.path, ignore_errors=True)


def _searchable(mode: int) -> int:
    return (mode & 0o444) | (mode & 0o444) >> 2


def _unwritable(path: Path, error: OSError) -> MeshscrapeError:
    return MeshscrapeError(
        f"cannot write: {error.strerror}",
        where=str(path),
        remedy="check the directory's owner and free space",
    )
