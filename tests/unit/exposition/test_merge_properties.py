"""Whatever sources say, however it is cut into chunks: the merge is valid and loses nothing."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from meshscrape.exposition.grammar import parse_metadata, parse_sample
from meshscrape.exposition.merge import Merger
from meshscrape.exposition.scan import Mender
from support.expositions import (
    bodies,
    check_text_structure,
    healthy_families,
    split,
    text_series,
)

EXAMPLES = int(os.environ.get("MESHSCRAPE_TEST_EXAMPLES", "50"))
"""Of each property; a long run takes thousands."""

cuts = st.lists(st.integers(0, 2000), max_size=6)


def merge(sources: list[list[bytes]], complete: bool = False) -> bytes:
    merger = Merger()
    out = []
    for number, chunks in enumerate(sources):
        source = merger.source(f"application:{number}")
        out += [source.feed(chunk) for chunk in chunks]
        out.append(source.finish(complete))
    return b"".join(out)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(bodies, cuts), max_size=3), st.booleans())
def test_any_bytes_become_valid_text(sources: list[tuple[bytes, list[int]]], complete: bool) -> None:
    """Random lines from several sources: another parser reads the merge, and expfmt's rules hold."""
    out = merge([split(body, places) for body, places in sources], complete)
    text_series(out)
    check_text_structure(out)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200), cuts)
def test_binary_input_becomes_valid_text(body: bytes, places: list[int]) -> None:
    """Bytes that were never an exposition leave nothing behind but a valid one."""
    text_series(merge([split(body, places)]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(healthy_families("m"), healthy_families("n"), cuts)
def test_healthy_sources_lose_nothing(
    first: list[tuple[str, list[str]]], second: list[tuple[str, list[str]]], places: list[int]
) -> None:
    """Sources without a name in common come through byte by byte."""
    texts = ["".join(text for text, _ in families).encode() for families in (first, second)]
    rows = sorted(row for families in (first, second) for _, of_family in families for row in of_family)
    chunked = [split(text, places) for text in texts]
    out = merge(chunked)
    assert sorted(line for line in out.decode().split("\n") if line and line[0] != "#") == rows
    assert out == b"".join(texts)


@settings(max_examples=EXAMPLES, deadline=None)
@given(healthy_families("m"), healthy_families("m"), cuts)
def test_a_family_belongs_to_its_first_source(
    first: list[tuple[str, list[str]]], second: list[tuple[str, list[str]]], places: list[int]
) -> None:
    """With names in common, the first source's families are whole and the second's clashing ones are gone."""
    texts = ["".join(text for text, _ in families).encode() for families in (first, second)]
    out = merge([split(text, places) for text in texts])
    assert out.startswith(texts[0])
    names = {rows[0].split("{")[0].removesuffix("_bucket") for _, rows in first}
    own = [text for text, rows in second if rows[0].split("{")[0].removesuffix("_bucket") not in names]
    assert out == texts[0] + "".join(own).encode()


@settings(max_examples=EXAMPLES, deadline=None)
@given(bodies, cuts)
def test_chunks_do_not_matter(body: bytes, places: list[int]) -> None:
    """The samples that come through do not depend on how the transport cut the body."""
    whole, cut = merge([[body]]), merge([split(body, places)])
    assert text_series(whole) == text_series(cut)


PARTS = [
    *' \t{}=,"\\#a1',
    "  ",
    '="',
    '",',
    "} ",
    "{a",
    "# TYPE a",
    "# HELP a",
    " gauge",
    " unknown",
    "b=",
    '"c"',
    "# ",
    " 1",
]


@settings(max_examples=10 * EXAMPLES, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14), st.booleans())
def test_a_line_is_mended_as_its_parser_reads_it(parts: list[str], almost_valid: bool) -> None:
    """The patterns that mend whole chunks agree with the parser of one line, about spaces anywhere."""
    line = "".join(parts)
    if almost_valid:
        line = 'a{b="c",d="e"} 1'[: len(parts)] + line + 'a{b="c",d="e"} 1'[len(parts) :]
    # Backslashes are doubled before lines are parsed.
    raw = line.encode()
    canonical, malformed = Mender().canonical(raw + b"\n")
    bare = raw.strip(b" \t")
    if "\\" in line or not bare:
        return
    if bare.startswith(b"#"):
        read = parse_metadata(bare)
        again = parse_metadata(canonical[:-1])
        comment = not canonical and not malformed
        assert comment or (read is None) == (again is None) == bool(malformed)
        assert read is None or again is None or (read.keyword, read.name) == (again.keyword, again.name)
        return
    sample = parse_sample(raw)
    assert (sample is None) == bool(malformed)
    assert sample is None or parse_sample(canonical[:-1]) == sample
