"""Find the targets that `explain TARGET` means among those that a scrape proxy announces (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.host_port import host_port
from meshscrape.istio.names import MERGED_PATH
from meshscrape.prometheus.target_files import META_IDENTITY_LABEL
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.verify.explain.target import ExplainTarget, Spot, read_spot
from meshscrape.verify.observations import printable

# A job's name is a part of its URL. HTTP SD serves only jobs whose names need no quoting there.
_JOB = re.compile(r"[\w.~!$&'()*+,;=:@-]+", re.ASCII)
_LONGEST = 600


@dataclass(frozen=True, slots=True)
class Announced:
    """One target of HTTP SD. `namespace` and `name` are its labels for the workload, empty without them."""

    job: str
    spot: Spot
    identity: SpiffeId
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Discovered:
    """What the discovery at `address` announces.

    `problem` says why it does not answer. `doubts` are problems that it reports about itself. At `contested`
    addresses (`host:port`) its sources expect different identities.
    """

    address: str
    targets: tuple[Announced, ...] = ()
    problem: str = ""
    remedy: str = ""
    doubts: str = ""
    contested: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AnnouncedIndex:
    """The scrape proxy's list of its jobs, with its doubts and contested addresses (see `Discovered`)."""

    jobs: tuple[str, ...]
    doubts: str = ""
    contested: frozenset[str] = frozenset()


def parse_index(data: bytes) -> AnnouncedIndex:
    """Return the index at `/targets` of a scrape proxy. Raise ValueError for another server's answer."""
    try:
        document = json.loads(data)
        jobs = tuple(job for job in document["jobs"] if _JOB.fullmatch(job))
        doubts = [
            f"the source {printable(name)} cannot be used: {printable(reason, _LONGEST)}"
            for name, reason in document["problems"].items()
        ]
        contested = frozenset(map(str, document["contested"]))
        if not document["current"] and not contested:
            doubts.append("the proxy does not use all targets of its sources as they are")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no list of jobs") from error
    return AnnouncedIndex(jobs, "; ".join(doubts), contested)


def parse_http_sd(job: str, data: bytes) -> tuple[Announced, ...]:
    """Return the targets of one job's answer. Raise ValueError for another server's answer."""
    try:
        return tuple(
            _announced(job, address, group["labels"])
            for group in json.loads(data)
            for address in group["targets"]
        )
    except (KeyError, TypeError, AttributeError, InputError, RecursionError) as error:
        raise ValueError(f"no target groups with {META_IDENTITY_LABEL}") from error


def announced_targets(discovered: Discovered, text: str) -> tuple[ExplainTarget, ...]:
    """Return the targets that `text` names: ADDRESS:PORT, a URL, or a workload by the targets' labels.

    An address that is not announced becomes a target with a `fault`. When discovery does not answer, every
    address does. Raises InputError for a name that no target has.
    """
    spot, name = read_spot(text)
    if discovered.problem:
        return (_faulty(spot, discovered.problem, discovered.remedy),)
    if spot is None:
        return _named(discovered, name)
    matching = _matching(discovered.targets, spot)
    return matching or (_not_announced(discovered, spot),)


def _announced(job: str, address: str, labels: dict[str, Any]) -> Announced:
    spot, _ = read_spot(address)
    if spot is None:
        raise ValueError(f"{address!a} is not an address")
    path = str(labels.get("__metrics_path__", MERGED_PATH))
    return Announced(
        job, Spot(spot.address, spot.port, path), SpiffeId.parse(labels[META_IDENTITY_LABEL]),
        str(labels.get("namespace", "")), str(labels.get("workload", "")),
    )  # fmt: skip


def _matching(targets: Sequence[Announced], spot: Spot) -> tuple[ExplainTarget, ...]:
    there = [
        target for target in targets if (target.spot.address, target.spot.port) == (spot.address, spot.port)
    ]
    meant = [target for target in there if spot.path in (None, target.spot.path)]
    # Two jobs may announce the same target. It is explained once.
    return tuple({target.spot: _explained(target) for target in meant}.values())


def _named(discovered: Discovered, name: str) -> tuple[ExplainTarget, ...]:
    namespace, _, workload = name.rpartition("/")
    named = {
        target.spot: _explained(target) for target in discovered.targets
        if target.name == workload and namespace in ("", target.namespace)
    }  # fmt: skip
    if not named:
        known = ", ".join(sorted({_title(target) for target in discovered.targets if target.name})) or "none"
        raise InputError(
            f"no target has the labels of a workload {name}",
            where="TARGET",
            remedy=f"write ADDRESS:PORT; workloads there are: {printable(known, _LONGEST)}",
        )
    return tuple(named.values())


def _explained(announced: Announced) -> ExplainTarget:
    spot = announced.spot
    return ExplainTarget(
        spot.address, spot.port, spot.path or MERGED_PATH, "http",
        f"target of job {printable(announced.job)}", None, identity=announced.identity,
        name=printable(_title(announced)),
    )  # fmt: skip


def _not_announced(discovered: Discovered, spot: Spot) -> ExplainTarget:
    here = [target for target in discovered.targets if target.spot.address == spot.address]
    there = ", ".join(
        f"{host_port(target.spot.address, target.spot.port)}{target.spot.path}" for target in here
    )
    fault = f"HTTP SD at {discovered.address} does not announce it"
    if host_port(spot.address, spot.port) in discovered.contested:
        fault = f"{fault}: its sources expect different identities at this address"
        remedy = "let one source announce the address, or let all of them expect the same SPIFFE ID"
    elif discovered.doubts:
        fault = f"{fault}; {discovered.doubts}"
        remedy = "correct the source; the proxy reads it again by itself"
    elif there:
        remedy = f"announced at this address: {printable(there, _LONGEST)}"
    else:
        remedy = "add it, with the label __meshscrape_spiffe_id, to a file that the proxy follows (--targets)"
    return _faulty(spot, fault, remedy)


def _faulty(spot: Spot | None, fault: str, remedy: str) -> ExplainTarget:
    at = spot or Spot("", 0, None)
    return ExplainTarget(
        at.address, at.port, at.path or MERGED_PATH, "http", "unknown", None, fault=fault, remedy=remedy
    )


def _title(announced: Announced) -> str:
    return (
        f"{announced.namespace}/{announced.name}"
        if announced.namespace and announced.name
        else announced.name
    )
