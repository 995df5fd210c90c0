"""Whatever sources say, however it is cut into chunks: the merge is valid and loses nothing."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from meshscrape.exposition.merge import Merger
from meshscrape.exposition.negotiate import Format
from meshscrape.exposition.scan import Scanner
from support.expositions import (
    bodies,
    check_text_structure,
    healthy_families,
    openmetrics_series,
    split,
    text_series,
)

EXAMPLES = int(os.environ.get("MESHSCRAPE_TEST_EXAMPLES", "50"))
"""Of each property; a long run takes thousands."""

cuts = st.lists(st.integers(0, 2000), max_size=6)


def merge(
    sources: list[list[bytes]], chosen: Format, dialect: Format = Format.TEXT, complete: bool = False
) -> bytes:
    merger = Merger(chosen)
    out = []
    for number, chunks in enumerate(sources):
        source = merger.source(f"application:{number}", dialect=dialect)
        out += [source.feed(chunk) for chunk in chunks]
        out.append(source.finish(complete))
    return b"".join(out) + merger.end()


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(bodies, cuts), max_size=3), st.booleans())
def test_any_bytes_become_valid_text(sources: list[tuple[bytes, list[int]]], complete: bool) -> None:
    """Random lines from several sources: another parser reads the merge, and expfmt's rules hold."""
    out = merge([split(body, places) for body, places in sources], Format.TEXT, complete=complete)
    text_series(out)
    check_text_structure(out)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(bodies, cuts), max_size=3), st.sampled_from(Format))
def test_any_bytes_become_valid_openmetrics(sources: list[tuple[bytes, list[int]]], dialect: Format) -> None:
    """The same towards OpenMetrics, from sources in either format: its strict parser reads the merge."""
    openmetrics_series(merge([split(b, c) for b, c in sources], Format.OPENMETRICS, dialect))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200), cuts, st.sampled_from(Format))
def test_binary_is_no_exception(body: bytes, places: list[int], chosen: Format) -> None:
    """Bytes that were never an exposition leave nothing behind but a valid one."""
    out = merge([split(body, places)], chosen)
    openmetrics_series(out) if chosen is Format.OPENMETRICS else text_series(out)


@settings(max_examples=EXAMPLES, deadline=None)
@given(healthy_families("m"), healthy_families("n"), cuts)
def test_healthy_sources_lose_nothing(
    first: list[tuple[str, list[str]]], second: list[tuple[str, list[str]]], places: list[int]
) -> None:
    """Sources without a name in common come through sample by sample, in both formats."""
    texts = ["".join(text for text, _ in families).encode() for families in (first, second)]
    rows = sorted(row for families in (first, second) for _, of_family in families for row in of_family)
    chunked = [split(text, places) for text in texts]
    out = merge(chunked, Format.TEXT)
    assert sorted(line for line in out.decode().split("\n") if line and line[0] != "#") == rows
    assert out == b"".join(texts)
    assert sorted(openmetrics_series(merge(chunked, Format.OPENMETRICS))) == sorted(
        text_series("".join(f"{row}\n" for row in rows).encode())
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(healthy_families("m"), healthy_families("m"), cuts)
def test_a_family_belongs_to_its_first_source(
    first: list[tuple[str, list[str]]], second: list[tuple[str, list[str]]], places: list[int]
) -> None:
    """With names in common, the first source's families are whole and the second's clashing ones are gone."""
    texts = ["".join(text for text, _ in families).encode() for families in (first, second)]
    out = merge([split(text, places) for text in texts], Format.TEXT)
    assert out.startswith(texts[0])
    names = {rows[0].split("{")[0].removesuffix("_bucket") for _, rows in first}
    own = [text for text, rows in second if rows[0].split("{")[0].removesuffix("_bucket") not in names]
    assert out == texts[0] + "".join(own).encode()


@settings(max_examples=EXAMPLES, deadline=None)
@given(bodies, cuts)
def test_chunks_do_not_matter(body: bytes, places: list[int]) -> None:
    """The samples that come through do not depend on how the transport cut the body."""
    whole, cut = merge([[body]], Format.TEXT), merge([split(body, places)], Format.TEXT)
    assert text_series(whole) == text_series(cut)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(bodies, min_size=2, max_size=4))
def test_what_was_learned_does_not_matter(several: list[bytes]) -> None:
    """A scanner that has seen other scrapes lets through exactly what a fresh one does."""
    scanner = Scanner()
    for body in several:
        experienced, fresh = Merger().source("a", scanner=scanner), Merger().source("a")
        outs = [source.feed(body) + source.finish() for source in (experienced, fresh)]
        assert text_series(outs[0]) == text_series(outs[1])
        assert experienced.malformed_lines == fresh.malformed_lines
