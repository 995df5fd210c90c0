"""Following a file: what counts as a change, and what stays in use when a change cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshscrape.errors import InputError
from meshscrape.system.files import UNREADABLE, read_input
from meshscrape.system.followed import FollowedFile


def _number(data: bytes, where: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise InputError("this is not a number", where=where) from None


def _replace(path: Path, text: str) -> None:
    staged = path.with_name("staged")
    staged.write_text(text)
    os.rename(staged, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the number 1."""
    path = tmp_path / "number"
    path.write_text("1")
    return path


@pytest.fixture
def followed(path: Path) -> FollowedFile[int]:
    """The file, read once."""
    followed = FollowedFile(path, "the number", _number)
    assert followed.read() == 1
    return followed


def test_a_change_is_noticed_once(path: Path, followed: FollowedFile[int]) -> None:
    """A new content is a change at one look; the same content in a new file is none."""
    assert not followed.changed()
    _replace(path, "2")
    assert followed.changed() and followed.value == 2
    assert not followed.changed()
    _replace(path, "2")
    assert not followed.changed()


def test_an_unusable_content_changes_nothing(path: Path, followed: FollowedFile[int]) -> None:
    """The last value stays; the problem is counted once, and cleared by a usable content, the old one too."""
    for text in ("two", "zwei"):
        _replace(path, text)
        assert not followed.changed() and not followed.changed()
    assert (followed.value, followed.problem.count, followed.problem.error is None) == (1, 1, False)
    _replace(path, "1")
    assert not followed.changed()
    assert followed.problem.error is None


def test_a_missing_file_changes_nothing(path: Path, followed: FollowedFile[int]) -> None:
    """The very same file is used again when it is back."""
    aside = path.rename(path.with_name("aside"))
    assert not followed.changed() and not followed.changed()
    assert followed.problem.count == 1
    assert followed.problem.error and followed.problem.error.code == UNREADABLE
    aside.rename(path)
    assert not followed.changed()
    assert followed.problem.error is None


def test_a_file_that_is_being_written_is_left_alone(path: Path) -> None:
    """With `settled`, only a file that two looks in a row have seen counts."""
    followed = FollowedFile(path, "the number", _number, settled=True)
    followed.read()
    _replace(path, "2")
    assert not followed.changed()
    _replace(path, "23")
    assert not followed.changed()
    assert followed.changed() and followed.value == 23
    path.unlink()
    assert not followed.changed() and followed.problem.error is None
    assert not followed.changed() and followed.problem.error is not None


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "socket directory of /proc"])
def test_only_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    """A pipe without a writer, a device and a directory are refused at once."""
    path = {
        "pipe": tmp_path / "pipe",
        "device": Path("/dev/zero"),
        "directory": tmp_path,
        "socket directory of /proc": Path("/proc/self/fd"),
    }[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError) as caught:
        read_input(path, "the targets")
    assert (caught.value.where, caught.value.code) == (str(path), "")


def test_a_pipe_in_the_place_of_a_followed_file_changes_nothing(
    path: Path, followed: FollowedFile[int]
) -> None:
    """It is refused at each look, and the file is used again when it is back."""
    path.unlink()
    os.mkfifo(path)
    assert not followed.changed()
    assert (followed.value, followed.problem.count) == (1, 1)
    path.unlink()
    path.write_text("2")
    assert followed.changed() and followed.value == 2


def test_a_file_that_is_too_long_is_refused(path: Path) -> None:
    """The bound is exact, and the memory that it costs is bounded, too."""
    path.write_bytes(b"1" * 10)
    assert read_input(path, "the number", 10) == b"1" * 10
    with pytest.raises(InputError):
        read_input(path, "the number", 9)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError):
        read_input(path, "the number")
