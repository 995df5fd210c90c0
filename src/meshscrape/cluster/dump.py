"""Read the objects that the planner needs from a live cluster. It changes nothing and reads no Secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.istiod import with_told_versions
from meshscrape.cluster.kinds import Resource, complete, group_path, groups_to_read, resources_to_read
from meshscrape.cluster.kubeconfig import Access
from meshscrape.errors import InputError
from meshscrape.istio.names import CONTROL_PLANE_GROUPS
from meshscrape.kube.objects import Manifest, manifest_of
from meshscrape.kube.shared_json import SharedJson

# How many lists are requested at the same time: the API server's fairness would throttle more.
AT_ONCE = 4
# How often a list is begun again if it changed so much that its pages no longer fit together.
ATTEMPTS = 3
_FORBIDDEN, _NOT_FOUND, _GONE = 403, 404, 410
# How many resources one error names.
_NAMED = 5


async def read_cluster(
    access: Access, told: Callable[[str], None], *, managers: bool = False
) -> list[Manifest]:
    """Return all objects of the kinds that the planner reads; call `told` with a line per list.

    With `managers`, the objects have the record of who wrote which field. If another API server has Istio's
    objects, they are read there, and everything else here.

    Raises InputError (code `forbidden`) if the user may not list one of the kinds: a plan from a part of the
    objects could close a port that is read. Raises UnavailableError if the API server does not answer.
    """
    if access.control is not None:
        here = await _read(replace(access, control=None), told, managers, istio=False)
        return [*here, *await _read(access.control, told, managers, istio=True)]
    return await _read(access, told, managers)


async def _read(
    access: Access, told: Callable[[str], None], managers: bool, *, istio: bool | None = None
) -> list[Manifest]:
    """Return the objects of one API server; `istio`: only those of Istio's groups, or only the others."""
    api = Api(access, SharedJson().decode)
    resources = [
        resource
        for resource in await served_resources(api)
        if istio is None or (resource.group in CONTROL_PLANE_GROUPS) is istio
    ]
    turns = asyncio.Semaphore(AT_ONCE)

    async def read(resource: Resource) -> list[Manifest] | ApiError:
        async with turns:
            try:
                manifests = await _list(api, resource, managers=managers)
            except ApiError as error:
                if error.status != _FORBIDDEN:
                    raise
                return error
        told(f"read {len(manifests)} {resource}")
        return manifests

    results = await asyncio.gather(*map(read, resources))
    forbidden = [
        resource for resource, result in zip(resources, results, strict=True) if isinstance(result, ApiError)
    ]
    if forbidden:
        raise _missing_rights(access, forbidden)
    return await with_told_versions(
        Api(access), [manifest for result in results if isinstance(result, list) for manifest in result]
    )


async def served_resources(api: Api) -> list[Resource]:
    """Return the resources to read that this API server serves. A group that does not answer is an error."""
    resources: list[Resource] = []
    for group, version in groups_to_read(await api.get("/apis")):
        resources += resources_to_read(group, version, await api.get(group_path(group, version)))
    return resources


async def _list(api: Api, resource: Resource, *, managers: bool) -> list[Manifest]:
    """Return all objects of a resource."""
    for attempt in range(ATTEMPTS):
        manifests: list[Manifest] = []
        try:
            async for page in api.pages(resource.path):
                for item in page.items:
                    manifests.append(
                        manifest_of(complete(item, resource, managers=managers), api.access.place)
                    )
        except ApiError as error:
            # A kind that was removed meanwhile has no objects.
            if error.status == _NOT_FOUND:
                return []
            if error.status != _GONE or attempt + 1 == ATTEMPTS:
                raise
            continue
        return manifests
    raise AssertionError("the last attempt returns or raises")


def _missing_rights(access: Access, resources: list[Resource]) -> InputError:
    more = f" and {len(resources) - _NAMED} more" if len(resources) > _NAMED else ""
    return InputError(
        f"no right to list {', '.join(map(str, resources[:_NAMED]))}{more}",
        where=access.place,
        remedy="grant what `meshscrape rbac observe` prints",
        code="forbidden",
    )
