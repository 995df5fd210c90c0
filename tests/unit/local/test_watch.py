"""A file's changes are noticed by content, once each."""

from __future__ import annotations

import os
from pathlib import Path

from meshscrape.local.watch import FileWatch


def _noticed(watch: FileWatch) -> bool:
    return [watch.changed(), watch.changed(), watch.changed()] == [False, True, False]


def test_new_content_is_a_change_once(tmp_path: Path) -> None:
    """Written in place or replaced by rename; a second look says no."""
    path = tmp_path / "mesh.yaml"
    path.write_text("a")
    watch = FileWatch(path)
    assert not watch.changed()
    path.write_text("bb")
    assert _noticed(watch) and not _noticed(watch)
    staged = tmp_path / "new"
    staged.write_text("cc")
    staged.rename(path)
    assert _noticed(watch) and not _noticed(watch)


def test_a_file_that_is_still_being_written_is_not_used_yet(tmp_path: Path) -> None:
    """Only when two looks in a row see the same file is it taken as whole."""
    path = tmp_path / "mesh.yaml"
    path.write_text("a")
    watch = FileWatch(path)
    for text in ("b", "bc", "bcd"):
        path.write_text(text)
        assert not watch.changed()
    assert watch.changed()


def test_touching_or_missing_is_no_change(tmp_path: Path) -> None:
    """Editors that remove and write again, and tools that touch, do not restart anything."""
    path = tmp_path / "mesh.yaml"
    path.write_text("a")
    watch = FileWatch(path)
    os.utime(path, ns=(1, 1))
    assert not _noticed(watch)
    path.unlink()
    assert not _noticed(watch)
    path.write_text("a")
    assert not _noticed(watch)
