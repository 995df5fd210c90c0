"""Which workloads a plan is about, and how each is secured: decided by the version of its proxy."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshscrape.envoy.override import BOOTSTRAP_FILE, PREFIX
from meshscrape.istio.allow_list import Scraper as AllowEntry
from meshscrape.istio.allow_list import SpiffeScraper
from meshscrape.istio.names import MANAGED_BY
from meshscrape.istio.ports import MERGED, STATS
from meshscrape.istio.versions import UNKNOWN, IstioVersion
from meshscrape.kube.objects import Inventory, Object, Ref, as_mapping, dig
from meshscrape.observe.gateways import managed_deployment
from meshscrape.observe.model import ControlPlane, ObservedJob
from meshscrape.observe.observation import Observation
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.edited_objects import EditedObjects, Mutable
from meshscrape.plan.model import LEGACY_PORT, MANAGER, Decided, Intent, Missing, Refused
from meshscrape.spiffe.ids import SpiffeId

NATIVE_SINCE = "1.31"
LOCALHOST_ONLY_SINCE = "1.22"
PARAMETERS_SINCE = "1.26"
GATEWAY_OVERRIDE_SINCE = "1.27"
# RBAC's matcher and the URI SAN input came with Envoy 1.24; what does not know them would refuse everybody.
BOOTSTRAP_SINCE = "1.17"
# The plaintext ports of a proxy: Envoy's statistics and the agent's merged metrics.
PLAINTEXT_PORTS = frozenset({STATS, MERGED})
# Scrapers that can be given a certificate and jobs over mutual TLS.
ABLE = ("prometheus", "operator", "vmagent")
# The ConfigMap with the bootstrap override of a namespace's proxies.
OVERRIDE_NAME = "meshscrape-bootstrap"
_V1_SINCE = "1.22"
_RESTARTED = ("Deployment", "StatefulSet", "DaemonSet")


@dataclass(slots=True)
class Held:
    """What a plan must not touch, and what is missing: workloads, scrapers, and ports that stay open."""

    workloads: dict[Ref, tuple[Missing, ...]] = field(default_factory=dict)
    scrapers: dict[Ref, tuple[Missing, ...]] = field(default_factory=dict)
    open: dict[Ref, tuple[Missing, ...]] = field(default_factory=dict)

    @property
    def refs(self) -> frozenset[Ref]:
        """Return all that is held back."""
        return frozenset((*self.workloads, *self.scrapers, *self.open))


@dataclass(slots=True)
class Context:
    """What every part of the planner works with.

    `checksums` are those of overrides planned already, `addresses` the wildcards that they listen on.
    `held` is what stays as it is because a plan with it would make something worse. `observed` is what the
    objects are before the plan; `observation` counts workloads that join the mesh. `unmoved` are the scrape
    jobs with the drafted listeners, and with every pod still in its plaintext job.
    """

    observation: Observation
    inventory: Inventory
    intent: Intent
    draft: EditedObjects
    observed: Observation
    scrapers: tuple[AllowEntry, ...] = ()
    targets: list[PlannedWorkload] = field(default_factory=list)
    checksums: dict[Ref, str | Refused] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    held: Held = field(default_factory=Held)
    unmoved: tuple[ObservedJob, ...] = ()

    @property
    def split(self) -> bool:
        """Return whether some target's merged metrics lack Envoy's: they need a port of their own."""
        return any(not merges_envoy(target.workload) for target in self.targets)

    def object_of(self, ref: Ref) -> Object:
        """Return the object, as the plan so far leaves it; empty when it is not known."""
        return self.draft.get(ref) or {}


@dataclass(frozen=True, slots=True)
class PlannedWorkload:
    """A workload that is planned for, its mode, and the version its proxy has after a restart."""

    workload: ObservedWorkload
    mode: Decided
    version: IstioVersion

    @property
    def ref(self) -> Ref:
        """Return the object that is changed."""
        return self.workload.ref


def secure_port_of(context: Context, target: PlannedWorkload) -> int:
    """Return the port of a target's merged metrics."""
    return LEGACY_PORT if target.mode == "legacy" else context.intent.merged_port


def merges_envoy(workload: ObservedWorkload) -> bool:
    """Return whether the agent merges Envoy's statistics into its own port."""
    return workload.stats_merged


