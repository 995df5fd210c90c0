"""Numbers as Istio and Go write them: ports and durations."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio import ports
from meshscrape.istio.durations import parse_duration


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("9080", 9080), ("65535", 65535)])
def test_ports_are_plain_decimal_numbers(text: str, port: int) -> None:
    """The whole range is accepted."""
    assert ports.parse_port(text, "here") == port


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "+80", " 80", "80\n", "015020", "0x50", "8_0", "٨٠", "http", "1" * 5000]
)
def test_anything_else_is_not_a_port(text: str) -> None:
    """Spellings that Go, YAML or Envoy would read differently are refused, in one short line."""
    with pytest.raises(InputError) as caught:
        ports.parse_port(text, "here")
    assert str(caught.value).startswith("here: ")
    assert len(str(caught.value)) < 200


def test_zero_is_a_port_only_where_it_means_off() -> None:
    """0 switches a listener off, and cannot be a target."""
    assert ports.parse_port("0", "here", allow_zero=True) == 0
    with pytest.raises(InputError) as caught:
        ports.parse_port("00", "here", allow_zero=True)
    assert caught.value.code == "not-a-port"


def test_every_port_of_the_data_plane_is_reserved() -> None:
    """Istio's nine, and the two secure ports."""
    istio = {15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090}
    assert istio | {ports.SECURE_STATS, ports.SECURE_MERGED} == ports.RESERVED
    for port in ports.RESERVED:
        with pytest.raises(InputError) as caught:
            ports.refuse_reserved(port, "here")
        assert (caught.value.place.text, caught.value.code) == ("here", "reserved-port")


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("24h", timedelta(hours=24)),
        ("24h0m0s", timedelta(hours=24)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5s", timedelta(milliseconds=1500)),
        (".5s", timedelta(milliseconds=500)),
        ("1.s", timedelta(seconds=1)),
        ("-3ms", timedelta(milliseconds=-3)),
        ("+3us", timedelta(microseconds=3)),
        ("3µs", timedelta(microseconds=3)),
        ("3\u03bcs", timedelta(microseconds=3)),
        ("1500ns", timedelta(microseconds=1)),
        ("0", timedelta(0)),
    ],
)
def test_durations_are_read_as_go_reads_them(text: str, duration: timedelta) -> None:
    """time.ParseDuration's syntax, to the microsecond."""
    assert parse_duration(text, "here") == duration


@pytest.mark.parametrize(
    "text", ["", "1", "1d", "1 h", "h", ".s", "1h-1m", "24h\n", "1e3s", "٣s", "9999999999h", "1h" * 100]
)
def test_what_go_refuses_is_not_a_duration(text: str) -> None:
    """A missing unit, days, spaces, exponents, overflow."""
    with pytest.raises(InputError) as caught:
        parse_duration(text, "here")
    assert (caught.value.place.text, caught.value.code) == ("here", "not-a-duration")


@given(st.text())
def test_arbitrary_text_is_a_port_and_a_duration_or_an_input_error(text: str) -> None:
    """No text gets anything else out of the parsers."""
    for parse in (ports.parse_port, parse_duration):
        try:
            parse(text, "here")
        except InputError as error:
            assert "\n" not in str(error)
