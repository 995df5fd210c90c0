"""Atomic files, published directories, private directories and their lock."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.system.files import (
    DirectoryLock,
    private_dir,
    publish,
    read_input,
    remove_staged,
    write_atomic,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_write_atomic_replaces_content_and_mode(tmp_path: Path) -> None:
    """The new content and mode are there whatever the old file had, and nothing else is."""
    path = tmp_path / "key.pem"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600
    assert names(tmp_path) == {"key.pem"}


def test_write_atomic_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    """A target that cannot be replaced is an error naming it, and the staged file is gone."""
    target = tmp_path / "taken"
    (target / "inner").mkdir(parents=True)
    with pytest.raises(MeshscrapeError, match="taken: cannot write"):
        write_atomic(target, b"data")
    assert names(tmp_path) == {"taken"}


def test_write_atomic_replaces_a_link_instead_of_following_it(tmp_path: Path) -> None:
    """A link planted in the directory does not redirect the secret to its target."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    link = tmp_path / "key.pem"
    link.symlink_to(elsewhere)
    write_atomic(link, b"secret")
    assert elsewhere.read_bytes() == b"untouched"
    assert not link.is_symlink()


def test_publish_gives_files_through_one_link(tmp_path: Path) -> None:
    """Every name leads through `..data`; files are 0600 and directories 0700 by default."""
    directory = tmp_path / "credentials"
    publish(directory, {"cert.pem": b"c", "key.pem": b"k"})
    assert os.readlink(directory / "key.pem") == "..data/key.pem"
    assert (directory / "cert.pem").read_bytes() == b"c"
    assert mode(directory / "key.pem") == 0o600
    assert mode(directory) == mode(directory / "..data") == 0o700


def test_publish_lets_the_group_in_with_its_mode(tmp_path: Path) -> None:
    """Files of mode 0640 are of use to the group only in directories that it can enter."""
    directory = tmp_path / "output"
    publish(directory, {"key.pem": b"k"}, 0o640)
    assert mode(directory / "key.pem") == 0o640
    assert mode(directory) == mode(directory / "..data") == 0o750


def test_publish_keeps_at_most_one_former_generation(tmp_path: Path) -> None:
    """Old keys do not pile up, however often it publishes."""
    for number in range(5):
        publish(tmp_path / "d", {"key.pem": b"%d" % number})
    generations = [name for name in names(tmp_path / "d") if name.startswith("..gen-")]
    assert len(generations) == 2
    assert (tmp_path / "d" / "key.pem").read_bytes() == b"4"


def test_publish_replaces_plain_files_of_the_same_name(tmp_path: Path) -> None:
    """A file written by hand under a published name gives way to the link."""
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "key.pem").write_bytes(b"by hand")
    publish(directory, {"key.pem": b"k"})
    assert (directory / "key.pem").read_bytes() == b"k"


def test_publish_removes_links_to_files_no_longer_published(tmp_path: Path) -> None:
    """A name that is gone leaves no dangling link; files and links of the user's own stay."""
    publish(tmp_path, {"key.pem": b"k", "scrapers.pem": b"s"})
    (tmp_path / "own").symlink_to("key.pem")
    publish(tmp_path, {"key.pem": b"k"})
    assert not (tmp_path / "scrapers.pem").is_symlink()
    assert (tmp_path / "own").read_bytes() == b"k"


def test_publish_never_shows_a_mixture(tmp_path: Path) -> None:
    """A reader that resolves `..data` once sees files of one generation, while generations change."""
    directory = tmp_path / "d"
    publish(directory, {"a": b"0", "b": b"0"})
    mixtures: list[tuple[bytes, bytes]] = []
    done = threading.Event()
    looks = 0

    def read() -> None:
        nonlocal looks
        while not done.is_set() or not looks:
            with contextlib.suppress(FileNotFoundError):  # two generations behind: look again
                held = os.open(directory / "..data", os.O_PATH | os.O_DIRECTORY)
                try:
                    base = Path(f"/proc/self/fd/{held}")
                    seen = (base / "a").read_bytes(), (base / "b").read_bytes()
                finally:
                    os.close(held)
                looks += 1
                if seen[0] != seen[1]:
                    mixtures.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        publish(directory, {"a": b"%d" % number, "b": b"%d" % number})
    done.set()
    reader.join()
    assert looks
    assert not mixtures


