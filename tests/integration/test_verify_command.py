"""`meshscrape verify` as a command: outputs, exit codes, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from meshscrape.local.state import StateDirectory, hold_state
from meshscrape.system.proc import socket_inodes
from support.ca import ca_process
from support.polling import eventually
from support.subject import Identities, Spoiled, mesh_status, subject

# The wait for a certificate's end is not what these tests are about.
QUICK = ("--skip", "expired-certificate")


@dataclass(frozen=True, slots=True)
class World:
    """A running mesh of one workload, published in a state directory."""

    state: StateDirectory
    status: dict[str, Any]
    temporary: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        verify = [sys.executable, "-m", "meshscrape", "verify", "--state", str(self.state.path)]
        return [*verify, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """With a directory for temporary files that tests can look into."""
        return {**os.environ, "TMPDIR": str(self.temporary)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=60
        )


@contextlib.contextmanager
def running(directory: Path, spoiled: Spoiled | None = None) -> Iterator[World]:
    """A mesh with a fault, or none."""
    temporary = directory / "temporary"
    temporary.mkdir()
    (directory / "identities").mkdir()
    with ca_process(directory / "ca") as ca, hold_state(directory / "state") as state:
        identities = Identities(ca, directory / "identities")
        with subject(directory / "envoy", identities, "httpbin", spoiled) as entry:
            status = mesh_status(identities, [entry])
            state.publish(status)
            yield World(state, status, temporary)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A mesh without a fault."""
    with running(tmp_path_factory.mktemp("clean")) as made:
        yield made


def test_a_clean_mesh_is_exit_0(world: World) -> None:
    """The table goes to stdout without colour, nothing to stderr, and no file stays."""
    done = world.run()
    assert done.returncode == 0, done.stdout
    assert "no findings" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert list(world.temporary.iterdir()) == []


def test_a_hole_is_exit_1(tmp_path: Path) -> None:
    """The finding is in every format, with what was seen, expected and to do."""
    with running(tmp_path, Spoiled(scrapers="spiffe:spiffe://cluster.local/*")) as holed:
        only = ("--only", "unlisted-workload")
        table, document, junit = (holed.run(*only, "-o", form) for form in ("table", "json", "junit"))
    assert [each.returncode for each in (table, document, junit)] == [1, 1, 1]
    assert "HOLE unlisted-workload default/httpbin" in table.stdout
    finding = json.loads(document.stdout)["findings"][0]
    assert finding["check"] == "unlisted-workload"
    assert finding["seen"].endswith("HTTP 200")
    assert ElementTree.fromstring(junit.stdout).attrib["failures"] == "2"


def test_only_and_skip_select_checks(world: World) -> None:
    """Lists with commas and repeated options add up; what is left out is not there."""
    done = world.run("-o", "json", "--only", "paths,methods", "--only", "no-certificate", "--skip", "methods")
    assert done.returncode == 0
    assert {each["check"] for each in json.loads(done.stdout)["checks"]} == {"paths", "no-certificate"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "pahts"), "--only: 'pahts' is not a check; did you mean paths?"),
        (("--as", "default/nobody"), "no workload default/nobody in the mesh"),
        (("-o", "xml"), "xml"),
        (("--state", "nowhere"), "no mesh is running"),
        (("--mesh", "nowhere"), "both name a mesh"),
        (("--image", "meshscrape:1"), "--image: needs --kubernetes"),
        (("--ports", "http"), "--ports"),
        (("--metrics", "0"), "--metrics: needs --watch"),
    ],
)
def test_unusable_options_exit_2(world: World, arguments: tuple[str, ...], words: str) -> None:
    """Bad options and a missing mesh: words on stderr, nothing on stdout."""
    done = world.run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_scraper_with_a_token_alone_gets_its_certificate_from_the_ca(world: World, tmp_path: Path) -> None:
    """--mesh reads a document; without credential files the key never leaves the process."""
    status = json.loads(json.dumps(world.status))
    status["workloads"][0]["credentials"] = ""
    file = tmp_path / "mesh.json"
    file.write_text(json.dumps(status))
    command = [sys.executable, "-m", "meshscrape", "verify", "--mesh", str(file), "-o", "json", *QUICK]
    done = subprocess.run(command, env=world.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.stdout, done.stderr)
    report = json.loads(done.stdout)
    assert report["scraper"] == "spiffe://cluster.local/ns/istio-system/sa/prometheus"
    assert {each["outcome"] for each in report["checks"] if each["check"] == "scraper-admitted"} == {"passed"}
    assert list(world.temporary.iterdir()) == []


def test_a_token_that_the_ca_refuses_is_exit_2(world: World, tmp_path: Path) -> None:
    """One line that says so, and not the token."""
    status = json.loads(json.dumps(world.status))
    token = tmp_path / "token"
    token.write_text("no-token")
    status["workloads"][0] |= {"credentials": "", "token": str(token)}
    file = tmp_path / "mesh.json"
    file.write_text(json.dumps(status))
    command = [sys.executable, "-m", "meshscrape", "verify", "--mesh", str(file)]
    done = subprocess.run(command, env=world.environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, ""), done.stderr
    assert "the CA does not accept the credentials" in done.stderr
    assert "no-token" not in done.stderr


def test_a_scraper_without_its_files_is_exit_2(world: World) -> None:
    """Unreadable credentials are one line with the place."""
    broken = json.loads(json.dumps(world.status))
    broken["workloads"][0]["credentials"] = str(world.state.path / "absent")
    world.state.publish(broken)
    try:
        done = world.run(*QUICK)
    finally:
        world.state.publish(world.status)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "absent" in done.stderr


def test_expiry_is_unchecked_without_the_ca(world: World) -> None:
    """Without a short-lived certificate that check is a finding, and only that one."""
    broken = json.loads(json.dumps(world.status))
    broken["ca"]["address"] = f"{world.status['workloads'][-1]['address']}:15012"
    world.state.publish(broken)
    try:
        done = world.run("-o", "json")
    finally:
        world.state.publish(world.status)
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 1
    assert {(each["check"], each["severity"]) for each in findings} == {("expired-certificate", "skipped")}
    assert "the CA cannot be reached" in findings[0]["seen"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run_exits_with_the_signals_status(world: World, sent: signal.Signals) -> None:
    """Ctrl-C, TERM and HUP while it runs end it with 128 and the signal's number, without a traceback."""
    process = subprocess.Popen(
        world.command(), env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        eventually(lambda: len(socket_inodes(process.pid)) > 4, what="connections of the run")
        process.send_signal(sent)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + sent
    assert (output, errors.strip()) == ("", "")


def test_no_key_touches_a_disk(world: World) -> None:
    """Nothing is written, so that a run that is killed leaves nothing either."""
    process = subprocess.Popen(world.command(), env=world.environment, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: len(socket_inodes(process.pid)) > 4, what="connections of the run")
        assert list(world.temporary.iterdir()) == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_shown_only_on_terminals(world: World, quiet: bool) -> None:
    """A bar on stderr when that is a terminal, none with --quiet; the report on stdout is untouched by it."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def follow() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 4096):
                shown.append(data)

    follower = threading.Thread(target=follow)
    follower.start()
    arguments = ["-o", "json", "--only", "no-certificate", *(["--quiet"] if quiet else [])]
    try:
        done = subprocess.run(
            world.command(*arguments),
            env={**world.environment, "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
        )
    finally:
        os.close(theirs)
        follower.join()
        os.close(ours)
    assert json.loads(done.stdout)["clean"] is True
    assert (b"verify" in b"".join(shown)) is not quiet
