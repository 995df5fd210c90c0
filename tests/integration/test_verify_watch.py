"""`meshscrape verify --watch`: what it exports while things happen to the mesh, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from meshscrape.local.state import StateDirectory, hold_state
from support.ca import ca_process
from support.polling import eventually
from support.subject import Identities, mesh_status, subject

EXPORTER = 9464
# Neither waits for a certificate's end nor asks forty paths: these tests are about runs, not about checks.
QUICK = ("--only", "scraper-admitted,server-certificate,exposed-metrics,exposed-admin,no-certificate")
FAILED = "meshscrape_check_failed"
EXPOSED = ("exposed-metrics", "default", "httpbin", "hole")


@dataclass(slots=True)
class Watching:
    """A running watch."""

    process: subprocess.Popen[str]
    out: Path
    err: Path

    @property
    def url(self) -> str:
        """Where it serves metrics."""
        found = re.search(r"http://\S+/metrics", self.err.read_text())
        assert found, "no address yet"
        return found[0]

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """The samples of a family now, by label values."""
        with urllib.request.urlopen(self.url, timeout=5) as answer:
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            families = text_string_to_metric_families(answer.read().decode())
            found = [each for family in families for each in family.samples if each.name == name]
        return {tuple(each.labels.values()): each.value for each in found}

    def value(self, name: str, *labels: str) -> float | None:
        """One sample, None while there is none."""
        return self.samples(name).get(labels)

    def until(self, seen: Callable[[], object], what: str) -> None:
        """Wait for it; fail at once when the watch has ended."""

        def look() -> object:
            if self.process.poll() is not None:
                raise RuntimeError(f"the watch ended: {self.err.read_text()}")
            return seen()

        eventually(look, what=what)


@contextlib.contextmanager
def watching(directory: Path, state: Path, *arguments: str) -> Iterator[Watching]:
    """`verify --watch` every second."""
    out, err = directory / "out", directory / "err"
    command = [sys.executable, "-m", "meshscrape", "verify", "--state", str(state), "--watch"]
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--interval", "1s", *QUICK, *arguments], stdout=stdout, stderr=stderr, text=True
        )
    try:
        yield Watching(process, out, err)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StateDirectory, dict[str, object]]]:
    """A running sidecar, published in a state directory."""
    directory = tmp_path_factory.mktemp("watched")
    (directory / "identities").mkdir()
    with ca_process(directory / "ca") as ca, hold_state(directory / "state") as state:
        identities = Identities(ca, directory / "identities")
        with subject(directory / "envoy", identities, "httpbin") as entry:
            status = mesh_status(identities, [entry])
            state.publish(status)
            yield state, status


def test_a_page_that_cannot_be_written_does_not_end_the_watch(
    tmp_path: Path, mesh: tuple[StateDirectory, dict[str, object]]
) -> None:
    """It is said, runs go on, and the page is there again as soon as it can be."""
    page = tmp_path / "pages" / "mesh.html"
    page.parent.mkdir()
    with watching(tmp_path, mesh[0].path, "--html", str(page)) as watch:
        watch.until(page.exists, "the page")
        page.parent.rename(tmp_path / "elsewhere")
        watch.until(lambda: "could not be written" in watch.err.read_text(), "what is wrong")
        page.parent.mkdir()
        watch.until(page.exists, "the page again")


def test_results_follow_the_mesh(tmp_path: Path, mesh: tuple[StateDirectory, dict[str, object]]) -> None:
    """Green; a port opens: red; it closes: green; no mesh: no green; it returns: green. TERM ends it."""
    state, status = mesh
    address = status["workloads"][-1]["address"]  # type: ignore[index]
    with watching(tmp_path, state.path, "--metrics", "0") as watch:
        watch.until(lambda: watch.value(FAILED, *EXPOSED) == 0, "a clean run")
        assert watch.url.startswith("http://127.0.0.1:")
        assert watch.value("meshscrape_plaintext_exposed", "default", "httpbin", "metrics", "false") == 0
        ends = watch.samples("meshscrape_verify_certificate_not_after_seconds")
        assert {role for *_, role in ends} == {"server", "scraper", "root"}
        server, thread = start_http_server(EXPORTER, address, CollectorRegistry())
        watch.until(lambda: watch.value(FAILED, *EXPOSED) == 1, "a finding")
        assert watch.value("meshscrape_plaintext_exposed", "default", "httpbin", "metrics", "false") == 1
        server.shutdown()
        server.server_close()
        thread.join()
        watch.until(lambda: watch.value(FAILED, *EXPOSED) == 0, "a clean run again")
        state.status_file.unlink()
        try:
            watch.until(lambda: watch.value("meshscrape_verify_last_run_success") == 0, "a failed run")
            assert 0 not in watch.samples(FAILED).values()
        finally:
            state.publish(status)
        watch.until(lambda: watch.value(FAILED, *EXPOSED) == 0, "a clean run at last")
        assert (watch.value("meshscrape_verify_runs_total", "failed") or 0) >= 1
        watch.process.send_signal(signal.SIGTERM)
        assert watch.process.wait(10) == 0
    lines = watch.out.read_text().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ run 1: no findings.*; next in \d+ s$", lines[0])
    assert any(line.startswith("  NEW   HOLE exposed-metrics default/httpbin") for line in lines)
    assert any(line.startswith("  GONE  HOLE exposed-metrics default/httpbin") for line in lines)
    assert any("COULD NOT RUN" in line for line in lines)
    assert "Traceback" not in watch.err.read_text()


def test_only_metrics_are_served(tmp_path: Path, mesh: tuple[StateDirectory, dict[str, object]]) -> None:
    """One path; everything else is refused."""
    with watching(tmp_path, mesh[0].path, "--metrics", "0") as watch:
        watch.until(lambda: watch.url, "metrics")
        for target in ("/", "/metrics/", "/../metrics", "/debug"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(watch.url.replace("/metrics", target), timeout=5)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_watch_completely(
    tmp_path: Path, mesh: tuple[StateDirectory, dict[str, object]], sent: signal.Signals
) -> None:
    """In the middle of the first run: 128 and the signal's number, without a traceback."""
    with watching(tmp_path, mesh[0].path, "--skip", "no-certificate", "--metrics", "0") as watch:
        watch.until(lambda: watch.url, "metrics")
        watch.process.send_signal(sent)
        code = watch.process.wait(10)
    made = watch.out.read_text().count(" run ")
    assert code == (0 if made else 128 + sent)
    assert "Traceback" not in watch.err.read_text()