def test_failed_publish_keeps_the_current_files(tmp_path: Path) -> None:
    """A name that cannot be written fails the whole, with the former generation still served."""
    directory = tmp_path / "d"
    publish(directory, {"key.pem": b"old"})
    before = names(directory)
    with pytest.raises(MeshscrapeError, match="cannot write"):
        publish(directory, {"key.pem": b"new", "no/such/dir": b""})
    assert (directory / "key.pem").read_bytes() == b"old"
    assert names(directory) == before


def test_publish_resists_the_directorys_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link put in the new generation's place gets neither the secret nor a change of its target's mode."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    make = tempfile.mkdtemp

    def make_and_swap(**where: Any) -> str:
        made = str(make(**where))
        os.rename(made, tmp_path / "stolen")
        os.symlink(elsewhere, made)
        return made

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_swap)
    with pytest.raises(MeshscrapeError, match="cannot write"):
        publish(tmp_path / "d", {"key.pem": b"secret"})
    assert names(elsewhere) == set()
    assert mode(elsewhere) == 0o755


def test_read_input_names_what_and_where(tmp_path: Path) -> None:
    """The error says which of the user's files is missing and what it is for."""
    with pytest.raises(InputError, match=r"gone\.pem: cannot read the CA's root.*check the path"):
        read_input(tmp_path / "gone.pem", "the CA's root")


def test_private_dir_narrows_a_wide_directory(tmp_path: Path) -> None:
    """A directory that others could enter is closed before anything is put into it."""
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    private_dir(path)
    assert mode(path) == 0o700


def test_private_dir_refuses_a_link_and_a_file(tmp_path: Path) -> None:
    """Neither a link to a directory nor a file is taken for the directory itself."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file"):
        with pytest.raises(InputError, match="is not a directory"):
            private_dir(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_private_dir_refuses_a_directory_of_another_user(tmp_path: Path) -> None:
    """Whoever owns the directory could swap the keys in it."""
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, 12345, 12345)
    with pytest.raises(InputError, match="belongs to user 12345"):
        private_dir(path)


def test_directory_lock_has_one_holder(tmp_path: Path) -> None:
    """A second holder is refused and told the first one's pid; after release the directory is free."""
    first = DirectoryLock(tmp_path, "an agent")
    assert DirectoryLock.owner(tmp_path) == os.getpid()
    with pytest.raises(InputError, match=rf"an agent already runs here \(pid {os.getpid()}\)"):
        DirectoryLock(tmp_path, "an agent")
    with pytest.raises(InputError, match=r"with --state$"):
        DirectoryLock(tmp_path, "a mesh", "--state")
    first.release()
    assert DirectoryLock.owner(tmp_path) is None
    DirectoryLock(tmp_path, "an agent").release()
    assert not names(tmp_path)


def test_staged_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    """Half-written files and directories go; what is published, and the user's own files, stay."""
    publish(tmp_path, {"key.pem": b"k"})
    staged = tmp_path / ".key.pem.ab_cd123"
    staged.write_bytes(b"half")
    generation = tmp_path / "..gen-half"
    generation.mkdir()
    (generation / "key.pem").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"the user's")
    remove_staged(tmp_path)
    assert not staged.exists()
    assert not generation.exists()
    assert (tmp_path / "key.pem").read_bytes() == b"k"
    assert (tmp_path / ".hidden").exists()


def test_publish_into_a_volume_of_another_user(tmp_path: Path) -> None:
    """A writable directory of somebody else (a volume) keeps its mode; what is put in is closed."""
    directory = tmp_path / "volume"
    directory.mkdir()
    directory.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(directory, 12345, 12345)
    publish(directory, {"key.pem": b"k"})
    assert mode(directory) == (0o777 if os.geteuid() == 0 else 0o700)
    assert mode(directory / "..data") == 0o700
