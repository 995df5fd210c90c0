"""Credentials on disk, and in memory while the disk takes nothing."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from meshscrape.agent.issued import Issued
from meshscrape.agent.publication import Places, Publication
from meshscrape.system.files import publish

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def _issued(serial: int) -> Issued:
    text = str(serial).encode()
    return Issued(b"key" + text, b"chain" + text, b"roots", serial, NOW + timedelta(hours=1), NOW)


def test_generation_in_memory_is_removed_at_the_end(tmp_path: Path) -> None:
    """Nothing of the key stays behind in memory after an orderly end; the disk's files stay."""
    directory = tmp_path / "credentials"
    files = {"cert-chain.pem": b"chain", "key.pem": b"key", "root-cert.pem": b"roots"}
    publish(directory, files, in_memory=True)
    held = Path(os.readlink(directory / "..data"))
    assert held.is_dir() and (directory / "key.pem").read_bytes() == b"key"
    Publication(Places(directory)).close()
    assert not held.exists()
    publish(directory, files)
    Publication(Places(directory)).close()
    assert (directory / "key.pem").read_bytes() == b"key"


def test_the_next_certificate_replaces_the_one_in_memory(tmp_path: Path) -> None:
    """When the disk takes files again, they are there, and nothing is left in memory."""
    directory = tmp_path / "credentials"
    publish(directory, {"cert-chain.pem": b"old"}, in_memory=True)
    held = Path(os.readlink(directory / "..data"))
    publication = Publication(Places(directory))
    publication.publish(_issued(7), b"")
    assert publication.in_use is not None and publication.in_use.serial == 7
    assert not held.exists()
    assert not os.path.isabs(os.readlink(directory / "..data"))


def test_link_of_another_user_removes_nothing(tmp_path: Path) -> None:
    """Whoever owns the directory around it can point `..data` anywhere: what is no generation stays."""
    directory, precious = tmp_path / "credentials", tmp_path / "precious"
    directory.mkdir()
    precious.mkdir()
    (precious / "file").write_text("")
    (directory / "..data").symlink_to(precious)
    Publication(Places(directory)).close()
    publish(directory, {"key.pem": b"key"})
    assert (precious / "file").exists()
