"""Children: their output, their environment, their end with and without their parent."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshscrape.errors import MissingBinaryError
from meshscrape.system import processes
from meshscrape.system.launch import PARENT_GONE
from meshscrape.system.processes import Process, bound_to_parent, spawn
from support.polling import eventually, eventually_async


def gone(pid: int) -> bool:
    """Whether no process with this id runs (a zombie does not run)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def child_ids() -> list[int]:
    """The process ids of this process's children."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


async def said(process: Process, text: str) -> None:
    async def look() -> bool:
        return text in process.tail()

    await eventually_async(look, what=f"{text!r} in the output")


def test_output_goes_to_the_log_and_the_tail(tmp_path: Path) -> None:
    """Standard output and error are both kept, in a log that only its owner reads."""
    log = tmp_path / "child.log"

    async def scenario() -> None:
        child = await spawn(["/bin/sh", "-c", "echo out; echo err >&2"], env={}, cwd=tmp_path, log_file=log)
        assert await child.wait() == 0
        assert child.tail() == "out\nerr"

    asyncio.run(scenario())
    assert log.read_text() == "out\nerr\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_tail_is_the_end_of_long_output(tmp_path: Path) -> None:
    """The last lines are kept however much was said before them."""

    async def scenario() -> None:
        child = await spawn(["/usr/bin/seq", "100000"], env={}, cwd=tmp_path)
        await child.wait()
        assert child.tail(2) == "99999\n100000"

    asyncio.run(scenario())


def test_a_full_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log on disk stays bounded; the part before is `.1`."""
    monkeypatch.setattr(processes, "LOG_BYTES", 1000)
    log = tmp_path / "child.log"

    async def scenario() -> None:
        script = "for i in 1 2 3 4 5 6; do seq 200; sleep 0.02; done"
        child = await spawn(
            ["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path, log_file=log
        )
        await child.wait()

    asyncio.run(scenario())
    assert (tmp_path / "child.log.1").exists()
    assert log.stat().st_size < 6 * 692


def test_the_environment_is_exactly_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the parent's environment leaks into the child."""
    monkeypatch.setenv("SECRET", "x")

    async def scenario() -> str:
        child = await spawn(["/usr/bin/env"], env={"ONLY": "this"}, cwd=tmp_path)
        await child.wait()
        return child.tail()

    assert asyncio.run(scenario()) == "ONLY=this"


def test_stop_kills_a_child_that_ignores_term(tmp_path: Path) -> None:
    """TERM first; a child that ignores it is killed after the grace."""

    async def scenario() -> None:
        script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
        child = await spawn(["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path)
        await said(child, "ready")
        assert await child.stop(0.1) == -signal.SIGKILL

    asyncio.run(scenario())


def test_stop_lets_a_child_end_by_itself(tmp_path: Path) -> None:
    """A child that handles TERM ends with its own status."""

    async def scenario() -> None:
        script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
        child = await spawn(["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path)
        await said(child, "ready")
        assert await child.stop(10) == 7

    asyncio.run(scenario())


def test_grandchildren_end_with_the_child(tmp_path: Path) -> None:
    """What a child leaves behind in its group does not outlive it."""

    async def scenario() -> int:
        script = "sleep 600 & echo $!"
        child = await spawn(["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path)
        await child.wait()
        return int(child.tail())

    grandchild = asyncio.run(scenario())
    eventually(lambda: gone(grandchild), what="the grandchild's end")


def test_a_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    """KILL to the parent leaves no orphan: the kernel ends the child."""
    program = (
        "import asyncio, pathlib\n"
        "from meshscrape.system.processes import spawn\n"
        "async def main():\n"
        f"    child = await spawn(['/bin/sleep', '600'], env={{}}, cwd=pathlib.Path({str(tmp_path)!r}))\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.kill()
    eventually(lambda: gone(child), what="the child's end")


def test_the_child_has_a_session_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C on the terminal goes to the foreground group, which the child is not in."""

    async def scenario() -> None:
        child = await spawn(["/bin/sleep", "600"], env={}, cwd=tmp_path)
        assert os.getsid(child.pid) == child.pid
        await child.stop()

    asyncio.run(scenario())


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    """A program that does not exist is an immediate error with its name and the reason."""
    with pytest.raises(MissingBinaryError) as caught:
        asyncio.run(spawn(["/no/such/envoy"], env={}, cwd=tmp_path))
    assert (caught.value.where, os.strerror(errno.ENOENT) in caught.value.what) == ("/no/such/envoy", True)


@pytest.mark.parametrize(
    ("content", "mode", "number"),
    [(b"\x7fELF junk", 0o700, errno.ENOEXEC), (b"#!/bin/sh\n", 0o600, errno.EACCES)],
    ids=["another machine's", "not executable"],
)
def test_an_unusable_program_is_named(tmp_path: Path, content: bytes, mode: int, number: int) -> None:
    """A file that the kernel does not execute is an immediate error, not a child that ends."""
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(mode)
    with pytest.raises(MissingBinaryError) as caught:
        asyncio.run(spawn([str(program)], env={}, cwd=tmp_path))
    assert (caught.value.where, os.strerror(number) in caught.value.what) == (str(program), True)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """A working directory that does not exist is the place of the error."""
    with pytest.raises(MissingBinaryError) as caught:
        asyncio.run(spawn(["/bin/true"], env={}, cwd=tmp_path / "gone"))
    assert caught.value.where == str(tmp_path / "gone")


def test_does_not_start_a_command_whose_parent_has_ended(tmp_path: Path) -> None:
    """Between fork and the request for a signal the parent may end: the command then never begins."""
    command = bound_to_parent(["/usr/bin/touch", str(tmp_path / "started")])
    # Below a shell, the launcher's parent is not the one that its command line names, as it is for an orphan.
    orphaned = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command]
    assert subprocess.run(orphaned, check=False).returncode == PARENT_GONE
    assert not (tmp_path / "started").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "started").exists()


def test_signals_that_python_ignores_act_in_the_child(tmp_path: Path) -> None:
    """A child ends by SIGPIPE and SIGXFSZ as any program does, although Python ignores them."""

    async def scenario() -> None:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            child = await spawn(["/bin/sh", "-c", f"kill -{int(number)} $$"], env={}, cwd=tmp_path)
            assert await child.wait() == -number

    asyncio.run(scenario())


def test_a_start_that_is_cancelled_leaves_no_child(tmp_path: Path) -> None:
    """Being cancelled while the command is started kills it."""

    async def scenario() -> None:
        before = set(child_ids())
        starting = asyncio.create_task(spawn(["/bin/sleep", "600"], env={}, cwd=tmp_path))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert set(child_ids()) == before

    asyncio.run(scenario())


def test_no_abort_at_a_start_beside_grpc(tmp_path: Path) -> None:
    """A process that has gRPC loaded starts children that do not meet its fork handlers.

    With code between fork and exec (`preexec_fn`), 2 to 20 of 100 such children abort at their start.
    """
    program = (
        "import asyncio, grpc, pathlib\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from meshscrape.system.processes import spawn\n"
        "server = grpc.server(ThreadPoolExecutor(2))\n"
        "server.add_insecure_port('127.0.0.1:0')\n"
        "server.start()\n"
        "async def main():\n"
        "    for _ in range(60):\n"
        f"        child = await spawn(['/bin/true'], env={{}}, cwd=pathlib.Path({str(tmp_path)!r}))\n"
        "        print(await child.wait(), flush=True)\n"
        "asyncio.run(main())\n"
        "server.stop(None).wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0"] * 60, done.stderr
