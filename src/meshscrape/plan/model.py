"""A plan as data: changes in phases, what was refused and why, what waits for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from meshscrape.istio.allow_list import Scraper
from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.ports import SECURE_MERGED, SECURE_STATS
from meshscrape.kube.objects import Inventory, Manifest, Object, Ref
from meshscrape.plan.outcome import Outcome

Action = Literal["create", "update", "delete"]
Phase = Literal["injection", "credentials", "listeners", "scrape", "hardening", "removal"]
PHASES: tuple[Phase, ...] = ("injection", "credentials", "listeners", "scrape", "hardening", "removal")
Mode = Literal["auto", "native", "bootstrap", "legacy"]
Decided = Literal["native", "bootstrap", "legacy"]
Prometheus = Literal["existing", "addon", "operator", "none"]
LegacySource = Literal["merged", "envoy"]

MANAGER = "meshscrape"
LEGACY_PORT = SECURE_STATS


@dataclass(frozen=True, slots=True)
class Intent:
    """What is wanted.

    `namespaces` and `selector` (a Kubernetes label selector over pod labels; None: all) choose workloads.
    `scrapers` is the allow list; empty means the scrapers found in the objects. `envoy_port` 0 leaves the
    port for Envoy's statistics alone off (they are in the merged metrics too). `harden` closes the plaintext
    ports once no job reads them. `legacy_source` is what legacy mode's one port serves: the merged metrics,
    or Envoy's statistics alone. `inject` also takes in workloads that have no sidecar yet. `new_job`: the
    label `job` of a moved scrape becomes the secure job's name. `keep_own_series`: keep `up` and `scrape_*`
    that an application exposes. `assumed_unread` names scrapers (`DaemonSet.apps datadog/datadog`) of which
    a person says that they read no plaintext port of a proxy.
    """

    mode: Mode = "auto"
    namespaces: tuple[str, ...] = ()
    selector: Mapping[str, Any] | None = None
    scrapers: tuple[Scraper, ...] = ()
    harden: bool = True
    network_policy: bool = False
    inject: bool = False
    prometheus: Prometheus = "existing"
    prometheus_namespace: str = ROOT_NAMESPACE
    merged_port: int = SECURE_MERGED
    envoy_port: int = 0
    new_job: bool = False
    keep_own_series: bool = False
    assumed_unread: frozenset[str] = frozenset()
    legacy_source: LegacySource = "merged"
    istio_version: str | None = None

    @property
    def secure_ports(self) -> tuple[int, ...]:
        """Return the ports that are opened, each once."""
        return tuple(port for port in (self.envoy_port, self.merged_port) if port)


@dataclass(frozen=True, slots=True)
class Change:
    """One object before and after; None where it is not there. `restarts` is in plain words."""

    action: Action
    ref: Ref
    before: Object | None
    after: Object | None
    reason: str
    restarts: tuple[str, ...]
    phase: Phase


@dataclass(frozen=True, slots=True)
class Refused:
    """Why nothing is planned for an object: `code` for programs, `reason` and `remedy` for people."""

    code: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that a change waits for: `code` for programs, `text` and `remedy` for people."""

    code: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person must know; `refused` means that the object was left alone because of it."""

    ref: Ref | None
    code: str
    text: str
    remedy: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """Changes of `workloads` that wait for something. `phase` says which changes.

    `planned`: the plan itself does what is waited for, so the phase is in the plan, and must be applied
    after the phases before it have taken effect. Otherwise the phase is not in the plan.
    """

    phase: Phase
    workloads: tuple[Ref, ...]
    waits_for: tuple[Missing, ...]
    planned: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes in the order in which they are to be applied.

    `apart`: Istio's objects belong to another API server than the workloads (ASM). `autoscaled`: workloads
    whose `spec.replicas` is an autoscaler's, and no part of the files.
    """

    changes: tuple[Change, ...] = ()
    notes: tuple[Note, ...] = ()
    gates: tuple[Gate, ...] = ()
    modes: Mapping[Ref, Decided] = field(default_factory=dict)
    apart: bool = False
    autoscaled: frozenset[Ref] = frozenset()
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def refused(self) -> tuple[str, ...]:
        """What was left alone against the wish, each once: objects, or the text of a note that names none."""
        notes = (note for note in self.notes if note.refused)
        return tuple(dict.fromkeys(str(note.ref) if note.ref else note.text for note in notes))

    def apply(self, inventory: Inventory) -> Inventory:
        """Return the objects after all changes, in memory; nothing of a cluster is touched."""
        latest: dict[Ref, Object | None] = {each.ref: each.after for each in self.changes}
        where = {ref: manifest.where for ref in latest if (manifest := inventory.get(ref))}
        return inventory.changed(
            (Manifest(ref, data, where.get(ref, "")) for ref, data in latest.items() if data is not None),
            [ref for ref, data in latest.items() if data is None],
        )


def revert(plan: Plan) -> Plan:
    """Return the plan that gives the recorded originals back, last change first."""
    opposite: dict[Action, Action] = {"create": "delete", "update": "update", "delete": "create"}
    back = tuple(
        Change(
            opposite[each.action],
            each.ref,
            each.after,
            each.before,
            f"back to what it was before: {each.reason}",
            each.restarts,
            each.phase,
        )
        for each in reversed(plan.changes)
    )
    return Plan(back, apart=plan.apart)