def test_json_is_a_document_per_line(tmp_path: Path, mesh: tuple[StateDirectory, dict[str, object]]) -> None:
    """Each run's report, and in its place what kept a run from being made."""
    with watching(tmp_path, mesh[0].path, "-o", "json") as watch:
        watch.until(lambda: len(watch.out.read_text().splitlines()) >= 2, "two runs")
        watch.process.terminate()
        watch.process.wait(10)
    documents = [json.loads(line) for line in watch.out.read_text().splitlines()]
    assert {each["kind"] for each in documents} == {"VerifyReport"}


def test_starting_mesh_is_a_failed_run_and_does_not_end_the_watch(tmp_path: Path) -> None:
    """A watch may start while the mesh starts; its exit code says that nothing was ever verified."""
    page = tmp_path / "page.html"
    with (
        hold_state(tmp_path / "state") as state,
        watching(tmp_path, state.path, "--metrics", "0", "--html", str(page)) as watch,
    ):
        watch.until(lambda: watch.value("meshscrape_verify_runs_total", "failed"), "a failed run")
        assert watch.value("meshscrape_verify_last_run_success") == 0
        assert watch.samples(FAILED) == {}
        watch.until(lambda: "The last run could not be made" in page.read_text(), "the page")
        watch.process.terminate()
        assert watch.process.wait(10) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--watch", "--interval", "10ms"), "out of range"),
        (("--watch", "-o", "junit"), "cannot write a series of runs"),
        (("--watch", "--only", "pahts"), "'pahts' is not a check"),
        (("--metrics", "9464"), "add --watch"),
        (("--watch", "--metrics", "192.0.2.1:1"), "192.0.2.1:1"),
    ],
)
def test_bad_options_are_exit_2_at_once(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """Before the first run, in one line."""
    with hold_state(tmp_path / "state") as state:
        command = [sys.executable, "-m", "meshscrape", "verify", "--state", str(state.path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ})
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
