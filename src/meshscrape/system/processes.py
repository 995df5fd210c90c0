"""Child processes that cannot outlive their parent, whose last words are kept."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from meshscrape.errors import MeshscrapeError, MissingBinaryError

TAIL_BYTES = 8 * 1024
LOG_BYTES = 8 * 1024 * 1024
STOP_GRACE = 5.0
# How long output is awaited after the end of a child whose own children still hold the pipe.
_DRAIN = 0.5
_CHUNK = 64 * 1024

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class OutputLog:
    """What a child says: the last `TAIL_BYTES` in memory, and at most 2 x `LOG_BYTES` on disk."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._tail = bytearray()
        self._written = 0
        self._file: int | None = None
        if path is not None:
            self._open(path)

    def write(self, chunk: bytes) -> None:
        """Keep a chunk; a full log becomes `<name>.1` and a new one begins."""
        self._tail += chunk
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        if self._file is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._file, chunk)
        self._written += len(chunk)
        if self._written >= LOG_BYTES:
            self.close()
            with contextlib.suppress(OSError):
                os.rename(self._path, self._path.with_name(self._path.name + ".1"))
                self._open(self._path)

    def tail(self, lines: int) -> str:
        """The last `lines` lines."""
        text = bytes(self._tail[-TAIL_BYTES:]).decode("utf-8", "replace")
        return "\n".join(text.strip().splitlines()[-lines:])

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._written = os.fstat(self._file).st_size


class Process:
    """A running child (made by `spawn`), in a session of its own.

    Its end and its output arrive on the event loop through descriptors: no thread, no signal handler.
    """

    def __init__(self, child: subprocess.Popen[bytes], log: OutputLog) -> None:
        assert child.stdout is not None  # noqa: S101
        self._child = child
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._silent = asyncio.Event()
        self._pidfd = os.pidfd_open(child.pid)
        self._output = child.stdout.fileno()
        os.set_blocking(self._output, False)
        self._loop.add_reader(self._output, self._read_output)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """The exit status once it has ended: negative for a signal; None while it runs."""
        return self._child.returncode

    def tail(self, lines: int = 10) -> str:
        """The last lines of its output, standard output and error together."""
        return self._log.tail(lines)

    async def wait(self) -> int:
        """Wait for its end, with everything that it left in its group, and for its last output."""
        await self._ended.wait()
        # Not wait_for: until Python 3.12 it can swallow a cancellation, and with it the order to stop.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await self._silent.wait()
        self._close_output()
        return self._child.returncode

    async def stop(self, grace: float = STOP_GRACE) -> int:
        """TERM; after `grace` seconds KILL, to the whole group. Being cancelled kills at once."""
        if not self._ended.is_set():
            self._child.terminate()
            try:
                async with asyncio.timeout(grace):
                    await self._ended.wait()
            except TimeoutError:
                self.kill()
            except asyncio.CancelledError:
                self.kill()
                raise
        return await self.wait()

    def kill(self) -> None:
        """KILL it and its group, without waiting."""
        if not self._ended.is_set():
            self._kill_group()

    def _reap(self) -> None:
        # The group is ended before its leader is reaped: until then no other group can get its number.
        self._kill_group()
        self._child.wait()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _read_output(self) -> None:
        try:
            chunk = os.read(self._output, _CHUNK)
        except BlockingIOError:
            return
        if chunk:
            self._log.write(chunk)
        else:
            self._close_output()

    def _close_output(self) -> None:
        if self._child.stdout is not None and not self._child.stdout.closed:
            self._loop.remove_reader(self._output)
            self._child.stdout.close()
            self._log.close()
        self._silent.set()


async def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log_file: Path | None = None
) -> Process:
    """Start `argv` with exactly `env`, in `cwd`; it is killed by the kernel when this process ends.

    Standard input is empty; output goes to `log_file` (0600, appended, bounded) and to the tail. The
    child has a session of its own: Ctrl-C on the terminal reaches the parent, which orders the stop.
    Call it from the main thread: the kernel counts the end of the thread that forked as the parent's.
    Raises MissingBinaryError when the program does not exist or cannot be executed.
    """
    try:
        log = OutputLog(log_file)
    except OSError as error:
        raise MeshscrapeError(f"cannot write the log: {error.strerror}", where=str(log_file)) from error
    try:
        child = subprocess.Popen(  # noqa: ASYNC220
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    except OSError as error:
        log.close()
        raise MissingBinaryError(
            f"cannot run it: {error.strerror}", where=argv[0], remedy="install it, or name another"
        ) from error
    return Process(child, log)


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does before exec: ask for KILL at its parent's end (prctl(2)).

    A parent that is gone already sends no signal any more, so the child looks once and ends itself.
    """

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arrange
