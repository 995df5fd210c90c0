"""What the command line makes of errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
        (RuntimeError("a mistake"), 2, "RuntimeError: a mistake\n"),
    ],
)
def test_an_error_never_looks_like_a_finding(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 is for findings alone: what could not run is 2, a mistake of ours with its traceback."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(status, "read_status", fail)
    monkeypatch.setattr("sys.argv", ["meshscrape", "status"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith(said)


def test_output_that_nobody_reads_is_no_finding() -> None:
    """A reader that goes away ends the command with 141, as SIGPIPE would: neither 1 nor 120."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "meshscrape", "dashboard"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
