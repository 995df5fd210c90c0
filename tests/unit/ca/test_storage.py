"""Keys at rest: what is checked is what is read, and what several processes make at once is one key."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from meshscrape.ca import tokens
from meshscrape.ca.storage import create_key, read_key
from meshscrape.ca.tokens import TokenIssuer
from meshscrape.errors import InputError
from meshscrape.spiffe.keys import PrivateKey, generate_key, key_to_pem

PROCESSES, DIRECTORIES = 4, 5


def read_while_replaced(path: Path, mode: int, other: int) -> PrivateKey:
    """Read a key of `mode` whose name leads to another file, of mode `other`, before it has been read.

    A named pipe is held open by its reader until the writer has replaced it.
    """
    os.mkfifo(path)
    path.chmod(mode)
    key = key_to_pem(generate_key())

    def replace() -> None:
        with path.open("wb") as pipe:
            staged = path.with_name("staged")
            staged.write_bytes(key)
            staged.chmod(other)
            staged.rename(path)
            pipe.write(key)

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        return read_key(path, "the key")
    finally:
        replacing.join(10)


def test_the_mode_is_that_of_the_file_that_was_read(tmp_path: Path) -> None:
    """A key that others can read is refused although a private one has taken its name meanwhile."""
    with pytest.raises(InputError, match="mode 0644"):
        read_while_replaced(tmp_path / "key.pem", 0o644, 0o600)


def test_a_later_file_does_not_spoil_the_key_that_was_read(tmp_path: Path) -> None:
    """The other way round: what was read is private, and is taken."""
    assert read_while_replaced(tmp_path / "key.pem", 0o600, 0o644)


def test_missing_key_is_reported_in_one_line(tmp_path: Path) -> None:
    """What, where, and what to do."""
    with pytest.raises(InputError, match=f"{tmp_path}.*cannot read the key: No such file"):
        read_key(tmp_path / "key.pem", "the key")


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    """The second one to make a key finds the first one's, mode 0600, and leaves nothing behind."""
    path, first = tmp_path / "key.pem", generate_key()
    create_key(path, first)
    create_key(path, generate_key())
    assert read_key(path, "the key").public_key() == first.public_key()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["key.pem"]


def test_concurrent_processes_share_one_issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has made key and key set between looking for the key and making it."""
    others: list[TokenIssuer] = []

    def meanwhile() -> PrivateKey:
        monkeypatch.undo()
        others.append(TokenIssuer.load_or_create(tmp_path))
        return generate_key()

    monkeypatch.setattr(tokens, "generate_key", meanwhile)
    made = TokenIssuer.load_or_create(tmp_path)
    assert made.jwks() == others[0].jwks() == json.loads((tmp_path / "jwks.json").read_bytes())


def make_issuers(directory: Path, barrier: Barrier) -> None:
    """One process: an issuer in each directory, at the same moment as the others; leaves what it got."""
    for number in range(DIRECTORIES):
        barrier.wait(20)
        made = TokenIssuer.load_or_create(directory / str(number))
        (directory / f"{number}-{os.getpid()}").write_text(json.dumps(made.jwks()))


def test_processes_at_once_have_one_key_set(tmp_path: Path) -> None:
    """Every process signs with the key that jwks.json publishes."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    started = [context.Process(target=make_issuers, args=(tmp_path, barrier)) for _ in range(PROCESSES)]
    for each in started:
        each.start()
    for each in started:
        each.join(30)
    assert [each.exitcode for each in started] == [0] * PROCESSES
    for number in range(DIRECTORIES):
        published = json.loads((tmp_path / str(number) / "jwks.json").read_bytes())
        got = [json.loads(each.read_bytes()) for each in tmp_path.glob(f"{number}-*")]
        assert got == [published] * PROCESSES
