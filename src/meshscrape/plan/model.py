"""A plan as data: changes in phases, refusals with their reasons, and gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from meshscrape.istio.allow_list import Scraper
from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.ports import SECURE_MERGED, SECURE_STATS
from meshscrape.kube.objects import Inventory, Manifest, Object, Ref
from meshscrape.plan.outcome import Outcome
from meshscrape.plan.reads import Reads
from meshscrape.prometheus.rules import RUNBOOK
from meshscrape.prometheus.scrape_proxy_pod import ISTIOD

Action = Literal["create", "update", "delete"]
Phase = Literal["injection", "credentials", "listeners", "scrape", "hardening", "removal"]
PHASES: tuple[Phase, ...] = ("injection", "credentials", "listeners", "scrape", "hardening", "removal")
# The order of a plan that takes meshscrape's changes back: each phase undoes the one of its name, and the
# last one deletes the objects that nothing needs any more.
INVERSE_PHASES: tuple[Phase, ...] = (
    "hardening", "scrape", "listeners", "credentials", "injection", "removal",
)  # fmt: skip
Mode = Literal["auto", "native", "bootstrap", "legacy"]
Decided = Literal["native", "bootstrap", "legacy"]
Prometheus = Literal["existing", "addon", "operator", "none"]
LegacySource = Literal["merged", "envoy"]
Scope = Literal["mesh", "namespace", "workload"]

MANAGER = "meshscrape"
LEGACY_PORT = SECURE_STATS


@dataclass(frozen=True, slots=True)
class Intent:
    """The wanted result of a plan.

    `namespaces` and `selector` (a Kubernetes label selector for pod labels; None: all) choose workloads.
    `scrapers` is the allow list; empty means the scrapers found in the objects. `envoy_port` is the port for
    Envoy's statistics alone; 0 means none (the merged metrics contain them too). `harden` closes the
    plaintext ports when no job reads them any more. `legacy_source` is what legacy mode's port serves: the
    merged metrics or Envoy's statistics alone. `inject` adds workloads without a sidecar to the mesh.
    `new_job`: the label `job` of a moved scrape becomes the secure job's name. `keep_own_series`: keep `up`
    and `scrape_*` that an application exposes. `assumed_unread` names scrapers (`DaemonSet.apps
    datadog/datadog`) that, as the user has declared, read no plaintext port of a proxy. `reads`: how often
    each pod is read. `scope`: where native mode's settings go: into each workload's template, or into Istio's
    defaults for the namespace or the mesh. `scrape_proxy`: scrape through a scrape proxy in Prometheus's
    pod (None: a new Prometheus without the Operator does). It runs from `proxy_image`; without one the jobs
    are direct. `proxy_certificates` is where the proxy's certificate comes from: `istiod`,
    `csi-driver-spiffe`, or a directory in Prometheus's pod. `runbook` is where the alerts of a new Prometheus
    find their pages.
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
    reads: Reads | None = None
    scope: Scope = "workload"
    scrape_proxy: bool | None = None
    proxy_image: str = ""
    proxy_certificates: str = ISTIOD
    runbook: str = RUNBOOK

    @property
    def wants_scrape_proxy(self) -> bool:
        """Return whether the scrape jobs are to go through a scrape proxy."""
        return self.prometheus == "addon" if self.scrape_proxy is None else self.scrape_proxy

    @property
    def secure_ports(self) -> tuple[int, ...]:
        """Return the secure ports to open, each once."""
        return tuple(port for port in (self.envoy_port, self.merged_port) if port)


@dataclass(frozen=True, slots=True)
class Change:
    """One object before and after (None if it does not exist); `restarts` names what restarts, as text."""

    action: Action
    ref: Ref
    before: Object | None
    after: Object | None
    reason: str
    restarts: tuple[str, ...]
    phase: Phase


@dataclass(frozen=True, slots=True)
class Refused:
    """Why nothing is planned for an object: `code` for programs, `reason` and `remedy` for users."""

    code: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Missing:
    """One condition that a change waits for: `code` for programs, `text` and `remedy` for users."""

    code: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Note:
    """A note for the user; `refused` means that the object was left alone for this reason."""

    ref: Ref | None
    code: str
    text: str
    remedy: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition that holds back the changes of `workloads` in `phase`.

    `planned`: the plan itself meets the condition in earlier phases. So the phase is in the plan, and must be
    applied after the earlier phases have taken effect. Otherwise the phase is not in the plan.
    """

    phase: Phase
    workloads: tuple[Ref, ...]
    waits_for: tuple[Missing, ...]
    planned: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes in the order to apply them.

    `apart`: Istio's objects belong to another API server than the workloads (ASM). `autoscaled`: workloads
    whose `spec.replicas` an autoscaler sets, so the files leave it out. `inverse`: the changes take back what
    meshscrape wrote. `chart_values` are values for Istio's chart as YAML, by revision: a plan does not set
    them, because the next upgrade of the chart would revert that.
    """

    changes: tuple[Change, ...] = ()
    notes: tuple[Note, ...] = ()
    gates: tuple[Gate, ...] = ()
    modes: Mapping[Ref, Decided] = field(default_factory=dict)
    apart: bool = False
    autoscaled: frozenset[Ref] = frozenset()
    outcome: Outcome = field(default_factory=Outcome)
    inverse: bool = False
    chart_values: Mapping[str, str] = field(default_factory=dict)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases in the order to apply them."""
        return INVERSE_PHASES if self.inverse else PHASES

    @property
    def refused(self) -> tuple[str, ...]:
        """Return what was left alone although the user chose it, each once: objects, or a note's text."""
        notes = (note for note in self.notes if note.refused)
        return tuple(dict.fromkeys(str(note.ref) if note.ref else note.text for note in notes))

    def apply(self, inventory: Inventory) -> Inventory:
        """Return the objects after all changes, in memory only."""
        latest: dict[Ref, Object | None] = {change.ref: change.after for change in self.changes}
        where = {ref: manifest.where for ref in latest if (manifest := inventory.get(ref))}
        return inventory.changed(
            (Manifest(ref, data, where.get(ref, "")) for ref, data in latest.items() if data is not None),
            [ref for ref, data in latest.items() if data is None],
        )


def revert(plan: Plan) -> Plan:
    """Return the plan that restores the recorded originals, last change first."""
    opposite: dict[Action, Action] = {"create": "delete", "update": "update", "delete": "create"}
    back = tuple(
        Change(
            opposite[change.action],
            change.ref,
            change.after,
            change.before,
            f"undoes: {change.reason}",
            change.restarts,
            change.phase,
        )
        for change in reversed(plan.changes)
    )
    return Plan(back, apart=plan.apart)
