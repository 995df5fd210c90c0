"""A mesh whose certificates last seconds, and what is seen of their renewal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.mesh import SECURE, Up, prometheus_manifest, running_up, workload_manifest, write_mesh
from support.polling import eventually

WORKLOADS = ("web", "shop", "cart")


@contextmanager
def short_lived_mesh(
    directory: Path, *arguments: str, ttl: str = "6s", left: float = 0.5, interval: str = "500ms"
) -> Iterator[Up]:
    """Three workloads and Prometheus, scraped at `interval`.

    Their certificates last `ttl`, and are renewed when the share `left` of that is left.
    """
    lines = (
        f"SECRET_TTL: {ttl}", f'SECRET_GRACE_PERIOD_RATIO: "{left}"', "MESHSCRAPE_RENEWAL_SPREAD: 500ms",
    )  # fmt: skip
    added = "".join(f"\n            {line}" for line in lines)
    prometheus = prometheus_manifest().replace("proxyMetadata:", f"proxyMetadata:{added}")
    webs = [workload_manifest(name, metadata=(*SECURE, *lines)) for name in WORKLOADS]
    manifest = write_mesh(directory / "mesh.yaml", prometheus, *webs)
    state = directory / "state"
    with running_up(state, str(manifest), "--scrape-interval", interval, "--quiet", *arguments) as up:
        up.wait_for_phase()
        yield up


class Serials:
    """Every serial number that was seen, by workload."""

    def __init__(self, up: Up) -> None:
        self._up = up
        self._seen: dict[str, set[str]] = defaultdict(set)

    def look(self) -> None:
        """Note what the status document shows now."""
        for entry in self._up.document()["workloads"]:
            if entry["certificate"]:
                self._seen[entry["name"]].add(entry["certificate"]["serial"])

    @property
    def rotations(self) -> dict[str, int]:
        """How often each workload's certificate has been another one."""
        return {name: len(serials) - 1 for name, serials in self._seen.items()}

    def await_rotations(self, number: int) -> None:
        """Wait until every certificate has changed so often."""

        def all_rotated() -> bool:
            self.look()
            found = self.rotations
            return len(found) == len(WORKLOADS) + 1 and min(found.values()) >= number

        eventually(all_rotated, within=90, what=f"{number} rotations of every certificate")


def total(up: Up, name: str) -> int:
    """The sum of a counter over all its series."""
    return int(float(up.query(f"sum({name})")[0]["value"][1]))
