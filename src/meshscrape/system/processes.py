"""Child processes that cannot outlive their parent, whose last words are kept."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
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
    """A running child (made by `spawn`), in a session of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log: OutputLog) -> None:
        self._process = process
        self._log = log
        self._pump = asyncio.create_task(self._read_output())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status once it has ended: negative for a signal; None while it runs."""
        return self._process.returncode

    def tail(self, lines: int = 10) -> str:
        """The last lines of its output, standard output and error together."""
        return self._log.tail(lines)

    async def wait(self) -> int:
        """Wait for its end and for its output, then end whatever it left in its session's group."""
        status = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        await asyncio.wait({self._pump}, timeout=_DRAIN)
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump
        self._log.close()
        return status

    async def stop(self, grace: float = STOP_GRACE) -> int:
        """TERM; after `grace` seconds KILL, to the whole group. Being cancelled kills at once."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace)
            except TimeoutError:
                self._signal_group(signal.SIGKILL)
            except asyncio.CancelledError:
                self._signal_group(signal.SIGKILL)
                raise
        return await self.wait()

    def kill(self) -> None:
        """KILL it and its group, without waiting."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _read_output(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        while chunk := await stream.read(_CHUNK):
            self._log.write(chunk)


async def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log_file: Path | None = None
) -> Process:
    """Start `argv` with exactly `env`, in `cwd`; it is killed by the kernel when this process ends.

    Standard input is empty; output goes to `log_file` (0600, appended, bounded) and to the tail. The
    child has a session of its own: Ctrl-C on the terminal reaches the parent, which orders the stop.
    Raises MissingBinaryError when the program does not exist or cannot be executed.
    """
    try:
        log = OutputLog(log_file)
    except OSError as error:
        raise MeshscrapeError(f"cannot write the log: {error.strerror}", where=str(log_file)) from error
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    except OSError as error:
        log.close()
        raise MissingBinaryError(
            f"cannot run it: {error.strerror}", where=argv[0], remedy="install it, or name another"
        ) from error
    return Process(process, log)


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does before exec: ask for KILL at its parent's end (prctl(2)).

    A parent that is gone already sends no signal any more, so the child looks once and ends itself.
    """

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arrange
