"""The state directory: private, one mesh at a time, cleaned after one that was killed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.local.state import (
    NotRunningError,
    StateDirectory,
    default_state_path,
    hold_state,
    read_status,
)


def test_only_the_ca_outlives_a_run(tmp_path: Path) -> None:
    """What a run leaves is its CA; what a killed one left is removed by the next."""
    state = StateDirectory(tmp_path / "state")
    state.run.mkdir(parents=True)
    (state.run / "stale").write_text("")
    state.status_file.write_text("{}")
    state.ca.mkdir()
    with hold_state(state.path) as held:
        assert not (held.run / "stale").exists() and not held.status_file.exists()
        assert stat.S_IMODE(held.path.stat().st_mode) == 0o700
        held.publish({"phase": "Ready"})
    assert [path.name for path in state.path.iterdir()] == ["ca"]


def test_a_held_directory_is_refused_with_the_holders_pid(tmp_path: Path) -> None:
    """A second mesh is told who is there."""
    path = tmp_path / "state"
    with hold_state(path), pytest.raises(InputError, match=str(os.getpid())), hold_state(path):
        pass


def test_status_needs_a_running_mesh(tmp_path: Path) -> None:
    """A document that a killed mesh left is not shown as if it were running."""
    path = tmp_path / "state"
    path.mkdir()
    (path / "status.json").write_text('{"phase": "Ready"}')
    with pytest.raises(NotRunningError):
        read_status(path)
    with hold_state(path) as state:
        with pytest.raises(UnavailableError):
            read_status(path)
        state.publish({"phase": "Starting"})
        assert read_status(path) == {"phase": "Starting"}


def test_asking_for_the_status_does_not_keep_a_mesh_from_starting(tmp_path: Path) -> None:
    """The look at the lock is over at once."""
    with pytest.raises(NotRunningError):
        read_status(tmp_path)
    with hold_state(tmp_path):
        pass


def test_file_in_place_of_the_state_directory_is_refused(tmp_path: Path) -> None:
    """--state names a directory."""
    (tmp_path / "state").write_text("")
    with pytest.raises(MeshscrapeError), hold_state(tmp_path / "state"):
        pass


def test_default_place_follows_the_xdg_convention() -> None:
    """XDG_STATE_HOME, else ~/.local/state."""
    assert default_state_path({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/meshscrape")
    assert default_state_path({"HOME": "/h"}) == Path("/h/.local/state/meshscrape")


def test_directory_of_another_user_is_left_alone(tmp_path: Path) -> None:
    """A mistyped --state neither empties a directory nor changes its mode."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("kept")
    (tmp_path / "notes.txt").write_text("kept")
    tmp_path.chmod(0o755)
    with (
        pytest.raises(InputError, match=r"'notes\.txt'.*not a state directory.*--state"),
        hold_state(tmp_path),
    ):
        raise AssertionError("it was taken")
    assert (tmp_path / "run" / "precious").read_text() == "kept"
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_files_of_a_killed_up_are_removed(tmp_path: Path) -> None:
    """A half-written status document and the last run go; the CA's keys stay."""
    (tmp_path / "ca").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    (tmp_path / ".status.json.abcd1234").touch()
    with hold_state(tmp_path) as state:
        assert not list(state.run.iterdir())
    assert [entry.name for entry in tmp_path.iterdir()] == ["ca"]


def test_a_link_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    """What a link named `run` leads to is not emptied; the error names the link."""
    state, elsewhere = StateDirectory(tmp_path / "state"), tmp_path / "elsewhere"
    for directory in (state.path, elsewhere):
        directory.mkdir(mode=0o700)
    (elsewhere / "kept").write_text("")
    state.run.symlink_to(elsewhere)
    with pytest.raises(InputError) as caught, hold_state(state.path):
        pass
    assert caught.value.where == str(state.run)
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize("content", ["a pipe", "junk"])
def test_malformed_status_is_refused_at_once(tmp_path: Path, content: str) -> None:
    """A named pipe in the place of the status does not keep the reader waiting; junk is an error, too."""
    with hold_state(tmp_path / "state") as state:
        if content == "junk":
            state.status_file.write_text("[{")
        else:
            os.mkfifo(state.status_file)
        with pytest.raises(InputError) as caught:
            read_status(state.path)
        assert caught.value.where == str(state.status_file)
