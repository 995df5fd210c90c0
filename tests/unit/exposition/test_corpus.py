"""A corpus of real-looking and hostile expositions, cut at every byte, through the merge and back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from meshscrape.exposition.merge import Merger
from support.expositions import Series, check_text_structure, text_series

CORPUS = Path(__file__).parents[2] / "corpus" / "expositions"
HEALTHY = sorted((CORPUS / "healthy").glob("*.txt"))
HOSTILE = sorted((CORPUS / "hostile").iterdir())


def merge(bodies: list[list[bytes]]) -> bytes:
    """Return the merge of several sources, each in chunks."""
    merger = Merger()
    out = b""
    for number, chunks in enumerate(bodies):
        source = merger.source(f"application:{number}")
        out += b"".join(source.feed(chunk) for chunk in chunks) + source.finish(True)
    return out


def read(body: bytes) -> Counter[Series]:
    """Return what another parser reads of a merge, which must be valid."""
    check_text_structure(body)
    return Counter(text_series(body))


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", HEALTHY, ids=name)
def test_healthy_source_loses_nothing(path: Path) -> None:
    """Every sample is there, with its name, labels and value."""
    body = path.read_bytes()
    assert read(merge([[body]])) == Counter(text_series(body))


@pytest.mark.parametrize("path", [*HEALTHY, *HOSTILE], ids=name)
def test_every_cut_gives_the_same(path: Path) -> None:
    """Wherever the transport cuts a body, and if it cuts at every byte, what comes through is the same."""
    body = path.read_bytes()
    whole = merge([[body]])
    expected = read(whole)
    step = max(1, len(body) // 150)
    for cut in range(0, len(body), step):
        merged = merge([[body[:cut], body[cut:]]])
        assert merged == whole or read(merged) == expected, cut
    each = [bytes([byte]) for byte in body]
    assert read(merge([each])) == expected


@pytest.mark.parametrize("hostile", HOSTILE, ids=name)
def test_hostile_source_costs_a_healthy_one_nothing(hostile: Path) -> None:
    """Every healthy text in front of it is whole, and the merge is valid although it comes again behind."""
    healthy = [path.read_bytes() for path in HEALTHY]
    alone = read(merge([[body] for body in healthy]))
    merged = merge([*([body] for body in healthy), [hostile.read_bytes()], [healthy[0]]])
    assert alone <= read(merged)


def test_corpus_is_complete() -> None:
    """An empty directory would prove nothing."""
    assert len(HEALTHY) >= 5 and len(HOSTILE) >= 15
