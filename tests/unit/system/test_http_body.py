"""Where a body ends, whatever pieces the connection delivers it in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.system.http.body import (
    MAX_LINE,
    BodyReader,
    ChunkedReader,
    CloseReader,
    FramingError,
    LengthReader,
    body_reader,
)


def read(reader: BodyReader, data: bytes, step: int) -> bytes:
    """The body in `data`, fed `step` bytes at a time."""
    return b"".join(reader.feed(data[i : i + step]) for i in range(0, len(data), step))


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 60))
def test_chunks_come_back_together(chunks: list[bytes], step: int) -> None:
    """Any chunks, cut anywhere, with extensions and trailers: the body is whole and known to be."""
    framed = b"".join(b"%X;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    reader = ChunkedReader()
    assert read(reader, framed + b"0\r\nTrailer: x\r\n\r\nrest", step) == b"".join(chunks)
    assert reader.ended


@pytest.mark.parametrize("step", [1, 2, 3, 7, 11, 100])
def test_chunks_of_one_size_and_a_trailer_that_looks_like_one(step: int) -> None:
    """Chunks like the one before are read without reading their size lines; a trailer is never a chunk."""
    reader = ChunkedReader()
    framed = b"3\r\nabc\r\n" * 5 + b"0\r\n3\r\nabc\r\n\r\n"
    assert read(reader, framed, step) == b"abc" * 5
    assert reader.ended


@pytest.mark.parametrize("cut", range(1, 18))
def test_an_unfinished_chunked_body_never_ends(cut: int) -> None:
    """Every proper beginning of a chunked body is known to be unfinished."""
    whole = b"3\r\nabc\r\n0\r\n\r\n"
    reader = ChunkedReader()
    reader.feed(whole[: min(cut, len(whole) - 1)])
    assert not reader.ended


@pytest.mark.parametrize(
    "data",
    [
        b"xyz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"1_0\r\n",
        b"3\r\nabcdef",
        b"1\r\nab\r\n",
        b"1\r\na\r\n1\r\nab\r\n",
        b"f" * 16 + b"\r\n",
        b"1" + b" " * MAX_LINE,
    ],
)
def test_malformed_chunks_are_refused(data: bytes) -> None:
    """Sizes that are none, chunks longer than their size and endless size lines are refused."""
    with pytest.raises(FramingError):
        read(ChunkedReader(), data, len(data))


def test_body_of_known_length_ends_there() -> None:
    """A body of a known length ends there and nowhere else; what follows is not part of it."""
    reader = LengthReader(5)
    assert reader.feed(b"abc") == b"abc"
    assert not reader.ended
    assert reader.feed(b"defgh") == b"de"
    assert reader.ended


@pytest.mark.parametrize(
    ("status", "method", "headers", "kind"),
    [
        (200, "GET", {"content-length": "5"}, LengthReader),
        (200, "GET", {"transfer-encoding": "chunked", "content-length": "5"}, ChunkedReader),
        (200, "GET", {}, CloseReader),
        (200, "HEAD", {"transfer-encoding": "chunked"}, LengthReader),
        (304, "GET", {}, LengthReader),
    ],
)
def test_headers_decide_the_framing(status: int, method: str, headers: dict[str, str], kind: type) -> None:
    """RFC 9112, section 6.3: no body, then chunks, then length, then the connection's end."""
    assert type(body_reader(status, method, headers)) is kind


@pytest.mark.parametrize("headers", [{"transfer-encoding": "gzip, chunked"}, {"content-length": "-1"}])
def test_unclear_framing_is_refused(headers: dict[str, str]) -> None:
    """A header that does not say where the body ends is refused, not guessed at."""
    with pytest.raises(FramingError):
        body_reader(200, "GET", headers)
