"""Find Prometheus on PATH, or fetch it as Debian's package.

Debian's `prometheus` package is only unpacked into the cache, not installed: it needs no root and starts no
service. `python -m meshscrape.local.binaries` fetches it in advance and prints its path.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from meshscrape.errors import MeshscrapeError, MissingBinaryError
from meshscrape.istio.names import MESHSCRAPE_PROMETHEUS, MESHSCRAPE_PROMTOOL
from meshscrape.system.processes import spawn

Progress = Callable[[str], None]

PACKAGE = "prometheus"
REMEDY = (
    "install Prometheus (https://prometheus.io/download/) and put it on PATH, "
    "or name the file in MESHSCRAPE_PROMETHEUS"
)
APT_BOUND = 300.0


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The paths of the two programs; `promtool` is None if only the server was found."""

    server: Path
    promtool: Path | None


def cache_directory(env: Mapping[str, str]) -> Path:
    """Return `$XDG_CACHE_HOME/meshscrape`, by default `~/.cache/meshscrape`."""
    base = env.get("XDG_CACHE_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".cache")
    return Path(base) / "meshscrape"


def find_prometheus(env: Mapping[str, str]) -> Prometheus | None:
    """Return the Prometheus named by MESHSCRAPE_PROMETHEUS, on PATH or in the cache; None without one.

    MESHSCRAPE_PROMTOOL names promtool. Without it, promtool is searched next to the server and on PATH.
    """
    server = _named(env, MESHSCRAPE_PROMETHEUS) or _which("prometheus", env) or _cached(env)
    if server is None:
        return None
    promtool = _named(env, MESHSCRAPE_PROMTOOL)
    if promtool is None:
        beside = server.with_name("promtool")
        promtool = beside if os.access(beside, os.X_OK) else _which("promtool", env)
    return Prometheus(server, promtool)


async def ensure_prometheus(env: Mapping[str, str], progress: Progress) -> Prometheus:
    """Return `find_prometheus`, or fetch Debian's package; raise MissingBinaryError if neither works."""
    prometheus = find_prometheus(env)
    if prometheus is not None:
        return prometheus
    cache = cache_directory(env)
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with _lock(cache / "prometheus.lock", progress):
            prometheus = find_prometheus(env)
            if prometheus is None:
                await _fetch(cache, env, progress)
                prometheus = find_prometheus(env)
    except OSError as error:
        raise MissingBinaryError(
            f"Prometheus cannot be unpacked here ({error.strerror})", where=str(cache), remedy=REMEDY
        ) from error
    if prometheus is None:
        raise MissingBinaryError("Debian's package has no usr/bin/prometheus", remedy=REMEDY)
    return prometheus


def _named(env: Mapping[str, str], variable: str) -> Path | None:
    value = env.get(variable)
    if not value:
        return None
    path = Path(value).absolute()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise MissingBinaryError(
            f"{value!r} is not executable",
            where=f"environment variable {variable}",
            remedy="name the executable file, or unset the variable",
        )
    return path


def _which(name: str, env: Mapping[str, str]) -> Path | None:
    executable = shutil.which(name, path=env.get("PATH", os.defpath))
    return Path(executable).absolute() if executable else None


def _cached(env: Mapping[str, str]) -> Path | None:
    candidates = sorted(cache_directory(env).glob("prometheus-*/usr/bin/prometheus"))
    usable = [path for path in candidates if os.access(path, os.X_OK)]
    return usable[-1] if usable else None


@asynccontextmanager
async def _lock(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold the file's lock, so that two runs on one machine fetch only once."""
    with path.open("w") as handle:
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress("waiting for another run that is fetching Prometheus")
                    told = True
                await asyncio.sleep(0.2)
        yield


async def _fetch(cache: Path, env: Mapping[str, str], progress: Progress) -> None:
    """Download the package, unpack it, and move it to `cache/prometheus-VERSION` by one rename."""
    for tool in ("apt-get", "dpkg"):
        if _which(tool, env) is None:
            raise MissingBinaryError(
                f"prometheus is not on PATH, and fetching Debian's package needs {tool}", remedy=REMEDY
            )
    for leftover in cache.glob(".fetch-*"):  # noqa: ASYNC240 - a handful of local entries
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache))
    try:
        progress("fetching Prometheus from Debian's archive (only once; it is unpacked, not installed)")
        options = _apt_options(work)
        await _run(["apt-get", *options, "update"], work, env)
        await _run(["apt-get", *options, "download", PACKAGE], work, env)
        archives = sorted(work.glob(f"{PACKAGE}_*.deb"))  # noqa: ASYNC240
        if not archives:
            raise MissingBinaryError("apt-get downloaded no prometheus package", remedy=REMEDY)
        version = archives[-1].name.split("_")[1]
        await _run(["dpkg", "-x", str(archives[-1]), str(work / "root")], work, env)
        if not (work / "root/usr/bin/prometheus").is_file():
            raise MissingBinaryError("Debian's package has no usr/bin/prometheus", remedy=REMEDY)
        target = cache / f"prometheus-{version}"
        shutil.rmtree(target, ignore_errors=True)
        (work / "root").rename(target)
        progress(f"Prometheus {version} is in {target}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _apt_options(work: Path) -> list[str]:
    """Return the options that make apt use `work` only, so that an ordinary user can run it."""
    (work / "lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    status = work / "status"
    system_status = Path("/var/lib/dpkg/status")
    status.write_bytes(system_status.read_bytes() if system_status.is_file() else b"")
    settings = {
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": status,
        "Dir::Cache": work / "cache",
        "Debug::NoLocking": "1",
        "Acquire::Retries": "2",
    }
    options = ["-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    if os.geteuid() == 0:
        # Otherwise apt changes to the user `_apt`, which cannot write into this private directory.
        options.append("-oAPT::Sandbox::User=root")
    return options


async def _run(argv: list[str], work: Path, env: Mapping[str, str]) -> None:
    """Run one step.

    Raises MissingBinaryError with its last output if it fails or takes over APT_BOUND seconds.
    """
    process = await spawn(argv, env={**env, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}, cwd=work)
    try:
        async with asyncio.timeout(APT_BOUND):
            code: int | None = await process.wait()
    except TimeoutError:
        code = None
    finally:
        await process.stop(2.0)
    if code == 0:
        return
    said = process.tail(1)
    last = f" ({said.strip()})" if said else ""
    how = "took too long" if code is None else "failed"
    raise MissingBinaryError(
        f"prometheus is not on PATH, and fetching Debian's package {how} at `{Path(argv[0]).name} "
        f"{' '.join(word for word in argv[1:] if not word.startswith('-'))[:60]}`{last}",
        remedy=REMEDY,
    )


def main() -> int:
    """Fetch Prometheus unless it is present, and print its path. Return 0, or 2 with one line on stderr."""

    def progress(line: str) -> None:
        print(f"meshscrape: {line}", file=sys.stderr, flush=True)

    try:
        prometheus = asyncio.run(ensure_prometheus(os.environ, progress))
    except MeshscrapeError as error:
        print(f"meshscrape: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(prometheus.server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
