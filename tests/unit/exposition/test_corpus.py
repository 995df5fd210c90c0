"""A corpus of real-looking and hostile expositions, cut at every byte, through the merge and back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from meshscrape.exposition.merge import Merger
from meshscrape.exposition.negotiate import Format
from support.expositions import Series, check_text_structure, openmetrics_series, text_series

CORPUS = Path(__file__).parents[2] / "corpus" / "expositions"
HEALTHY_TEXT = sorted((CORPUS / "healthy").glob("*.txt"))
HEALTHY_OPENMETRICS = sorted((CORPUS / "healthy").glob("*.om"))
HOSTILE = sorted((CORPUS / "hostile").iterdir())


def merge(bodies: list[list[bytes]], chosen: Format, dialect: Format) -> bytes:
    """The merge of several sources, each in chunks."""
    merger = Merger(chosen)
    out = b""
    for number, chunks in enumerate(bodies):
        source = merger.source(f"application:{number}", dialect=dialect)
        out += b"".join(source.feed(chunk) for chunk in chunks) + source.finish(True)
    return out + merger.end()


def read(body: bytes, chosen: Format) -> Counter[Series]:
    """What another parser reads of a merge, which must be valid."""
    if chosen is Format.OPENMETRICS:
        return Counter(openmetrics_series(body))
    check_text_structure(body)
    return Counter(text_series(body))


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", HEALTHY_TEXT, ids=name)
def test_a_healthy_text_source_loses_nothing(path: Path) -> None:
    """In either format every sample is there, with its name, labels and value."""
    body = path.read_bytes()
    for chosen in Format:
        assert read(merge([[body]], chosen, Format.TEXT), chosen) == Counter(text_series(body))


@pytest.mark.parametrize("path", HEALTHY_OPENMETRICS, ids=name)
def test_a_healthy_openmetrics_source_loses_nothing(path: Path) -> None:
    """Every sample and every exemplar comes through."""
    body = path.read_bytes()
    merged = merge([[body]], Format.OPENMETRICS, Format.OPENMETRICS)
    assert read(merged, Format.OPENMETRICS) == Counter(openmetrics_series(body))
    assert merged.count(b" # {") == body.count(b" # {")


@pytest.mark.parametrize("chosen", Format)
@pytest.mark.parametrize("path", [*HEALTHY_TEXT, *HEALTHY_OPENMETRICS, *HOSTILE], ids=name)
def test_every_cut_gives_the_same(path: Path, chosen: Format) -> None:
    """Wherever the transport cuts a body, and if it cuts at every byte, what comes through is the same."""
    body = path.read_bytes()
    dialect = Format.OPENMETRICS if path.suffix == ".om" and chosen is Format.OPENMETRICS else Format.TEXT
    whole = merge([[body]], chosen, dialect)
    expected = read(whole, chosen)
    step = max(1, len(body) // 150)
    for cut in range(0, len(body), step):
        merged = merge([[body[:cut], body[cut:]]], chosen, dialect)
        assert merged == whole or read(merged, chosen) == expected, cut
    each = [bytes([byte]) for byte in body]
    assert read(merge([each], chosen, dialect), chosen) == expected


@pytest.mark.parametrize("chosen", Format)
@pytest.mark.parametrize("hostile", HOSTILE, ids=name)
def test_a_hostile_source_costs_a_healthy_one_nothing(hostile: Path, chosen: Format) -> None:
    """Every healthy text in front of it is whole, and the merge is valid although it comes again behind."""
    healthy = [path.read_bytes() for path in HEALTHY_TEXT]
    alone = read(merge([[body] for body in healthy], chosen, Format.TEXT), chosen)
    merged = merge([*([body] for body in healthy), [hostile.read_bytes()], [healthy[0]]], chosen, Format.TEXT)
    assert alone <= read(merged, chosen)


def test_the_corpus_is_there() -> None:
    """An empty directory would prove nothing."""
    assert len(HEALTHY_TEXT) >= 5 and len(HEALTHY_OPENMETRICS) >= 2 and len(HOSTILE) >= 15
