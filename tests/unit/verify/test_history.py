"""Knowledge over many runs: what is exported, and that nothing green outlives the run that showed it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshscrape.errors import InputError
from meshscrape.verify.findings import CheckResult, Outcome, Report, SeenCertificate
from meshscrape.verify.history import History, changes, is_stale, render
from meshscrape.verify.watch import metrics_address

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)
TARGET = "127.9.1.1:1"


def result(
    check: str, outcome: Outcome, workload: str = "default/a", target: str = "127.9.1.1:1"
) -> CheckResult:
    return CheckResult(check, workload, target, outcome, "seen", "expected", "do this")


def report(*checks: CheckResult, certificates: tuple[SeenCertificate, ...] = ()) -> Report:
    return Report(checks, "spiffe://cluster.local/ns/a/sa/b", NOW, 2.5, certificates)


def values(history: History, now: datetime = LATER) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and label values, read by an independent parser."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(render(history, now).decode())
        for sample in family.samples
    }


CLEAN = report(result("paths", "passed"), result("exposed-metrics", "passed"))


def test_before_the_first_run_there_is_no_result() -> None:
    """Counters at zero; no gauge that could be taken for a success."""
    names = {name for name, _ in values(History(60))}
    assert names == {"meshscrape_verify_runs_total", "meshscrape_verify_interval_seconds"}


def test_a_check_is_as_bad_as_its_worst_port() -> None:
    """1 when one of the ports failed or could not be checked; the labels do not change with the result."""
    mixed = report(
        result("paths", "passed", target="127.9.1.1:1"),
        result("paths", "failed", target="127.9.1.1:2"),
        result("sources", "skipped"),
        result("methods", "blocked"),
    )
    seen = values(History(60).after_report(mixed, NOW))
    assert seen["meshscrape_check_failed", ("paths", "default", "a", "hole")] == 1
    assert seen["meshscrape_check_failed", ("sources", "default", "a", "broken")] == 1
    assert seen["meshscrape_check_failed", ("methods", "default", "a", "hole")] == 0
    assert seen["meshscrape_check_skipped", ("sources", "default", "a")] == 1
    assert seen["meshscrape_check_skipped", ("paths", "default", "a")] == 0
    assert seen["meshscrape_verify_runs_total", ("findings",)] == 1


def test_failed_run_withdraws_green_results_and_keeps_red_ones() -> None:
    """Nobody sees a success that nobody made; a known hole does not vanish because nobody looked."""
    before = History(60).after_report(
        report(result("paths", "passed"), result("methods", "failed"), result("exposed-admin", "failed")), NOW
    )
    after = values(before.after_failure("no mesh"))
    assert ("meshscrape_check_failed", ("paths", "default", "a", "hole")) not in after
    assert after["meshscrape_check_failed", ("methods", "default", "a", "hole")] == 1
    assert after["meshscrape_plaintext_exposed", ("default", "a", "admin", "false")] == 1
    assert ("meshscrape_plaintext_exposed", ("default", "a", "admin", "true")) not in after
    assert after["meshscrape_verify_last_run_success", ()] == 0
    assert after["meshscrape_verify_runs_total", ("failed",)] == 1
    assert after["meshscrape_verify_last_run_timestamp_seconds", ()] == NOW.timestamp()


def test_overdue_run_withdraws_green_results() -> None:
    """A run that hangs is as good as one that failed, once three intervals have passed."""
    history = History(60).after_report(CLEAN, NOW)
    assert not is_stale(history, NOW + timedelta(seconds=120))
    late = NOW + timedelta(seconds=200)
    assert is_stale(history, late)
    assert "meshscrape_check_failed" not in {name for name, _ in values(history, late)}


def test_exposed_ports_are_counted_by_kind_and_announcement() -> None:
    """A finding is not announced, a note is; 0 stands where nothing is exposed."""
    seen = values(
        History(60).after_report(
            report(
                result("exposed-metrics", "failed", target="127.9.1.1:1"),
                result("exposed-metrics", "failed", target="127.9.1.1:2"),
                result("exposed-metrics", "noted", target="127.9.1.1:3"),
                result("plaintext-open", "noted", target="127.9.1.1:15090"),
                result("exposed-admin", "passed"),
                result("exposed-metrics", "noted", workload="", target="127.9.1.1:9100"),
            ),
            NOW,
        )
    )
    exposed = {key[1]: value for key, value in seen.items() if key[0] == "meshscrape_plaintext_exposed"}
    assert exposed == {
        ("default", "a", "metrics", "false"): 2,
        ("default", "a", "metrics", "true"): 2,
        ("default", "a", "admin", "false"): 0,
        ("default", "a", "admin", "true"): 0,
    }


def test_the_earliest_end_of_a_workload_s_certificates_counts() -> None:
    """One series per workload and role, however many ports there are."""
    one = SeenCertificate(
        "server", "default/a", "127.9.1.1:1", "spiffe://x/y", "1", NOW, NOW + timedelta(hours=2)
    )
    other = replace(one, target="127.9.1.1:2", not_after=NOW + timedelta(hours=1))
    root = replace(one, role="root", workload="")
    seen = values(History(60).after_report(report(certificates=(one, other, root)), NOW))
    ends = {key[1]: value for key, value in seen.items() if "not_after" in key[0]}
    assert ends == {
        ("default", "a", "server"): (NOW + timedelta(hours=1)).timestamp(),
        ("", "", "root"): one.not_after.timestamp(),
    }


def test_the_exit_code_is_the_last_run_s() -> None:
    """Clean 0, findings 1, could not run 2."""
    history = History(60).after_report(CLEAN, NOW)
    assert history.exit_code == 0
    assert history.after_report(report(result("paths", "failed")), NOW).exit_code == 1
    assert history.after_failure("why").exit_code == 2
    assert history.after_failure("why").after_report(CLEAN, NOW).exit_code == 0


def test_changes_compare_findings_not_words() -> None:
    """The same check of the same target is the same finding, whatever was seen this time."""
    before = report(result("paths", "failed"), result("methods", "failed"))
    now = report(replace(result("paths", "failed"), seen="otherwise"), result("sources", "skipped"))
    differ = changes(before, now)
    assert [each.check for each in differ.new] == ["sources"]
    assert [each.check for each in differ.gone] == ["methods"]
    assert [each.check for each in changes(None, now).new] == ["paths", "sources"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_metrics_are_on_loopback_unless_told_otherwise(text: str, address: tuple[str, int]) -> None:
    """A bare port never opens to the network."""
    assert metrics_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "::1:9464", "127.0.0.1:", "127.0.0.1:99999", "a:b:1"])
def test_malformed_metrics_address_is_refused(text: str) -> None:
    """With a message that names the option."""
    with pytest.raises(InputError, match="--metrics"):
        metrics_address(text)
