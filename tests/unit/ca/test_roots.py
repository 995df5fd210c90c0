"""The roots on disk: a stop between any two writes leaves a CA that signs as before or as after."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshscrape.ca.authority import Authority, open_own
from meshscrape.ca.roots import RotationRecord, held_record, open_present, published_bundle, read_rotation
from meshscrape.ca.rotation import Rotation, RotationStage
from meshscrape.errors import InputError
from meshscrape.spiffe.bundles import is_issued_by
from meshscrape.spiffe.certificates import fingerprint
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import generate_key

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DOMAIN = "cluster.local"
KEY = generate_key().public_key()


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[str]]:
    """End at the `number`-th change of a directory, before it is made; the list has those that were made."""
    made: list[str] = []

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **named: Any) -> Any:
            if len(made) == number:
                raise Killed
            made.append(real.__name__)
            return real(*arguments, **named)

        return change

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield made


def present(directory: Path) -> tuple[str, list[str]]:
    """What the CA that starts now signs with and trusts, proven by a certificate."""
    authority = open_present(directory, DOMAIN, NOW)
    leaf = authority.issue(KEY, workload_id(DOMAIN, "demo", "web"), NOW, timedelta(hours=1))
    assert is_issued_by(leaf, authority.anchor)
    return fingerprint(authority.anchor), [fingerprint(each) for each in authority.signer.roots]


def at_stage(directory: Path, stage: RotationStage | None, *, abort: bool = False) -> Rotation | None:
    """A CA's directory with a rotation at this stage."""
    directory.mkdir(exist_ok=True)
    open_own(directory, DOMAIN, NOW)
    if stage is None:
        return None
    with held_record(directory) as record:
        rotation = record.begin(NOW)
        if abort:
            rotation = rotation.aborted()
        while rotation.stage is not stage:
            rotation = rotation.advanced()
        record.write(rotation)
    return rotation


@pytest.mark.parametrize("stage", list(RotationStage))
def test_a_ca_starts_as_its_record_says(tmp_path: Path, stage: RotationStage) -> None:
    """In every stage the signer and the bundle are those of the state machine."""
    rotation = at_stage(tmp_path, stage)
    assert rotation is not None
    assert present(tmp_path) == (rotation.signing, list(rotation.trusted))
    assert read_rotation(tmp_path) == rotation


def test_kill_at_the_begin_of_a_rotation_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the record is there the old root stands alone; beginning again then works."""
    at_stage(tmp_path, None)
    before = present(tmp_path)
    for number in range(10):
        with held_record(tmp_path) as record, killed_at(monkeypatch, number) as made:
            try:
                rotation = record.begin(NOW)
                break
            except Killed:
                pass
        assert len(made) == number
        assert present(tmp_path) == before
        assert read_rotation(tmp_path) is None
    assert number >= 3
    assert present(tmp_path) == (rotation.signing, list(rotation.trusted))


@pytest.mark.parametrize("abort", [False, True])
def test_kill_at_the_end_of_a_rotation_is_completed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abort: bool
) -> None:
    """Between any two renames a CA starts with the new root alone, and finishing again gets to the end."""
    for number in range(20):
        directory = tmp_path / str(number)
        rotation = at_stage(directory, RotationStage.FINISH, abort=abort)
        assert rotation is not None
        with held_record(directory) as record, killed_at(monkeypatch, number):
            try:
                record.finish(rotation)
                done = True
            except Killed:
                done = False
        assert present(directory) == (rotation.new, [rotation.new])
        if done:
            break
        with held_record(directory) as record:
            record.finish(rotation)
        assert read_rotation(directory) is None
        assert present(directory) == (rotation.new, [rotation.new])
    assert done and number >= 3


def test_the_old_key_is_gone_afterwards(tmp_path: Path) -> None:
    """Neither root of a finished rotation leaves a second private key behind."""
    rotation = at_stage(tmp_path, RotationStage.FINISH)
    old = (tmp_path / "ca-key.pem").read_bytes()
    assert rotation is not None
    with held_record(tmp_path) as record:
        record.finish(rotation)
    keys = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert keys == [tmp_path / "ca-key.pem"]
    assert keys[0].read_bytes() != old
    assert keys[0].stat().st_mode & 0o777 == 0o600


def test_keys_of_a_rotation_are_private(tmp_path: Path) -> None:
    """The new root's key is 0600 in a directory that is 0700 from the start."""
    at_stage(tmp_path, RotationStage.DISTRIBUTE)
    assert (tmp_path / "rotation").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "rotation" / "ca-key.pem").stat().st_mode & 0o777 == 0o600


def test_second_rotating_process_is_refused(tmp_path: Path) -> None:
    """A second one is told which process does so already."""
    at_stage(tmp_path, None)
    refusal = pytest.raises(InputError, match=f"already runs here.*{os.getpid()}")
    with held_record(tmp_path), refusal, held_record(tmp_path):
        pass


def test_a_directory_without_a_root_of_its_own_is_refused(tmp_path: Path) -> None:
    """An operator's CA has its root elsewhere."""
    with pytest.raises(InputError, match="no CA with its own root"), held_record(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ca-cert.pem", "ca-key.pem"])
def test_lost_file_is_named_and_not_replaced(tmp_path: Path, name: str) -> None:
    """A CA in a rotation whose new root is gone does not start with a root of its own invention."""
    at_stage(tmp_path, RotationStage.ISSUE)
    (tmp_path / "rotation" / name).unlink()
    with pytest.raises(InputError, match="missing"):
        open_present(tmp_path, DOMAIN, NOW)


def test_another_trust_domain_is_refused_in_a_rotation_too(tmp_path: Path) -> None:
    """The new root says whose it is."""
    at_stage(tmp_path, RotationStage.ISSUE)
    with pytest.raises(InputError, match="not of example"):
        open_present(tmp_path, "example.org", NOW)


def test_the_published_bundle_is_read_in_its_order(tmp_path: Path) -> None:
    """That is how it is known which stage the CA has taken over."""
    assert published_bundle(tmp_path) == ()
    rotation = at_stage(tmp_path, RotationStage.ISSUE)
    assert rotation is not None
    authority: Authority = open_present(tmp_path, DOMAIN, NOW)
    (tmp_path / "root-cert.pem").write_bytes(authority.bundle_pem)
    assert published_bundle(tmp_path) == rotation.trusted


def test_finishing_too_early_is_a_mistake(tmp_path: Path) -> None:
    """The old key goes only in the last stage."""
    rotation = at_stage(tmp_path, RotationStage.WITHDRAW)
    assert rotation is not None
    with pytest.raises(ValueError, match="last stage"):
        RotationRecord(tmp_path).finish(rotation)
