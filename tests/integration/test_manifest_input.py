"""Files, pipes and devices as the input of the verbs about a cluster, through the command line."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from meshscrape.cli.manifests import manifests_in
from support.polling import eventually

_OBJECT = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n"
_COMMAND = [sys.executable, "-m", "meshscrape", "observe", "-o", "json"]


def observe(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `meshscrape observe` to its end."""
    return subprocess.run([*_COMMAND, *arguments], capture_output=True, timeout=60, check=False, **options)


def _apart(spaces: list[str], script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script in namespaces of its own."""
    apart = ["unshare", *spaces, "/bin/sh", "-c"]
    if subprocess.run([*apart, "exit 0"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no namespaces to an ordinary user")
    return subprocess.run([*apart, script], capture_output=True, timeout=60, check=False)


def assert_refused(done: subprocess.CompletedProcess[bytes], what: bytes) -> None:
    """The command could not run, and says why in one line."""
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert what in done.stderr


def test_standard_input_and_pipes_are_read(tmp_path: Path) -> None:
    """`-`, a named pipe and a file give the same."""
    file, pipe = tmp_path / "a.yaml", tmp_path / "pipe"
    file.write_text(_OBJECT)
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", str(file), str(pipe)]):
        piped = observe("-f", str(pipe))
    given = observe("-f", "-", input=_OBJECT.encode())
    assert observe("-f", str(file)).stdout == given.stdout == piped.stdout
    assert given.returncode == piped.returncode == 0


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_devices_are_refused(device: str) -> None:
    """A device may have no end."""
    assert_refused(observe("-f", device), b"device")
    with open(device, "rb") as stream:
        assert_refused(observe("-f", "-", stdin=stream), b"standard input: a device")


def test_empty_standard_input_is_refused_by_its_name() -> None:
    """A pipe that brought nothing is named in words, not as `-`."""
    assert_refused(observe("-f", "-", input=b""), b"standard input: ")


def test_input_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """A file, and a stream in one line without an end, are read up to the limit and no further."""
    file = tmp_path / "a.yaml"
    file.write_text(_OBJECT + "# " + "x" * 1024 * 1024)
    assert_refused(observe("-f", str(file), "--input-limit", "1"), b"larger than 1 MiB")
    assert observe("-f", str(file), "--input-limit", "2").returncode == 0
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as endless:
        assert_refused(observe("-f", "-", "--input-limit", "1", stdin=endless.stdout), b"larger than 1 MiB")
        endless.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_silent_pipe_ends_on_a_signal(tmp_path: Path, number: int) -> None:
    """Waiting for a writer, or for the rest of its text, is no reason to ignore a signal."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [*_COMMAND, "-f", str(pipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        # Opening it succeeds when the command waits for text at the other end.
        with open(pipe, "wb") as writer:
            writer.write(b"kind:")
            writer.flush()
            eventually(lambda: _is_taken(writer.fileno()), what="the command reading the pipe")
            process.send_signal(number)
            process.wait(timeout=10)
        assert process.returncode in (-number, 128 + number)


def _is_taken(pipe: int) -> bool:
    """Return whether nothing is left in the pipe, so that its reader waits for more."""
    left = fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(left, sys.byteorder) == 0


def test_leaves_out_files_that_vanish_while_a_directory_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Editors and checkouts replace files. The objects of the others count; one line names what is gone."""
    for name in "abc":
        (tmp_path / f"{name}.yaml").write_text(_OBJECT.replace("web", name))
    manifests = manifests_in(tmp_path)
    first = next(manifests)
    (tmp_path / "b.yaml").unlink()
    assert [manifest.ref.name for manifest in (first, *manifests)] == ["a", "c"]
    assert capsys.readouterr().err == (
        f"meshscrape: {tmp_path / 'b.yaml'}: left out: No such file or directory\n"
    )


def test_names_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    """The planner takes what it does not see for absent, so it must not be left out silently."""
    (tmp_path / "a.yaml").write_text(_OBJECT)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    # Without a mapping of its user, even root has no right to directories with mode 0.
    done = _apart(["--user"], f"exec {' '.join(_COMMAND)} -f {tmp_path}")
    closed.chmod(0o700)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1), done.stderr
    assert f"{closed}: left out: Permission denied" in done.stderr.decode()


def test_does_not_enter_file_systems_of_the_kernel(tmp_path: Path) -> None:
    """`-f /` must not read /proc, whose directories vanish with their processes."""
    (tmp_path / "a.yaml").write_text(_OBJECT)
    (tmp_path / "proc").mkdir()
    spaces = ["--user", "--map-root-user", "--mount", "--pid", "--fork"]
    done = _apart(spaces, f"mount -t proc proc {tmp_path}/proc && exec {' '.join(_COMMAND)} -f {tmp_path}")
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1), done.stderr
    assert f"{tmp_path}/proc: left out" in done.stderr.decode()


def test_each_skipped_document_is_one_line(tmp_path: Path) -> None:
    """Repeated keys and files of tools do not end the command; JSON on standard output stays JSON."""
    (tmp_path / "a.yaml").write_text(_OBJECT + "kind: ServiceAccount\n")
    (tmp_path / "kind.yaml").write_text("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n")
    (tmp_path / "patch.yaml").write_text("- {op: remove, path: /spec}\n")
    done = observe("-f", str(tmp_path))
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert [line.partition(str(tmp_path))[2].split(": ")[0] for line in lines] == [
        "/a.yaml:4", "/kind.yaml:1", "/patch.yaml:1",
    ]  # fmt: skip
    assert done.stdout.startswith(b"{")


def test_two_definitions_of_one_object_are_refused_with_both_places(tmp_path: Path) -> None:
    """One of them would be taken, and nobody would know which."""
    (tmp_path / "a.yaml").write_text(_OBJECT)
    (tmp_path / "b.yaml").write_text(_OBJECT + "automountServiceAccountToken: false\n")
    done = observe("-f", str(tmp_path))
    assert_refused(done, b"a.yaml:1")
    assert b"b.yaml:1" in done.stderr
