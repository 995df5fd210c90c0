"""Wait until written objects have taken effect: until their pods run as their specification says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from meshscrape.cluster.api import ApiError
from meshscrape.cluster.proof import POLL_SECONDS
from meshscrape.cluster.rollouts import Pending, is_rolled_out, pending, stuck_pods
from meshscrape.cluster.stopping import StoppedError
from meshscrape.errors import MeshscrapeError
from meshscrape.kube.objects import Manifest, Object, Ref, as_list, dig
from meshscrape.kube.selectors import selector_text

_NOT_FOUND = 404
# Reads an object, and lists the pods of a namespace by a label selector.
Read = Callable[[Ref, str], Awaitable[Object]]
Pods = Callable[[str, str], Awaitable[Object]]


class Effect:
    """Waits for objects, at most `timeout` seconds; `verb` is what the user runs again.

    `look` watches the scrapes meanwhile.
    """

    def __init__(
        self,
        read: Read,
        pods: Pods,
        *,
        timeout: float,
        verb: str,
        told: Callable[[str], None],
        look: Callable[[str], Awaitable[None]],
    ) -> None:
        self._read = read
        self._pods = pods
        self._timeout = timeout
        self._verb = verb
        self._told = told
        self._look = look

    async def arrived(self, where: str, versions: Mapping[Ref, str]) -> None:
        """Wait until every object is as its specification says; `versions` has each one's `apiVersion`.

        Raises StoppedError when that takes too long, or when waiting longer does not help.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        shown = ""
        while True:
            missing = {ref: gap for ref in sorted(versions) if (gap := await self._gap(ref, versions[ref]))}
            if not missing:
                return
            ref, gap = next(iter(missing.items()))
            late = asyncio.get_running_loop().time() > deadline
            if late or gap.failed:
                raise StoppedError(
                    (gap.text if gap.failed else f"not within {self._timeout:.0f} s: {gap.text}")
                    + await self._reason(ref, versions[ref]),
                    where=f"{where}: {ref}",
                    remedy=f"see why its pods are not ready, then run {self._verb} again: what was "
                    "applied stays",
                    code="rollout",
                )
            if (line := f"{where}: waiting for {ref}: {gap.text}") != shown:
                self._told(line)
                shown = line
            await self._look(where)
            await asyncio.sleep(POLL_SECONDS)

    async def _gap(self, ref: Ref, version: str) -> Pending | None:
        try:
            return pending(Manifest(ref, await self._read(ref, version)))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def _reason(self, ref: Ref, version: str) -> str:
        """Return the reasons that the kubelet gives why pods of a workload wait; empty without any."""
        if not is_rolled_out(ref.kind):
            return ""
        try:
            data = await self._read(ref, version)
            selector = selector_text(dig(data, "spec", "selector", default={}))
            pods = await self._pods(ref.namespace, selector)
        except MeshscrapeError:
            return ""
        reasons = stuck_pods(as_list(pods.get("items")))
        return f"; {'; '.join(reasons[:2])}" if reasons else ""
