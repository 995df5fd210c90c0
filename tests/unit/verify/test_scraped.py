"""Judging a scrape: type, grammar, families, sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from meshscrape.verify.observations import Answered
from meshscrape.verify.scraped import (
    content_type_fault,
    exposition_fault,
    missing_families,
    sample_names,
    sources_down,
)

VALID = b"""\
# HELP http_requests_total Requests, "quoted" \\\\ and all.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400",} 3
# any comment

# TYPE latency histogram
latency_bucket{le="0.5"} 1e-3
latency_bucket{le="+Inf"} 2.
latency_sum .5
latency_count 2
# TYPE quantiles summary
quantiles{quantile="0.5"} NaN
quantiles_sum +Inf
quantiles_count 0
untyped{path="C:\\\\DIR\\n\\"x\\"",name="\xc3\xa9 {} # ,"} -Inf
empty{} 1
"""


def answer(body: bytes = VALID, content_type: str = "text/plain; version=0.0.4; charset=utf-8") -> Answered:
    headers = (("content-type", content_type),) if content_type else ()
    return Answered(200, headers, body)


def fault(body: bytes) -> str:
    return exposition_fault(body)[0]


def test_a_valid_exposition_has_no_fault() -> None:
    """Everything that the format allows is let through, as an independent parser does."""
    assert fault(VALID) == ""
    assert list(text_string_to_metric_families(VALID.decode()))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "empty"),
        (b"a 1", "cut off"),
        (b"a 1\nb{ 2\n", "line 2 is malformed"),
        (b"a one\n", "line 1 is malformed"),
        (b"a\n", "line 1 is malformed"),
        (b"a{}1 2 3\n", "line 1 is malformed"),
        (b"a1\n", "line 1 is malformed"),
        (b"1a 1\n", "line 1 is malformed"),
        (b'a{b="c" d="e"} 1\n', "line 1 is malformed"),
        (b'a{b="\\x"} 1\n', "line 1 is malformed"),
        (b'a{b="c} 1\n', "line 1 is malformed"),
        (b"a 1 1.5\n", "line 1 is malformed"),
        (b"a 0x1p3\n", "line 1 is malformed"),
        (b"a 1 # {} 1\n", "line 1 is malformed"),
        (b"a 1\r\n", "line 1 is malformed"),
        (b"\xff 1\n", "line 1 is not UTF-8"),
        (b'a{b="\xff"} 1\n', "line 1 is not UTF-8"),
        (b"a 1\nb 1\na 2\n", "line 3 repeats a series"),
        (b'a{x="1",y="2"} 1\na{y="2", x="1"} 1\n', "line 2 repeats a series"),
        (b"a 1\na  2\n", "line 2 repeats a series"),
        (b'a{x="1",x="2"} 1\n', "line 1 repeats a label"),
        (b'a{x="1"} 1\nb 1\na{x="2"} 2\n', "line 3 returns to a family that had ended"),
        (b"# TYPE a counter\na 1\n# TYPE a counter\n", "line 3 is a second TYPE"),
        (b"# HELP a x\n# HELP a y\na 1\n", "line 2 is a second HELP"),
        (b"a 1\n# TYPE a counter\n", "line 2 comes after samples of its family"),
        (b"# TYPE a unknown\na 1\n", "line 1 has no type of the text format"),
        (b"# TYPE a\na 1\n", "line 1 has no type of the text format"),
        (b"# TYPE 1a gauge\n", "line 1 is malformed"),
        (b"# TYPE a histogram\na_sum 1\nb 1\na_count 1\n", "line 4 returns to a family that had ended"),
    ],
)
def test_every_breach_of_the_format_is_named_with_its_line(body: bytes, expected: str) -> None:
    """One line per way in which an exposition can be wrong."""
    assert expected in fault(body)


def test_many_faults_are_summed_up() -> None:
    """A body of another kind does not fill the report."""
    assert fault(b"<html>\n" * 1000).endswith("; and more")


def test_faults_show_nothing_that_could_disturb_a_terminal() -> None:
    """Bytes of a hostile workload are spelled harmlessly."""
    assert fault(b"\x1b[2J\x07 x\n").isprintable()


LONG = 300_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "line",
    [
        b"a" + b" " * LONG + b"x",
        b"a{" + b" " * LONG + b"x",
        b'a{b="c"' + b" " * LONG + b"x",
        b'a{b="c"' + b', b="c"' * LONG + b"x",
        b"a " + b"1" * LONG + b"x",
        b"a 1" + b" " * LONG + b"x",
        b"a " * LONG,
        b'a{b="' + b"\\\\" * LONG,
        b"meshscrape_source_up{," * LONG,
        b"# TYPE " + b"a" * LONG + b"-",
        b"#" + b" " * LONG + b"TYPE",
    ],
)
def test_no_line_costs_more_than_reading_it(line: bytes) -> None:
    """What a hostile workload serves cannot make the judge search for ever."""
    body = line + b"\n"
    fault(body)
    sample_names(body)
    sources_down(body, ())
    missing_families(body, ())


@given(st.binary())
def test_no_body_can_break_the_judge(body: bytes) -> None:
    """Whatever came, the result is a judgement."""
    exposition_fault(body)
    sample_names(body)
    sources_down(body, ())


@given(st.dictionaries(st.from_regex(r"[a-z_:][a-z0-9_:]{0,8}", fullmatch=True), st.text(), min_size=1))
def test_what_a_client_library_would_write_is_valid(samples: dict[str, str]) -> None:
    """Any label value, escaped as the format says, is accepted."""
    escaped = {
        name: value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
        for name, value in samples.items()
    }
    body = "".join(f'{name}{{l="{value}"}} 1\n' for name, value in escaped.items())
    assert fault(body.encode("utf-8", "replace")) == ""


@pytest.mark.parametrize(
    ("content_type", "versioned", "good"),
    [
        ("text/plain; version=0.0.4; charset=utf-8", True, True),
        ("text/plain;version=0.0.4", True, True),
        ("text/plain; charset=UTF-8", False, True),
        ("text/plain; charset=UTF-8", True, False),
        ("text/plain; version=1.0.0", False, False),
        ("text/plain; version=0.0.4; charset=latin-1", True, False),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True, False),
        ("text/html", False, False),
        ("", False, False),
        ("nonsense", False, False),
    ],
)
def test_the_content_type_is_exact(content_type: str, versioned: bool, good: bool) -> None:
    """The merged port names the version; Envoy's own page need not; nothing else passes."""
    wrong, _ = content_type_fault(answer(content_type=content_type), versioned=versioned)
    assert (wrong == "") is good


def test_missing_families_are_named() -> None:
    """A prefix is enough with `_` at its end, else the name must be exact."""
    wrong, _ = missing_families(answer().body, ("latency_", "envoy_", "http_requests"))
    assert wrong == "no sample of envoy_*, http_requests"


def test_type_line_alone_is_not_a_family() -> None:
    """Only samples prove that a family is there."""
    wrong, _ = missing_families(b"# TYPE envoy_x gauge\nother 1\n", ("envoy_",))
    assert wrong


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b'meshscrape_source_up{source="envoy"} 1\nmeshscrape_source_up{source="application:9080"} 1\n', ""),
        (b'meshscrape_source_up{source="application:9080"} 0\n', "application:9080 is down"),
        (b'meshscrape_source_up{source="envoy"} 1\n', "application:9080 is not merged"),
        (b'meshscrape_source_up{a="b",source="application:9080"} 1.0\n', ""),
    ],
)
def test_sources_must_exist_and_be_up(body: bytes, wrong: str) -> None:
    """A source that is down and one that is not mentioned are both found."""
    assert sources_down(body, ("application:9080",))[0] == wrong