def restarts_of(context: Context, workload: ObservedWorkload) -> tuple[str, ...]:
    """Return what a changed pod template restarts, in plain words."""
    if workload.kind in ("gateway-api", "waypoint") and workload.ref.kind == "Gateway":
        made = context.inventory.get(workload.ref)
        name = managed_deployment(made).name if made else workload.name
        return (f"Deployment {workload.namespace}/{name}",)
    if workload.ref.kind not in _RESTARTED:
        return ()
    count = len(workload.running)
    pods = f" ({count} pod{'s' * (count != 1)})" if count else ""
    strategy = dig(context.object_of(workload.ref), "spec", "updateStrategy", "type")
    by_hand = ", only as its pods are deleted (OnDelete)" if strategy == "OnDelete" else ""
    return (f"{workload.ref.kind} {workload.namespace}/{workload.name}{pods}{by_hand}",)


def selector_of(context: Context, workload: ObservedWorkload) -> dict[str, str]:
    """Return labels that select the workload's pods, from its own selector where it has one."""
    data = context.object_of(workload.ref)
    own = as_mapping(dig(data, "spec", "selector", "matchLabels"))
    return dict(own or workload.labels)


def default_scrapers(context: Context) -> tuple[AllowEntry, ...]:
    """Return the identities of the scrapers that read proxies' metrics, else of all that could.

    Beside a new Prometheus, only those count that have a job over mutual TLS: it takes the others' place.
    Such a job may read nothing now, and the new ports once they are open.
    """
    observation = context.observation
    replaced = context.intent.prometheus in ("addon", "operator")
    used = {
        job.scraper
        for job in observation.scrape_jobs
        if job.over == "mtls" or (not replaced and reads_plaintext(job))
    }
    able = [each for each in observation.scrapers if each.kind in ABLE and each.spiffe_id]
    chosen = [each for each in able if each.ref in used] or ([] if replaced else able)
    for each in chosen:
        if each.service_account == "default":
            context.draft.note(
                each.ref,
                "default-service-account",
                "it runs as ServiceAccount `default`: every pod of its namespace that does may scrape, too",
                "give it a ServiceAccount of its own",
            )
    return tuple(SpiffeScraper(SpiffeId.parse(each.spiffe_id)) for each in chosen)


def reads_plaintext(consumer: ObservedJob) -> bool:
    """Return whether a consumer reads plaintext ports of any proxy, now or after a restart."""
    seen = (*consumer.ports_of.values(), *consumer.ports_after.values())
    return consumer.over == "plaintext" and any(not PLAINTEXT_PORTS.isdisjoint(ports) for ports in seen)


def version_of(context: Context, workload: ObservedWorkload) -> IstioVersion:
    """Return the version of the proxy after a restart; else the one that runs, if all pods have the same."""
    if workload.versions.after.known:
        return workload.versions.after
    if workload.kind == "uninjected" and (plane := default_control_plane(context.observation)):
        return plane.version
    versions = set(workload.versions.running) or {workload.versions.now}
    return versions.pop() if len(versions) == 1 else UNKNOWN


def default_control_plane(observation: Observation) -> ControlPlane | None:
    """Return the control plane that injects where no revision is named."""
    planes = observation.control_planes
    named = [each for each in planes if "default" in (each.revision, *each.tags)]
    found = named or (planes if len(planes) == 1 else ())
    return found[0] if found else None


def has_override(context: Context, workload: ObservedWorkload) -> bool:
    """Return whether a bootstrap override opens our listeners on this workload already."""
    if not workload.bootstrap_override:
        return False
    data = context.draft.get(Ref("", "ConfigMap", workload.namespace, workload.bootstrap_override))
    text = str(dig(data, "data", BOOTSTRAP_FILE, default=""))
    return workload.bootstrap_override == OVERRIDE_NAME or f'"{PREFIX}_' in text


def istio_object(
    context: Context, group: str, kind: str, namespace: str, name: str, spec: Mutable
) -> Mutable:
    """Return an object of one of Istio's groups, in the API version that its control plane knows."""
    plane = default_control_plane(context.observation)
    version = "v1" if plane and plane.version.at_least(_V1_SINCE) else "v1beta1"
    return {
        "apiVersion": f"{group}/{version}",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {MANAGED_BY: MANAGER}},
        "spec": spec,
    }
