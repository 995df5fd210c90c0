"""The names of objects in texts."""

from __future__ import annotations

import pytest

from meshscrape.observe.references import first


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more"), (6, "0, 1, 2 and 3 more")],
)
def test_names_the_first_of_several_things(count: int, text: str) -> None:
    assert first(range(count), 3) == text
