"""The shared context of the planner, and facts about the workloads and scrapers that it plans for."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshscrape.envoy.override import BOOTSTRAP_FILE, PREFIX
from meshscrape.istio.allow_list import Scraper as AllowEntry
from meshscrape.istio.allow_list import SpiffeScraper
from meshscrape.istio.names import MANAGED_BY
from meshscrape.istio.ports import MERGED, SECURE_MERGED, SECURE_STATS, STATS
from meshscrape.istio.versions import UNKNOWN, IstioVersion
from meshscrape.kube.objects import Inventory, Object, Ref, as_mapping, dig
from meshscrape.observe.gateways import managed_deployment
from meshscrape.observe.injection_template import OVERRIDE_NAME
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
# The injection template needs a field of the injector's that older control planes do not have.
TEMPLATE_SINCE = "1.30"
# Envoy 1.24 added RBAC's matcher and the URI SAN input. An older Envoy would refuse every scraper.
BOOTSTRAP_SINCE = "1.17"
# The plaintext ports of a proxy: Envoy's statistics and the agent's merged metrics.
PLAINTEXT_PORTS = frozenset({STATS, MERGED})
SECURE_PORTS = frozenset({SECURE_STATS, SECURE_MERGED})
# Kinds of scrapers that a plan can give a certificate and jobs over mutual TLS.
ABLE = ("prometheus", "operator", "vmagent")
_V1_SINCE = "1.22"
_RESTARTED = ("Deployment", "StatefulSet", "DaemonSet")


@dataclass(slots=True)
class Held:
    """Workloads, scrapers and open ports that a plan must not change, each with what is missing."""

    workloads: dict[Ref, tuple[Missing, ...]] = field(default_factory=dict)
    scrapers: dict[Ref, tuple[Missing, ...]] = field(default_factory=dict)
    open: dict[Ref, tuple[Missing, ...]] = field(default_factory=dict)

    @property
    def refs(self) -> frozenset[Ref]:
        """Return all objects that are held back."""
        return frozenset((*self.workloads, *self.scrapers, *self.open))


@dataclass(slots=True)
class Context:
    """The shared state of the planner's steps.

    `checksums` belong to the overrides planned so far, `addresses` are the wildcards that they listen on.
    `held` stays unchanged because changing it would make something worse. `observed` is the observation
    before the plan; `observation` includes workloads that join the mesh. `unmoved` are the scrape jobs with
    the drafted listeners and every pod still in its plaintext job. `delivered` are the workloads that get
    settings from Istio's defaults, so that their templates stay as they are. `templated` are the workloads
    that get their bootstrap override from an injection template, each with the checksum to expect.
    `chart_values` are the values to set in Istio's chart, by revision.
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
    delivered: set[Ref] = field(default_factory=set)
    templated: dict[Ref, str] = field(default_factory=dict)
    chart_values: dict[str, str] = field(default_factory=dict)

    @property
    def split(self) -> bool:
        """Return whether the merged metrics of some target lack Envoy's, which then need their own port."""
        return any(not merges_envoy(target.workload) for target in self.targets)

    def object_of(self, ref: Ref) -> Object:
        """Return the object with the plan's changes so far; empty if it is unknown."""
        return self.draft.get(ref) or {}


@dataclass(frozen=True, slots=True)
class PlannedWorkload:
    """A workload that the plan secures, its mode, and its proxy's version after a restart."""

    workload: ObservedWorkload
    mode: Decided
    version: IstioVersion

    @property
    def ref(self) -> Ref:
        """Return the object to change."""
        return self.workload.ref


def secure_port_of(context: Context, target: PlannedWorkload) -> int:
    """Return the port of a target's merged metrics."""
    return LEGACY_PORT if target.mode == "legacy" else context.intent.merged_port


def merges_envoy(workload: ObservedWorkload) -> bool:
    """Return whether the agent merges Envoy's statistics into its own port."""
    return workload.stats_merged


