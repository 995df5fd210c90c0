"""Use a running mesh as a source of targets for a scrape proxy, by following its status document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.host_port import parse_host_port
from meshscrape.local.state import StateDirectory
from meshscrape.prometheus.targets import JOBS, Target
from meshscrape.proxy.discovery import FileSource, Targets
from meshscrape.spiffe.ids import SpiffeId


def mesh_source(state: Path) -> FileSource:
    """Return the source of the mesh that runs in the state directory."""
    return FileSource(StateDirectory.at(state).status_file, JOBS, parse_status)


def parse_status(content: bytes, where: str) -> Targets:
    """Return the targets in a status document by job. Raise InputError for another document."""
    try:
        document: Mapping[str, Any] = json.loads(content)
        by_job: dict[str, list[Target]] = {job: [] for job in JOBS}
        for workload in document["workloads"]:
            labels = {
                "namespace": workload["namespace"], "pod": workload["pod"], "workload": workload["name"],
            }  # fmt: skip
            identity = SpiffeId.parse(workload["spiffeId"])
            for entry in workload["targets"]:
                address, port, path = _parts(entry["url"])
                by_job[entry["job"]].append(Target(address, port, identity, labels, path))
    except (InputError, ValueError, KeyError, TypeError):
        raise InputError("this is not the status document of a mesh", where=where) from None
    return {job: tuple(targets) for job, targets in by_job.items()}


def _parts(url: str) -> tuple[str, int, str]:
    authority, slash, path = url.partition("://")[2].partition("/")
    return *parse_host_port(authority), slash + path
