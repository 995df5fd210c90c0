"""The header of a request and of a response, compared with h11, which reads strangers' requests here."""

from __future__ import annotations

import os

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshscrape.system.http.body import FramingError, body_reader
from meshscrape.system.http.head import HeadError, ResponseHead, request_head, response_head

EXAMPLES = int(os.environ.get("MESHSCRAPE_TEST_EXAMPLES", "50"))
LIMIT = 1000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A:  b c \r\n\r\n"


def test_header_is_read_as_it_was_sent() -> None:
    """Names keep their case, values lose the spaces around them; what follows is not read."""
    expected = ResponseHead("1.1", 200, "OK", (("Content-Length", "3"), ("X-A", "b c")), len(ANSWER))
    assert response_head(ANSWER + b"abc\r\n\r\n", LIMIT) == expected
    assert all(response_head(ANSWER[:size], LIMIT) is None for size in range(len(ANSWER)))


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.0 404\r\n\r\n",
        b"HTTP/1.1 200 \xe9t\xe9\r\nA:\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\nA: c\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n\td\r\nE: f\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \xc3\xa9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    ],
)
def test_odd_headers_are_read_as_h11_reads_them(sent: bytes) -> None:
    """Missing reasons, bytes beyond ASCII, line feeds alone, folded lines, repeated fields."""
    head = response_head(sent, LIMIT)
    assert head is not None
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.receive_data(sent)
    event = connection.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert head.status == event.status_code
    assert head.reason.encode("latin-1") == bytes(event.reason)
    theirs = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    assert {name.lower(): value for name, value in head.fields} == theirs


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"220 smtp.example.org ESMTP\r\n\r\n", "status line"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "header field"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "header field"),
        (b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n", "header field"),
        (b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "header field"),
        (b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", "header field"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\ncontent-length: 4\r\n\r\n", "how long"),
        (b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n", "how long"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", f"larger than {LIMIT}"),
        (b"A" * LIMIT, f"larger than {LIMIT}"),
    ],
)
def test_anything_else_is_refused(sent: bytes, words: str) -> None:
    """With what is wrong; a header without end is refused at the limit."""
    with pytest.raises(HeadError, match=words):
        response_head(sent, LIMIT)


def test_a_header_of_exactly_the_limit_is_read() -> None:
    """One byte less is too little."""
    assert response_head(ANSWER, len(ANSWER)) is not None
    with pytest.raises(HeadError, match="larger"):
        response_head(ANSWER, len(ANSWER) - 1)


PIECES = [
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 ", b"200", b" ", b"\r\n", b"\n", b"\r", b"\t", b"A", b":", b": b"),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\x00",
        b"\xff",
        b'"',
        b"A: b\r\n",
        b"(",
        b"\x7f",
    ),
]


@settings(max_examples=10 * EXAMPLES, deadline=None)
@given(st.booleans(), st.lists(st.sampled_from(PIECES), max_size=8))
def test_what_is_read_is_what_h11_reads(begun: bool, pieces: list[bytes]) -> None:
    """No header means something else here than there."""
    sent = (b"HTTP/1.1 200 OK\r\n" if begun else b"") + b"".join(pieces) + b"\r\n\r\n"
    try:
        head = response_head(sent, LIMIT)
        assert head is not None
        body_reader(head.status, "GET", {name.lower(): value for name, value in head.fields})
    except (HeadError, FramingError):
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.receive_data(sent)
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    assert head.status == event.status_code
    theirs = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    assert {name.lower(): value for name, value in head.fields} == theirs


def test_a_request_is_written_with_its_host_first() -> None:
    """In this order, whatever the order given; the other fields keep theirs."""
    written = request_head(
        "GET", "/a?b=c", [("Accept", "x"), ("host", "h:1"), ("X-Empty", ""), ("Accept", "y")]
    )
    assert written == b"GET /a?b=c HTTP/1.1\r\nhost: h:1\r\nAccept: x\r\nX-Empty: \r\nAccept: y\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "field"),
    [
        ("GET ", "/", ("A", "b")),
        ("", "/", ("A", "b")),
        ("GET", "/ HTTP/1.1\r\nB: c", ("A", "b")),
        ("GET", "/a b", ("A", "b")),
        ("GET", "", ("A", "b")),
        ("GET", "/é", ("A", "b")),
        ("GET", "/", ("A", "b\r\nC: d")),
        ("GET", "/", ("A", "b\n")),
        ("GET", "/", ("A", " b")),
        ("GET", "/", ("A: b\r\nC", "d")),
        ("GET", "/", ("A b", "c")),
        ("GET", "/", ("", "c")),
        ("GET", "/", ("A", "é")),
    ],
)
def test_a_request_cannot_be_made_into_two(method: str, target: str, field: tuple[str, str]) -> None:
    """Nothing of what is written ends a line, or the header, or is not ASCII."""
    with pytest.raises(HeadError):
        request_head(method, target, [("Host", "h"), field])
