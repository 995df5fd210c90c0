"""What the scrape proxy waits for at its start, and what it does not wait for."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from meshscrape.errors import InputError
from meshscrape.proxy.options import await_credentials
from meshscrape.system.files import UNREADABLE
from support.ca import TestCa


def test_waits_for_files_that_are_missing(tmp_path: Path) -> None:
    """The agent may bring the files after the proxy has started."""
    directory = tmp_path / "credentials"

    async def scenario() -> dict[str, Path]:
        waiting = asyncio.create_task(await_credentials([("", directory)], 20))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        TestCa().workload("istio-system", "prometheus").write(directory)
        return await waiting

    assert asyncio.run(scenario()) == {"cluster.local": directory}


def test_does_not_wait_for_files_that_can_never_be_used(tmp_path: Path) -> None:
    """A malformed bundle is an error at once, however long the proxy would wait for a missing one."""
    directory = TestCa().workload("istio-system", "prometheus").write(tmp_path / "credentials")
    (directory / "root-cert.pem").write_text("junk")
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        asyncio.run(await_credentials([("", directory)], 60))
    assert caught.value.code != UNREADABLE
    assert time.monotonic() - began < 30


def test_logs_once_which_files_it_waits_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mistyped directory must not be a silent wait."""
    caplog.set_level("INFO")
    with pytest.raises(InputError):
        asyncio.run(await_credentials([("", tmp_path / "typo")], 0.5))
    assert [str(tmp_path / "typo") in record.getMessage() for record in caplog.records] == [True]


def test_gives_up_on_missing_files_in_the_end(tmp_path: Path) -> None:
    """The error says that the files cannot be read."""
    with pytest.raises(InputError) as caught:
        asyncio.run(await_credentials([("", tmp_path)], 0.1))
    assert caught.value.code == UNREADABLE
