"""Kubeconfigs that are no kubeconfigs, from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshscrape.cluster.access import find_access
from meshscrape.errors import InputError

SECRET = "c2VjcmV0"


@pytest.mark.parametrize(
    "data",
    [
        b"made: 2026-13-45\n",
        b"[" * 3000,
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*d]\n",
        b"\xff\xfe",
        f"token: '{SECRET}\n".encode(),
        f"token: !!int {SECRET}\n".encode(),
        f"token: {SECRET}: {SECRET}\n".encode(),
        f"token: *{SECRET}\n".encode(),
    ],
    ids=["date", "deep", "alias", "bytes", "unfinished", "number", "colons", "star"],
)
def test_an_unreadable_kubeconfig_is_one_line_without_its_secrets(tmp_path: Path, data: bytes) -> None:
    """Whatever the reader of YAML cannot make of it is an error of the input that names the file."""
    path = tmp_path / "config"
    path.write_bytes(data)
    with pytest.raises(InputError) as refused:
        find_access(path)
    assert str(path) in str(refused.value)
    assert SECRET not in str(refused.value)