def restarts_of(context: Context, workload: ObservedWorkload) -> tuple[str, ...]:
    """Return what a changed pod template restarts, as text."""
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
    """Return labels that select the workload's pods, from its own selector if it has one."""
    data = context.object_of(workload.ref)
    own = as_mapping(dig(data, "spec", "selector", "matchLabels"))
    return dict(own or workload.labels)


def default_scrapers(context: Context) -> tuple[AllowEntry, ...]:
    """Return the identities of the scrapers that read proxies' metrics, else of all possible ones.

    With a new Prometheus, only scrapers with a job over mutual TLS count, because it replaces the others.
    Such a job may read nothing now, but the new ports when they are open.
    """
    observation = context.observation
    replaced = context.intent.prometheus in ("addon", "operator")
    used = {
        job.scraper
        for job in observation.scrape_jobs
        if job.over == "mtls" or (not replaced and reads_plaintext(job))
    }
    # A collector whose jobs no plan moves may have a job for the secure ports all the same.
    secure = {
        job.scraper
        for job in observation.scrape_jobs
        if job.over == "mtls" and (not job.matches or not SECURE_PORTS.isdisjoint(job.ports))
    }
    able = [
        scraper
        for scraper in observation.scrapers
        if scraper.spiffe_id and (scraper.kind in ABLE or (scraper.output_certs and scraper.ref in secure))
    ]
    chosen = [scraper for scraper in able if scraper.ref in used] or ([] if replaced else able)
    for scraper in chosen:
        if scraper.service_account == "default":
            context.draft.note(
                scraper.ref,
                "default-service-account",
                "it runs as ServiceAccount `default`: other pods of its namespace may use it and scrape",
                "give it a ServiceAccount of its own",
            )
    return tuple(SpiffeScraper(SpiffeId.parse(scraper.spiffe_id)) for scraper in chosen)


def reads_plaintext(job: ObservedJob) -> bool:
    """Return whether a scrape job reads plaintext ports of any proxy, now or after a restart."""
    read = (*job.ports_of.values(), *job.ports_after.values())
    return job.over == "plaintext" and any(not PLAINTEXT_PORTS.isdisjoint(ports) for ports in read)


def version_of(context: Context, workload: ObservedWorkload) -> IstioVersion:
    """Return the proxy's version after a restart; if unknown, the running version common to all pods."""
    if workload.versions.after.known:
        return workload.versions.after
    if workload.kind == "uninjected" and (plane := default_control_plane(context.observation)):
        return plane.version
    versions = set(workload.versions.running) or {workload.versions.now}
    return versions.pop() if len(versions) == 1 else UNKNOWN


def default_control_plane(observation: Observation) -> ControlPlane | None:
    """Return the control plane that injects if no revision is named."""
    planes = observation.control_planes
    named = [plane for plane in planes if "default" in (plane.revision, *plane.tags)]
    defaults = named or (planes if len(planes) == 1 else ())
    return defaults[0] if defaults else None


def has_override(context: Context, workload: ObservedWorkload) -> bool:
    """Return whether a bootstrap override already opens our listeners on this workload."""
    if not workload.bootstrap_override:
        return False
    data = context.draft.get(Ref("", "ConfigMap", workload.namespace, workload.bootstrap_override))
    text = str(dig(data, "data", BOOTSTRAP_FILE, default=""))
    return workload.bootstrap_override == OVERRIDE_NAME or f'"{PREFIX}_' in text


def template_too_old(version: IstioVersion) -> Refused:
    """Return why a control plane of this version cannot run the injection template."""
    return Refused(
        "template-too-old",
        f"the injection template needs a control plane of {TEMPLATE_SINCE} or newer; this is {version}",
        "plan with --scope workload",
    )


def istio_object(
    context: Context, group: str, kind: str, namespace: str, name: str, spec: Mutable
) -> Mutable:
    """Return an object of one of Istio's groups, in an API version that its control plane knows."""
    plane = default_control_plane(context.observation)
    version = "v1" if plane and plane.version.at_least(_V1_SINCE) else "v1beta1"
    return {
        "apiVersion": f"{group}/{version}",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {MANAGED_BY: MANAGER}},
        "spec": spec,
    }
