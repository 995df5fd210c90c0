"""How much HTTP/2 a peer may send before it gets a certificate."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshscrape.ca.frames import FrameBudget

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, length: int = 8) -> bytes:
    """An HTTP/2 frame of one type with a body of zeros."""
    return length.to_bytes(3, "big") + bytes([kind]) + bytes(5 + length)


def test_frames_are_bounded() -> None:
    """The frame beyond the budget is refused, however small it is."""
    budget = FrameBudget(frames=3)
    assert budget.spend(PREFACE + frame(6) * 3)
    assert not budget.spend(frame(4, 0))


def test_requests_are_bounded() -> None:
    """Each HEADERS frame is a request; other frames are not."""
    budget = FrameBudget(requests=2)
    assert budget.spend(PREFACE + frame(1) + frame(0, 100) + frame(1) + frame(0))
    assert not budget.spend(frame(1))


def test_bytes_are_bounded() -> None:
    """One frame that never ends is refused when the bytes are used up."""
    budget = FrameBudget(size=1000)
    assert budget.spend(PREFACE + (2**24 - 1).to_bytes(3, "big") + bytes(6))
    assert budget.spend(bytes(900))
    assert not budget.spend(bytes(100))


def test_a_certificate_renews_the_budget() -> None:
    """After `renew` as much may come again, in the middle of a frame too."""
    budget = FrameBudget(frames=2, requests=1)
    assert budget.spend(PREFACE + frame(1) + frame(0)[:5])
    budget.renew()
    assert budget.spend(frame(0)[5:] + frame(1))
    assert not budget.spend(frame(1))


@given(st.lists(st.tuples(st.sampled_from([0, 1, 4, 6]), st.integers(0, 40)), max_size=30), st.data())
def test_frames_are_found_however_the_bytes_are_split(
    frames: list[tuple[int, int]], data: st.DataObject
) -> None:
    """The same frames are accepted or refused, in whatever pieces they come."""
    text = PREFACE + b"".join(frame(kind, length) for kind, length in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    budget = FrameBudget(frames=20, requests=4)
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    accepted = all(budget.spend(piece) for piece in pieces)
    requests = sum(kind == 1 for kind, _ in frames)
    assert accepted is (len(frames) <= 20 and requests <= 4)
