"""Apply a plan to a live cluster, phase by phase, and prove each phase before the next one.

A run keeps no state of its own. It reads the cluster again after each phase and plans anew, so a run that was
interrupted goes on where it stopped when it is run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from meshscrape.cluster import lease as leases
from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.dump import read_cluster, served_resources
from meshscrape.cluster.kinds import Resource
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.rollouts import is_rolled_out, pending
from meshscrape.cluster.scraped import (
    API_PORT,
    expected_targets,
    health_by_target,
    left_targets,
    prometheus_pods,
)
from meshscrape.cluster.trackers import tracker
from meshscrape.cluster.writes import collection_path, merged, write_of
from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.observe.model import Over
from meshscrape.observe.observation import Observation
from meshscrape.plan.model import Change, Phase, Plan
from meshscrape.system.clock import utcnow
from meshscrape.system.tasks import background

POLL_SECONDS = 1.0
_NOT_FOUND, _CONFLICT, _INVALID = 404, 409, 422
_NAMED = 5
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
    `verb` is what the user runs again.
    """

    phases: tuple[Phase, ...] = ()
    timeout: float = 600.0
    dry_run: bool = False
    holder: str = "meshscrape"
    verb: str = "apply"


class StoppedError(MeshscrapeError):
    """The run stopped between two steps: what was applied stays, and running it again goes on."""

    exit_code = 1


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
        self._planner = planner
        self._options = options
        self._told = told
        self._resources: list[Resource] = []

    async def read(self) -> PlannedCluster:
        """Read the cluster and plan. InputError for a plan that cannot be applied."""
        managers = self._options.verb == "remove"
        reading = self._planner(Inventory(await read_cluster(self._access, self._told, managers=managers)))
        refuse_unappliable(reading.plan)
        return reading

    async def apply(self, reading: PlannedCluster) -> PlannedCluster:
        """Apply what `read` returned; return what the cluster contains then.

        StoppedError when a phase has no effect in time, another manager takes a change back, or a moved
        target is not up. ApiError and UnavailableError when a write fails.
        """
        self._resources = await served_resources(self._api)
        await self._check_rights(reading.plan)
        if self._options.dry_run:
            for change in merged(self._changes(reading.plan)):
                await self._write(change)
            return reading
        async with self._exclusively():
            shown = {change.ref for change in reading.plan.changes}
            for phase in self._options.phases or reading.plan.phases:
                if any(change.phase == phase for change in reading.plan.changes):
                    reading = await self._apply_phase(phase, reading, shown)
            if reading.plan.inverse:
                await self._await_scrapes("removal", reading)
            return reading

    def _changes(self, plan: Plan) -> list[Change]:
        wanted = self._options.phases or plan.phases
        return [change for change in plan.changes if change.phase in wanted]

    async def _apply_phase(self, phase: Phase, reading: PlannedCluster, shown: set[Ref]) -> PlannedCluster:
        """Apply one phase and wait until it has taken effect; return the cluster after it."""
        changes = [change for change in reading.plan.changes if change.phase == phase]
        fresh = [change.ref for change in changes if change.ref not in shown]
        if fresh:
            raise StoppedError(
                f"the cluster has changed: {_few(fresh)} was not in the plan that was shown",
                where=f"phase {phase}",
                remedy=f"look at the new plan and run {self._options.verb} again",
                code="changed-plan",
            )
        if phase in (_PROVED_INVERSE if reading.plan.inverse else _PROVED):
            await self._await_scrapes(phase, reading)
        self._told(f"phase {phase}: {len(changes)} changes")
        healthy = [item for item in _rolled_out(reading.inventory) if pending(item) is None]
        for change in changes:
            await self._write(change)
            self._told(f"phase {phase}: {change.action}d {change.ref}")
        touched = {change.ref.namespace for change in changes}
        watched = {item.ref for item in healthy if item.ref.namespace in touched}
        watched |= {change.ref for change in changes if change.after is not None}
        await self._await_effect(phase, watched, reading.inventory, changes)
        after = await self.read()
        again = [change.ref for change in after.plan.changes if change.phase == phase]
        if again:
            raise StoppedError(
                f"{_few(again)} is not as it was applied: another manager took the change back",
                where=f"phase {phase}",
                remedy=f"change it where it is managed, then run {self._options.verb} again",
                code="taken-back",
            )
        return after

    async def _write(self, change: Change) -> None:
        write = write_of(change, self._resources, dry_run=self._options.dry_run)
        try:
            await self._api.send(
                write.method, write.path, write.body, media_type=write.media_type, **write.query
            )
        except ApiError as error:
            if change.action == "delete" and error.status == _NOT_FOUND:
                return
            if error.status == _CONFLICT or (change.action == "update" and error.status == _INVALID):
                raise StoppedError(
                    f"it is no longer as it was planned, or the API server refuses it: {error.what}",
                    where=str(change.ref),
                    remedy=f"run {self._options.verb} again",
                    code="conflict",
                ) from None
            raise ApiError(
                error.status, error.reason, error.what, where=str(change.ref), remedy=error.remedy
            ) from None

    async def _await_effect(
        self, phase: Phase, refs: Set[Ref], inventory: Inventory, changes: list[Change]
    ) -> None:
        """Wait until every object of `refs` is as its specification says."""
        versions = {ref: str(found.data.get("apiVersion")) for ref in refs if (found := inventory.get(ref))}
        versions |= {
            change.ref: str(change.after.get("apiVersion")) for change in changes if change.after is not None
        }
        deadline = asyncio.get_running_loop().time() + self._options.timeout
        shown = ""
        while True:
            missing = {ref: gap for ref in sorted(refs) if (gap := await self._gap(ref, versions[ref]))}
            if not missing:
                return
            ref, gap = next(iter(missing.items()))
            late = asyncio.get_running_loop().time() > deadline
            if late or gap.failed:
                raise StoppedError(
                    gap.text if gap.failed else f"not within {self._options.timeout:.0f} s: {gap.text}",
                    where=f"phase {phase}: {ref}",
                    remedy=f"see why its pods are not ready, then run {self._options.verb} again: what was "
                    "applied stays",
                    code="rollout",
                )
            if (line := f"phase {phase}: waiting for {ref}: {gap.text}") != shown:
                self._told(line)
                shown = line
            await asyncio.sleep(POLL_SECONDS)

    async def _gap(self, ref: Ref, version: str) -> Any:
        path = f"{collection_path(ref, version, self._resources)}/{ref.name}"
        try:
            return pending(Manifest(ref, await self._api.get(path)))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def _await_scrapes(self, phase: Phase, reading: PlannedCluster) -> None:
        """Wait until every Prometheus has all moved targets up, and none where they were before.

        Moved are the targets over mutual TLS; when a plan is taken back, those in plaintext. A scraper that
        cannot be asked stops the run, unless the user named the phase and so vouches for it.
        """
        refs = [workload.ref for workload in reading.observation.workloads]
        pods, others = prometheus_pods(reading.observation, reading.inventory)
        named = bool(self._options.phases)
        inverse = reading.plan.inverse
        over: Over = "plaintext" if inverse else "mtls"
        expected = expected_targets(reading.observation, refs, over, others if named else ())
        left = left_targets(reading.observation, expected) if inverse else frozenset()
        if others and expected and not named:
            raise StoppedError(
                f"{_few(others)} cannot be asked which targets are up",
                where=f"phase {phase}",
                remedy=f"look there, then run {self._options.verb} --phase {phase}",
                code="unasked-scraper",
            )
        deadline = asyncio.get_running_loop().time() + self._options.timeout
        while expected:
            try:
                health = health_by_target([await self._targets(pod) for pod in pods])
            except StoppedError as error:
                if not named:
                    raise
                self._told(f"phase {phase}: targets are not asked for: {error}")
                return
            down = [place for place in expected if health.get(place) != "up"]
            down += sorted(left & health.keys())
            if not down:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise StoppedError(
                    f"not moved within {self._options.timeout:.0f} s: {_few(down)}",
                    where=f"phase {phase}",
                    remedy=f"see them on Prometheus' page of targets, then run {self._options.verb} again",
                    code="targets-down",
                )
            self._told(f"phase {phase}: waiting for {len(down)} of {len(expected)} targets to move")
            await asyncio.sleep(POLL_SECONDS)

    async def _targets(self, pod: Ref) -> Any:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}:{API_PORT}/proxy/api/v1/targets"
        try:
            return await self._api.get(path, state="active")
        except (ApiError, UnavailableError) as error:
            raise StoppedError(
                f"Prometheus' API cannot be read through the API server: {error.what}",
                where=str(pod),
                remedy="look at its targets, then name the phase with --phase",
                code="unasked-scraper",
            ) from None

    async def _check_rights(self, plan: Plan) -> None:
        """Raise InputError with every right that the writes need and the user has not."""
        wanted = {_right(change, self._resources) for change in self._changes(plan)}
        missing = []
        for verb, group, plural, namespace in sorted(wanted):
            attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace}
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            answer = await self._api.send("POST", path, review)
            if not (answer.get("status") or {}).get("allowed"):
                missing.append(
                    f"{verb} {plural}{f'.{group}' if group else ''} in {namespace or 'the cluster'}"
                )
        if missing:
            raise InputError(
                f"missing rights: {_few(missing)}",
                where=self._access.place,
                remedy=f"grant what `meshscrape rbac {self._options.verb}` prints",
                code="forbidden",
            )

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        """Hold the cluster's Lease. StoppedError when another run holds it, also in the middle."""
        await self._hold(self._options.holder)
        try:
            async with background() as tasks:
                tasks.start(partial(self._renew, self._options.holder), "renewal of the Lease")
                yield
        finally:
            await self._hold("")

    async def _renew(self, holder: str) -> None:
        while True:
            await asyncio.sleep(leases.RENEW_SECONDS)
            await self._hold(holder)

    async def _hold(self, holder: str) -> None:
        try:
            found = await self._api.get(f"{leases.PATH}/{leases.NAME}")
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise
            await self._api.send("POST", leases.PATH, leases.lease(holder, utcnow()))
            return
        if other := leases.other_holder(found, self._options.holder, utcnow()):
            raise StoppedError(
                f"{other} applies a plan to this cluster now",
                where=self._access.place,
                remedy=f"wait until it has ended; a Lease of a killed run expires after {leases.SECONDS} s",
                code="held",
            )
        version = str((found.get("metadata") or {}).get("resourceVersion", ""))
        body = leases.lease(holder, utcnow(), version)
        await self._api.send("PUT", f"{leases.PATH}/{leases.NAME}", body)


