"""Apply a plan to a live cluster, phase by phase, and prove each phase before the next one.

A run keeps no state of its own. It reads the cluster again after each phase and plans anew, so a run that was
interrupted goes on where it stopped when it is run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.dump import AT_ONCE, read_cluster, served_resources
from meshscrape.cluster.effects import Effect
from meshscrape.cluster.holding import HeldLease, holding
from meshscrape.cluster.kinds import Resource
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.needs import (
    absent_namespaces,
    created_namespaces,
    rights_of,
    rights_of_run,
    rights_to_follow,
)
from meshscrape.cluster.permissions import check_rights
from meshscrape.cluster.proof import POLL_SECONDS, await_moved
from meshscrape.cluster.repository import await_repository
from meshscrape.cluster.reverts import other_managers, reconcile_seconds, taken_back
from meshscrape.cluster.rollouts import ROLLED_OUT, pending
from meshscrape.cluster.scraped import prometheus_pods
from meshscrape.cluster.stopping import HalfDoneError, StoppedError, few
from meshscrape.cluster.trackers import tracker
from meshscrape.cluster.watching import ScrapeWatch
from meshscrape.cluster.waves import Window, unproven, waves_of
from meshscrape.cluster.writes import collection_path, merged, write_of
from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.istio.names import CONTROL_PLANE_GROUPS
from meshscrape.kube.objects import Inventory, Object, Ref
from meshscrape.observe.observation import Observation
from meshscrape.plan.inverse.record import with_record
from meshscrape.plan.model import Change, Phase, Plan
from meshscrape.system.clock import utcnow

_NOT_FOUND, _CONFLICT, _INVALID = 404, 409, 422
# Phases that begin when every target is up that the phases before have moved.
_PROVED: tuple[Phase, ...] = ("hardening", "removal")
_PROVED_INVERSE: tuple[Phase, ...] = ("listeners", "credentials", "removal")


@dataclass(frozen=True, slots=True)
class PlannedCluster:
    """What a cluster contains at one moment, and the plan for it."""

    inventory: Inventory
    observation: Observation
    plan: Plan


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """How to apply: which phases (all when empty), how long a phase may take to have effect, and who applies.

    `dry_run` sends every write to be checked by the API server and its webhooks, and changes nothing.
    `verb` is what the user runs again. `canaries` (`NAMESPACE/NAME`) go first in each phase, and `pause`
    seconds pass between waves, which begin within `window` only. The run stops when more than `max_lost`
    scrapes are lost, or when a Prometheus has `max_series` head series (None: no bound). It waits up to
    `gitops` seconds until the changes of tracked objects arrive from their repository (None: it refuses such
    a plan). After each phase it waits `reconcile` seconds, then looks whether a change was taken back (None:
    as long as the tools need that track objects in the same namespaces).
    """

    phases: tuple[Phase, ...] = ()
    timeout: float = 600.0
    dry_run: bool = False
    holder: str = "meshscrape"
    verb: str = "apply"
    canaries: frozenset[str] = frozenset()
    pause: float = 0.0
    window: Window | None = None
    max_lost: int = 0
    max_series: int | None = None
    gitops: float | None = None
    reconcile: float | None = None


class Applier:
    """Applies plans to one cluster.

    `planner` makes the plan from the objects; `told` gets lines of progress.
    """

    def __init__(
        self,
        access: Access,
        planner: Callable[[Inventory], PlannedCluster],
        options: ApplyOptions,
        told: Callable[[str], None],
    ) -> None:
        self._access = access
        self._api = Api(access)
        self._control = Api(access.control) if access.control else self._api
        self._planner = planner
        self._options = options
        self._told = told
        self._resources: list[Resource] = []
        self._skipped: set[Ref] = set()
        self._written: set[tuple[Phase, Ref]] = set()
        self._made = 0
        self._watch = ScrapeWatch(
            self._api,
            max_lost=options.max_lost,
            max_series=options.max_series,
            verb=options.verb,
            told=told,
        )
        self._effect = Effect(
            self._object,
            self._pods,
            timeout=options.timeout,
            verb=options.verb,
            told=told,
            look=self._watch.look,
        )

    async def read(self) -> PlannedCluster:
        """Read the cluster and plan. Raise InputError for a plan that cannot be applied."""
        managers = self._options.verb == "remove"
        reading = self._planner(Inventory(await read_cluster(self._access, self._told, managers=managers)))
        waits = self._options.gitops is not None
        refuse_unappliable(reading.plan, apart=self._access.control is not None, waits=waits)
        self._watch.follow(reading.observation, reading.inventory)
        return reading

    async def apply(self, reading: PlannedCluster) -> PlannedCluster:
        """Apply what `read` returned; return what the cluster contains then.

        Raises StoppedError when a phase has no effect in time, another manager takes a change back, or a
        moved target is not up. Raises InputError for a missing right or namespace, before anything is
        written. Raises ApiError or UnavailableError when the first write fails, and HalfDoneError when a
        later one fails.
        """
        chosen = self._changes(reading.plan)
        changes = [change for change in chosen if not tracker(change.before)]
        tracked = [change for change in chosen if tracker(change.before)]
        if absent := absent_namespaces(changes, reading.inventory):
            raise InputError(
                f"there is no namespace {few(sorted(absent))}, which new objects need",
                where=self._access.place,
                remedy="create it first, or choose another one",
                code="namespace-unknown",
            )
        self._resources = await self._served()
        asked = () if self._options.dry_run else prometheus_pods(reading.observation, reading.inventory)[0]
        own = [change for change in changes if self._server(change.ref) is self._api]
        rights = [*rights_of(own, self._resources), *rights_of_run(asked)]
        rights += rights_to_follow((change.ref for change in tracked), self._resources)
        await check_rights(self._api, rights, self._options.verb)
        if istio := [change for change in changes if change not in own]:
            await check_rights(self._control, list(rights_of(istio, self._resources)), self._options.verb)
        if self._options.dry_run:
            for change in tracked:
                self._told(f"not checked: {change.ref}: {tracker(change.before)} tracks it")
            await self._try(merged(changes), created_namespaces(changes))
            return reading
        try:
            async with holding(self._api, self._options.holder) as lease:
                await self._watch.begin(
                    reading.observation, reading.inventory, touched_namespaces(reading.plan)
                )
                return await self._apply_phases(reading, lease)
        except StoppedError:
            raise
        except MeshscrapeError as error:
            if not self._made:
                raise
            raise HalfDoneError(error, self._made, self._options.verb) from None

    async def _apply_phases(self, reading: PlannedCluster, lease: HeldLease) -> PlannedCluster:
        shown = {change.ref for change in reading.plan.changes}
        last: Phase | None = None
        # In the order of the plan, however the user named them: its steps undo or rest on each other.
        chosen = self._options.phases or reading.plan.phases
        for phase in [phase for phase in reading.plan.phases if phase in chosen]:
            if any(change.phase == phase for change in reading.plan.changes):
                reading = await self._apply_phase(phase, reading, shown, lease)
                last = phase
        if reading.plan.inverse:
            await self._await_scrapes("removal", reading)
        elif last in _PROVED:
            # The phase has restarted pods, which Prometheus must find again.
            await self._await_scrapes(last, reading)
        return reading

    def _server(self, ref: Ref) -> Api:
        """Return the API server that has an object."""
        return self._control if ref.group in CONTROL_PLANE_GROUPS else self._api

    async def _served(self) -> list[Resource]:
        here = await served_resources(self._api)
        if self._control is self._api:
            return here
        istio = await served_resources(self._control)
        return [
            *(resource for resource in here if resource.group not in CONTROL_PLANE_GROUPS),
            *(resource for resource in istio if resource.group in CONTROL_PLANE_GROUPS),
        ]

    def _changes(self, plan: Plan) -> list[Change]:
        wanted = self._options.phases or plan.phases
        return [change for change in plan.changes if change.phase in wanted]

    async def _try(self, changes: list[Change], fresh: frozenset[str]) -> None:
        """Let the API server check every change; it changes nothing. `fresh`: namespaces yet to be made."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(change: Change) -> None:
            async with turns:
                await self._write(change)

        for change in changes:
            if change.ref.namespace in fresh:
                self._told(f"not checked: {change.ref}: the plan itself creates its namespace")
        await asyncio.gather(*(one(change) for change in changes if change.ref.namespace not in fresh))

    async def _apply_phase(
        self, phase: Phase, reading: PlannedCluster, shown: set[Ref], lease: HeldLease
    ) -> PlannedCluster:
        """Apply one phase in waves, each until it has taken effect; return the cluster after it."""
        changes = [change for change in reading.plan.changes if change.phase == phase]
        fresh = [change.ref for change in changes if change.ref not in shown]
        if fresh:
            raise StoppedError(
                f"the cluster has changed: {few(fresh)} was not in the plan that was shown",
                where=f"phase {phase}",
                remedy=f"look at the new plan and run {self._options.verb} again",
                code="changed-plan",
            )
        if phase in (_PROVED_INVERSE if reading.plan.inverse else _PROVED):
            await self._await_scrapes(phase, reading)
        tracked = {change.ref: tool for change in changes if (tool := tracker(change.before))}
        own = [change for change in changes if change.ref not in tracked]
        own = self._proven(phase, own, reading)
        self._told(f"phase {phase}: {len(own)} change{'s' * (len(own) != 1)}")
        waves = waves_of(own, self._options.canaries)
        for number, wave in enumerate(waves, 1):
            await self._turn(phase, number, len(waves))
            await self._apply_wave(phase, wave, reading.inventory)
        if tracked:
            async with lease.patient():
                await self._await_repository(phase, tracked, reading)
            await self._effect.arrived(f"phase {phase}", _versions(tracked, reading.inventory))
        await self._reconcile(phase, reading)
        after = await self.read()
        await self._refuse_reverts(phase, after)
        return after

    async def _await_repository(
        self, phase: Phase, tracked: Mapping[Ref, str], reading: PlannedCluster
    ) -> None:
        """Wait until the changes of tracked objects have arrived."""
        versions = _versions(tracked, reading.inventory)

        async def plan() -> tuple[PlannedCluster, set[Ref]]:
            now = await self.read()
            return now, {change.ref for change in now.plan.changes if change.phase == phase}

        await await_repository(
            tracked,
            read=lambda ref: self._object(ref, versions[ref]),
            plan=plan,
            look=self._watch.look,
            told=self._told,
            where=f"phase {phase}",
            seconds=self._options.gitops or 0.0,
            verb=self._options.verb,
        )
        # A tool that brings a change and takes it back later is noticed like any other manager.
        self._written |= {(phase, ref) for ref in tracked}

    async def _reconcile(self, phase: Phase, reading: PlannedCluster) -> None:
        """Wait for one reconcile interval, so that a tool that reverts changes has had its turn."""
        seconds = self._options.reconcile
        if seconds is None:
            seconds = reconcile_seconds(reading.inventory, touched_namespaces(reading.plan))
        if not seconds:
            return
        self._told(f"phase {phase}: waiting {seconds:.0f} s, whether another manager takes a change back")
        await self._rest(seconds, f"phase {phase}")

    async def _refuse_reverts(self, phase: Phase, after: PlannedCluster) -> None:
        """Raise StoppedError if changes of this run are planned again."""
        back = [ref for ref in taken_back(after.plan.changes, self._written) if ref not in self._skipped]
        if not back:
            return
        manifest = after.inventory.get(back[0])
        names: list[str] = []
        if manifest is not None:
            names = other_managers(await self._object(back[0], str(manifest.data.get("apiVersion"))))
        who = f"; its latest other field manager is {names[0]}" if names else ""
        raise StoppedError(
            f"{few(back)} is not as it was applied: another manager took the change back{who}",
            where=f"phase {phase}",
            remedy="change it where it is managed (`meshscrape render --kustomize` writes patches), "
            f"then run {self._options.verb} again",
            code="taken-back",
        )

    async def _rest(self, seconds: float, where: str) -> None:
        """Wait, and watch the scrapes meanwhile."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while (left := end - clock()) > 0:
            await self._watch.look(where)
            await asyncio.sleep(min(left, POLL_SECONDS))

    def _proven(self, phase: Phase, changes: list[Change], reading: PlannedCluster) -> list[Change]:
        """Return the changes without those that close ports of workloads whose scrape nothing proves.

        A workload without a ready pod has no target that could be up. If the user named the phase, its
        objects count.
        """
        if phase != "hardening" or reading.plan.inverse or self._options.phases:
            return changes
        skipped = unproven(changes, reading.observation, reading.inventory)
        if skipped:
            self._skipped |= skipped
            self._told(
                f"phase {phase}: left out, because no ready pod proves the scrape: {few(sorted(skipped))}; "
                f"{self._options.verb} --phase {phase} closes their ports all the same"
            )
        return [change for change in changes if change.ref not in skipped]

    async def _turn(self, phase: Phase, number: int, count: int) -> None:
        """Wait for the turn of a wave: for the pause after the one before, and for the window."""
        if number > 1 and self._options.pause:
            self._told(f"phase {phase}: pausing {self._options.pause:.0f} s before wave {number} of {count}")
            await self._rest(self._options.pause, f"phase {phase}")
        window = self._options.window
        told = False
        while window is not None and (seconds := window.seconds_until(utcnow())):
            if not told:
                self._told(f"phase {phase}: waiting for the window {window} before wave {number} of {count}")
            told = True
            await self._rest(min(seconds, 60.0), f"phase {phase}")

    async def _apply_wave(self, phase: Phase, wave: list[Change], inventory: Inventory) -> None:
        touched = {change.ref.namespace for change in wave}
        places = [(space, kind) for space in touched for kind in ROLLED_OUT if space]
        near = [item for place in places for item in inventory.in_namespace(*place)]
        healthy = {item.ref for item in near if pending(item) is None}
        for change in wave:
            await self._watch.look(f"phase {phase}")
            await self._write(change)
            self._made += 1
            self._written.add((phase, change.ref))
            self._told(f"phase {phase}: {change.action}d {change.ref}")
        versions = _versions(healthy, inventory) | _versions_after(wave)
        await self._effect.arrived(f"phase {phase}", versions)

    async def _write(self, change: Change) -> None:
        if self._options.verb == "apply" and change.before is not None and change.after is not None:
            change = replace(change, after=with_record(change.before, change.after))
        write = write_of(change, self._resources, dry_run=self._options.dry_run)
        try:
            await self._server(change.ref).send(
                write.method, write.path, write.body, media_type=write.media_type, **write.query
            )
        except ApiError as error:
            if change.action == "delete" and error.status == _NOT_FOUND:
                return
            # A test of the patch failed, unless admission said that it denied the request.
            changed = change.action == "update" and error.status == _INVALID and "denied" not in error.what
            if error.status == _CONFLICT or changed:
                raise StoppedError(
                    f"it is no longer as it was planned: {error.what}",
                    where=str(change.ref),
                    remedy=f"run {self._options.verb} again",
                    code="conflict",
                ) from None
            raise ApiError(
                error.status, error.reason, error.what, where=str(change.ref), remedy=error.remedy
            ) from None

    async def _object(self, ref: Ref, version: str) -> Object:
        """Return an object as it is now."""
        path = f"{collection_path(ref, version, self._resources)}/{ref.name}"
        data: Object = await self._server(ref).get(path)
        return data

    async def _pods(self, namespace: str, selector: str) -> Object:
        """Return the list of the pods that a label selector selects."""
        pods: Object = await self._api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
        return pods

    async def _await_scrapes(self, phase: Phase, reading: PlannedCluster) -> None:
        await await_moved(
            self._api,
            reading.observation,
            reading.inventory,
            "plaintext" if reading.plan.inverse else "mtls",
            where=f"phase {phase}",
            seconds=self._options.timeout,
            again=f"{self._options.verb}",
            vouched=bool(self._options.phases),
            told=self._told,
            look=self._watch.look,
        )


def _versions(refs: Iterable[Ref], inventory: Inventory) -> dict[Ref, str]:
    """Return the `apiVersion` of each object that exists."""
    return {ref: str(manifest.data.get("apiVersion")) for ref in refs if (manifest := inventory.get(ref))}


def _versions_after(changes: Iterable[Change]) -> dict[Ref, str]:
    """Return the `apiVersion` of each object that changes leave."""
    return {change.ref: str(change.after.get("apiVersion")) for change in changes if change.after is not None}


def touched_namespaces(plan: Plan) -> frozenset[str]:
    """Return the namespaces of the workloads and objects that a plan changes."""
    return frozenset(ref.namespace for ref in (*plan.modes, *(change.ref for change in plan.changes)))


def refuse_unappliable(plan: Plan, *, apart: bool, waits: bool) -> None:
    """Raise InputError for a plan that changes what another tool tracks, or another API server's objects.

    `apart`: the user named that API server. `waits`: the user lets the run wait for the tools.
    """
    if plan.apart and not apart:
        raise InputError(
            "Istio's objects are in another API server than the workloads (ASM)",
            remedy="name it: --control-plane-kubeconfig FILE; or write files with `meshscrape render`",
            code="two-clusters",
        )
    if waits:
        return
    tracked: dict[str, list[Ref]] = {}
    for change in plan.changes:
        if tool := tracker(change.before):
            tracked.setdefault(tool, []).append(change.ref)
    for tool, refs in tracked.items():
        raise InputError(
            f"{tool} tracks {few(refs)}, and would take the change back",
            remedy="put what `meshscrape render --out DIR --kustomize` writes into its repository "
            "(--wait-for-gitops waits for that), or choose other workloads with --namespace or --selector",
            code="tracked",
        )
