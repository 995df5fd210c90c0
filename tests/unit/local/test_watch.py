"""A file's changes are noticed by content, once each."""

from __future__ import annotations

import os
from pathlib import Path

from meshscrape.local.watch import FileWatch


def test_new_content_is_a_change_once(tmp_path: Path) -> None:
    """Written in place or replaced by rename; a second look says no."""
    path = tmp_path / "mesh.yaml"
    path.write_text("a")
    watch = FileWatch(path)
    assert not watch.changed()
    path.write_text("bb")
    assert watch.changed() and not watch.changed()
    staged = tmp_path / "new"
    staged.write_text("cc")
    staged.rename(path)
    assert watch.changed() and not watch.changed()


def test_touching_or_missing_is_no_change(tmp_path: Path) -> None:
    """Editors that remove and write again, and tools that touch, do not restart anything."""
    path = tmp_path / "mesh.yaml"
    path.write_text("a")
    watch = FileWatch(path)
    os.utime(path, ns=(1, 1))
    assert not watch.changed()
    path.unlink()
    assert not watch.changed()
    path.write_text("a")
    assert not watch.changed()
