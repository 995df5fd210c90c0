"""Upstream data for tests: CustomResourceDefinitions, sample manifests, pods as Istio's injector writes them.

`make upstream` takes them from Go modules into `.cache/upstream`; MESHSCRAPE_UPSTREAM names another one.
Nothing of them is in the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("MESHSCRAPE_UPSTREAM") or Path(__file__).parents[2] / ".cache/upstream")
CRDS = ROOT / "crds"
SAMPLES = ROOT / "samples"
INJECTED = SAMPLES / "injected"
ABSENT = "needs upstream data"

needs_upstream = pytest.mark.skipif(not (CRDS.is_dir() and SAMPLES.is_dir()), reason=ABSENT)


def sample_files() -> list[Path]:
    """Return every sample manifest, sorted; one path that does not exist where there are none.

    A test parametrized with the result is then reported as skipped instead of not being there at all.
    """
    return sorted(SAMPLES.rglob("*.yaml")) or [SAMPLES / "absent.yaml"]
