"""Ask the API server beforehand whether the user has every right that a run needs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from meshscrape.cluster.api import Api
from meshscrape.cluster.needs import NeededRight
from meshscrape.errors import InputError

_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
# How many reviews are requested at the same time.
_AT_ONCE = 4


class MissingRightsError(InputError):
    """The user lacks rights; `missing` has one line for each."""

    def __init__(self, missing: Collection[str], where: str, verb: str) -> None:
        super().__init__(
            f"{len(missing)} right{'s' * (len(missing) != 1)} missing: {', '.join(missing)}"
            if len(missing) < 3
            else f"{len(missing)} rights are missing",
            where=where,
            remedy=f"grant what `meshscrape rbac {verb}` prints",
            code="forbidden",
        )
        self.missing = tuple(missing)


async def check_rights(api: Api, rights: Collection[NeededRight], verb: str) -> None:
    """Raise MissingRightsError with every right that the user lacks."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def allowed(right: NeededRight) -> bool:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": right.attributes},
        }
        async with turns:
            answer = await api.send("POST", _PATH, review)
        return bool((answer.get("status") or {}).get("allowed"))

    wanted = sorted(set(rights))
    answers = await asyncio.gather(*map(allowed, wanted))
    missing = [str(right) for right, answer in zip(wanted, answers, strict=True) if not answer]
    if missing:
        raise MissingRightsError(missing, api.access.place, verb)
