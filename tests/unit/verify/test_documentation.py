"""docs/verify.md and the checks are the same list."""

from __future__ import annotations

import re
from pathlib import Path

from meshscrape.istio.names import MERGED_PATH
from meshscrape.verify.registry import CHECKS
from meshscrape.verify.spellings import other_paths

PAGE = (Path(__file__).parents[3] / "docs/verify.md").read_text()


def test_every_check_has_its_section() -> None:
    """No check is undocumented, no section is about a check that is gone."""
    assert sorted(re.findall(r"^### (.+)$", PAGE, re.MULTILINE)) == sorted(CHECKS)


def test_the_number_of_paths_is_right() -> None:
    """The page says how many spellings are tried."""
    assert f"{len(other_paths(MERGED_PATH, '127.9.1.1:15091'))} other paths" in " ".join(PAGE.split())
