"""Run child processes that cannot outlive their parent, and keep the end of their output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshscrape.errors import MissingBinaryError

TAIL_BYTES = 8 * 1024
LOG_BYTES = 8 * 1024 * 1024
STOP_GRACE = 5.0
# Seconds to wait for output after the end of a child whose own children still hold the pipe.
_DRAIN = 0.5
_CHUNK = 64 * 1024


class OutputLog:
    """A child's output: the last `TAIL_BYTES` in memory, and at most 2 x `LOG_BYTES` on disk.

    When the log cannot be written (the disk is full), it loses lines and tries again with the next ones.
    `problem` has the reason; it is empty while the log can be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.problem = ""
        self._path = path
        self._tail = bytearray()
        self._written = 0
        self._file: int | None = None
        if path is not None:
            self._append(path, b"")

    def write(self, chunk: bytes) -> None:
        """Keep a chunk; a full log becomes `<name>.1` and a new one begins."""
        self._tail += chunk
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        if self._path is not None:
            self._append(self._path, chunk)

    def tail(self, lines: int) -> str:
        """Return the last `lines` lines."""
        text = bytes(self._tail[-TAIL_BYTES:]).decode("utf-8", "replace")
        return "\n".join(text.strip().splitlines()[-lines:])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, path: Path, chunk: bytes) -> None:
        try:
            self._written += os.write(self._opened(path), chunk)
            if self._written >= LOG_BYTES:
                self.close()
                os.rename(path, path.with_name(path.name + ".1"))
                self._opened(path)
            self.problem = ""
        except OSError as error:
            self.problem = f"{path}: cannot write the log: {error.strerror}"

    def _opened(self, path: Path) -> int:
        if self._file is None:
            # Open without blocking: a named pipe in the place of the log would wait for a reader.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.open(path, flags, 0o600)
            self._written = os.fstat(self._file).st_size
        return self._file


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
    def log_problem(self) -> str:
        """Return why its log cannot be written; empty while it can."""
        return self._log.problem

    @property
    def returncode(self) -> int | None:
        """Return the exit status (negative for a signal), or None while it runs."""
        return self._child.returncode

    def tail(self, lines: int = 10) -> str:
        """Return the last lines of its output, standard output and error together."""
        return self._log.tail(lines)

    async def wait(self) -> int:
        """Wait until it and its process group have ended and its output is read; return the exit status."""
        await self._ended.wait()
        # Avoid wait_for: before Python 3.12 it can lose a cancellation, and with it the order to stop.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await self._silent.wait()
        self._close_output()
        return self._child.returncode

    async def stop(self, grace: float = STOP_GRACE) -> int:
        """Send TERM, and after `grace` seconds KILL to the whole group; a cancellation kills at once."""
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
        """Send SIGKILL to the process and its group, without waiting."""
        if not self._ended.is_set():
            self._kill_group()

    def _reap(self) -> None:
        # End the group before its leader is reaped: until then no other group can get its number.
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
    """Start `argv` with exactly `env`, in `cwd`; the kernel kills it when this process ends.

    Standard input is empty. Output goes to `log_file` (0600, appended, bounded) and to the tail. The child
    has a session of its own: Ctrl-C on the terminal reaches the parent, which stops the child. Call it from
    the main thread: for the kernel, the end of the thread that forked is the parent's end. Raises
    MissingBinaryError when the program does not exist or cannot be executed.
    """
    log = OutputLog(log_file)
    failure, told = os.pipe()
    try:
        child = subprocess.Popen(  # noqa: ASYNC220
            bound_to_parent(argv, told),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(told,),
        )
    except OSError as error:
        log.close()
        os.close(failure)
        raise _cannot_run(str(error.filename or sys.executable), error.errno) from error
    finally:
        os.close(told)
    process = Process(child, log)
    if number := await _launch_failure(process, failure):
        await process.wait()
        raise _cannot_run(argv[0], number)
    return process


def bound_to_parent(
    argv: Sequence[str], failure: int = 2, death_signal: signal.Signals = signal.SIGKILL
) -> list[str]:
    """Return a command that becomes `argv`; the kernel sends it `death_signal` when this process ends.

    When `argv` cannot be executed, the errno is written to the inheritable descriptor `failure`, which closes
    when `argv` begins. By default a sentence goes to standard error.
    """
    launcher = str(Path(__file__).with_name("launch.py"))
    place = [str(os.getpid()), str(int(death_signal)), str(failure)]
    return [sys.executable, "-I", "-S", launcher, *place, *argv]


async def _launch_failure(process: Process, failure: int) -> int:
    """Return why the command could not be executed (an errno), or 0 once it runs. Close `failure`."""
    loop, spoken = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(failure, spoken.set)
    try:
        await spoken.wait()
        return int(os.read(failure, 16) or b"0")
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    finally:
        loop.remove_reader(failure)
        os.close(failure)


def _cannot_run(program: str, number: int | None) -> MissingBinaryError:
    return MissingBinaryError(
        f"cannot run it: {os.strerror(number or 0)}",
        where=program,
        remedy="install it, or name another program",
    )
