"""Who owns a metric family, and which other names it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.exposition.families import FamilyTable

# Each has more series names than the one before it.
KINDS = (b"gauge", b"summary", b"histogram")


@pytest.mark.parametrize("owner", [0, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_histograms_and_summaries_are_distributions_whoever_owns_them(kind: bytes, owner: int) -> None:
    """A name that is not there, and a series of a distribution, are none."""
    families = FamilyTable()
    families.add(b"x", kind, owner)
    assert families.is_distribution(b"x") is (kind != b"gauge")
    assert not families.is_distribution(b"x_sum")
    assert not families.is_distribution(b"y")


def test_a_type_widens_another_when_it_has_more_series() -> None:
    """The same type, and two without further series, do not."""
    families = FamilyTable()
    widening = {
        (known, kind) for known in (*KINDS, b"counter") for kind in KINDS if families.widens(known, kind)
    }
    assert widening == {
        (b"gauge", b"summary"), (b"gauge", b"histogram"), (b"summary", b"histogram"),
        (b"counter", b"summary"), (b"counter", b"histogram"),
    }  # fmt: skip


_NAMES = st.sampled_from([b"x", b"x_sum", b"x_count", b"x_bucket", b"x_sum_sum", b"y"])
_DECLARED = st.lists(st.tuples(_NAMES, st.sampled_from(KINDS)), max_size=4)


@given(_DECLARED, _DECLARED)
def test_all_families_at_once_are_as_one_after_the_other(
    before: list[tuple[bytes, bytes]], found: list[tuple[bytes, bytes]]
) -> None:
    """Either every name is free, of the table's and of one another's series, or nothing is recorded."""
    at_once, singly = FamilyTable(), FamilyTable()
    for table in (at_once, singly):
        for name, kind in before:
            if not table.conflicts(name, kind):
                table.add(name, kind, 0)
    known = len(singly)
    free = True
    for name, kind in found:
        free = free and not singly.conflicts(name, kind)
        singly.add(name, kind, 1)
    assert at_once.add_all(found, 1) is free
    if free:
        assert {name: at_once.get(name) for name, _ in found} == {name: (kind, 1) for name, kind in found}
    else:
        assert len(at_once) == known


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ([], [(b"x", b"summary"), (b"x_sum", b"gauge")]),
        ([], [(b"x", b"gauge"), (b"x", b"gauge")]),
        ([(b"x_bucket", b"gauge")], [(b"x", b"histogram")]),
        ([(b"x", b"summary")], [(b"x_count", b"gauge")]),
        ([(b"x", b"gauge")], [(b"x", b"gauge")]),
    ],
    ids=["series within", "twice within", "series of a new one", "series of a known one", "known"],
)
def test_names_that_are_taken_are_refused_together(
    before: list[tuple[bytes, bytes]], found: list[tuple[bytes, bytes]]
) -> None:
    """Each way in which a name can be taken."""
    families = FamilyTable()
    for name, kind in before:
        families.add(name, kind, 0)
    assert families.add_all([*found, (b"z", b"gauge")], 1) is False
    assert b"z" not in families


def test_a_summary_has_no_buckets() -> None:
    """So that name is free, also after its other series."""
    families = FamilyTable()
    families.add(b"x", b"summary", 0)
    assert not families.conflicts(b"x_bucket", b"gauge")
    assert families.add_all([(b"x_bucket", b"gauge")], 1) is True
    assert families.owners(b"x_bucket", b"gauge") == {1}
