"""Where Prometheus is looked for, and in which order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshscrape.errors import MissingBinaryError
from meshscrape.local.binaries import ensure_prometheus, find_prometheus


def _program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_named_program_wins_over_path_and_path_over_the_cache(tmp_path: Path) -> None:
    """MESHSCRAPE_PROMETHEUS, then PATH, then what was unpacked before."""
    env = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert find_prometheus(env) is None
    cached = _program(tmp_path / "cache/meshscrape/prometheus-2.42/usr/bin/prometheus")
    found = find_prometheus(env)
    assert found is not None and (found.server, found.promtool) == (cached, None)
    tool = _program(cached.with_name("promtool"))
    found = find_prometheus(env)
    assert found is not None and found.promtool == tool
    on_path = _program(tmp_path / "bin/prometheus")
    found = find_prometheus(env)
    assert found is not None and found.server == on_path
    named = _program(tmp_path / "mine/prom")
    found = find_prometheus(env | {"MESHSCRAPE_PROMETHEUS": str(named)})
    assert found is not None and found.server == named


def test_a_half_unpacked_package_is_not_used(tmp_path: Path) -> None:
    """Only a directory that was renamed into place counts."""
    _program(tmp_path / "meshscrape/.fetch-x/root/usr/bin/prometheus")
    assert find_prometheus({"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}) is None


def test_file_that_is_not_executable_is_refused(tmp_path: Path) -> None:
    """A wrong name is not silently replaced by another Prometheus."""
    (tmp_path / "text").write_text("")
    for name in ("text", "missing"):
        with pytest.raises(MissingBinaryError, match="MESHSCRAPE_PROMETHEUS"):
            find_prometheus({"PATH": "", "MESHSCRAPE_PROMETHEUS": str(tmp_path / name)})


def test_a_failing_download_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    """apt-get's own last words are in the line; the cache stays clean."""
    for tool in ("apt-get", "dpkg"):
        _program(tmp_path / "bin" / tool).write_text("#!/bin/sh\necho E: no network >&2\nexit 100\n")
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    if find_prometheus(env) is not None:
        pytest.skip("Prometheus is installed in /usr/bin")
    with pytest.raises(MissingBinaryError, match="no network") as raised:
        asyncio.run(ensure_prometheus(env, lambda line: None))
    assert "prometheus.io/download" in str(raised.value)
    assert [path.name for path in (tmp_path / "cache/meshscrape").iterdir()] == ["prometheus.lock"]
