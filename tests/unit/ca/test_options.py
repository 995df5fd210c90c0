"""Small decisions of the CA: lifetimes, addresses, names, what is counted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshscrape.ca.bounded_logs import BoundedLog
from meshscrape.ca.metrics import Metrics
from meshscrape.ca.run import parse_listen
from meshscrape.ca.server_certificate import own_names
from meshscrape.ca.service import Lifetimes
from meshscrape.errors import InputError

LIFETIMES = Lifetimes(timedelta(hours=2), timedelta(hours=5))


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (0, 7200),
        (-1, 7200),
        (-(2**63), 7200),
        (1, 1),
        (7201, 7201),
        (18000, 18000),
        (18001, 18000),
        (2**63 - 1, 18000),
    ],
)
def test_requested_lifetime_is_bounded(asked: int, granted: int) -> None:
    """Nothing asked for gives the default; whatever is asked for ends at the longest."""
    assert LIFETIMES.granted(asked) == timedelta(seconds=granted)


def test_the_default_is_bounded_too() -> None:
    """A default above the longest is cut."""
    assert Lifetimes(timedelta(days=9), timedelta(hours=1)).granted(0) == timedelta(hours=1)


def test_a_flood_of_refusals_is_a_bounded_log(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals beyond the bound are counted instead of written; the next minute says how many there were."""
    refusals, now = BoundedLog(), datetime(2026, 3, 1, tzinfo=UTC)
    for _ in range(BoundedLog.LINES + 5):
        refusals.say(now, "refused")
    assert caplog.messages == ["refused"] * BoundedLog.LINES
    caplog.clear()
    refusals.say(now + timedelta(minutes=1), "refused")
    assert caplog.messages == ["5 more were not logged", "refused"]


def test_listen_addresses() -> None:
    """IPv4 and bracketed IPv6 with a port are addresses; names and impossible ports are not."""
    assert parse_listen("127.0.0.1:15012") == ("127.0.0.1", 15012)
    assert parse_listen("[::1]:0") == ("::1", 0)
    for text in (
        "",
        "127.0.0.1",
        ":15012",
        "localhost:15012",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:x",
    ):
        with pytest.raises(InputError):
            parse_listen(text)


def test_server_names() -> None:
    """The address it listens on is a name of the server; listening everywhere, one must be given."""
    assert own_names(("ca.example", "127.0.0.1"), "127.0.0.1") == ("ca.example", "127.0.0.1")
    assert own_names(("ca.example",), "0.0.0.0") == ("ca.example",)
    with pytest.raises(InputError, match="--dns"):
        own_names((), "::")


def test_metrics_are_an_exposition_of_bounded_size() -> None:
    """Prometheus's own parser reads them; results are a fixed set, an unknown one counts as error."""
    metrics = Metrics(datetime(2030, 1, 1, tzinfo=UTC))
    before = metrics.render().count(b"\n")
    metrics.issued = 3
    for result in ("ok", "unauthenticated", "surprise"):
        metrics.request(result)
    text = metrics.render().decode()
    assert text.count("\n") == before
    samples = {
        (sample.name, sample.labels.get("result", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["meshscrape_ca_certificates_issued_total", ""] == 3
    assert samples["meshscrape_ca_requests_total", "error"] == 1
    assert samples["meshscrape_ca_requests_total", "invalid_argument"] == 0
    assert samples["meshscrape_ca_root_not_after_seconds", ""] == 1893456000
    assert samples["meshscrape_ca_connections", ""] == 0