def refuse_unappliable(plan: Plan) -> None:
    """Raise InputError for a plan that changes what another tool tracks, or another API server's objects."""
    if plan.apart:
        raise InputError(
            "Istio's objects are in another API server than the workloads (ASM)",
            remedy="write both with `meshscrape render --out DIR`, and apply each to its own",
            code="two-clusters",
        )
    tracked: dict[str, list[Ref]] = {}
    for change in plan.changes:
        if tool := tracker(change.before):
            tracked.setdefault(tool, []).append(change.ref)
    for tool, refs in tracked.items():
        raise InputError(
            f"{tool} tracks {_few(refs)}, and would take the change back",
            remedy="put what `meshscrape render --out DIR --kustomize` writes into its repository, or choose "
            "other workloads with --namespace or --selector",
            code="tracked",
        )


def _rolled_out(inventory: Inventory) -> list[Manifest]:
    return [manifest for manifest in inventory if is_rolled_out(manifest.ref.kind)]


def _right(change: Change, resources: Iterable[Resource]) -> tuple[str, str, str, str]:
    verb = {"create": "create", "update": "patch", "delete": "delete"}[change.action]
    data = change.after if change.after is not None else change.before
    version = str((data or {}).get("apiVersion"))
    plural = collection_path(change.ref, version, resources).rpartition("/")[2]
    return verb, change.ref.group, plural, change.ref.namespace


def _few(items: Iterable[object]) -> str:
    named = list(dict.fromkeys(map(str, items)))
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more
