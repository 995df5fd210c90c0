"""What is kept of pods: their targets, through lists and watches."""

from __future__ import annotations

from typing import Any

from meshscrape.cluster.pod_cache import PodCache
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import workload_id

JOB = "merged"


def pod(uid: str, address: str = "10.0.0.1", account: str = "web") -> dict[str, Any]:
    """The fields that the tests' own rule reads."""
    return {"metadata": {"uid": uid}, "address": address, "account": account}


def targets_of(found: Any) -> dict[str, tuple[Target, ...]]:
    """One target at the pod's address, none without an address."""
    if not found["address"]:
        return {}
    spiffe_id = workload_id("cluster.local", "shop", found["account"])
    return {JOB: (Target(found["address"], 15092, spiffe_id, {}),)}


def addresses(cache: PodCache) -> list[str]:
    """The addresses of all targets."""
    return [target.address for target in cache.targets((JOB,))[JOB]]


def test_tells_whether_targets_changed() -> None:
    """An event that changes no target must not write routes again."""
    cache = PodCache(targets_of)
    assert cache.put([pod("a")])
    assert not cache.put([pod("a")])
    assert cache.put([pod("a", account="other")])
    assert cache.put([pod("a", address="")])
    assert not cache.remove(pod("a"))
    assert addresses(cache) == []


def test_targets_that_did_not_change_stay_the_same_objects() -> None:
    """Whoever compares by identity sees only the pods that changed."""
    cache = PodCache(targets_of)
    cache.put([pod("a")])
    before = cache.targets((JOB,))[JOB]
    cache.put([pod("a")])
    assert cache.targets((JOB,))[JOB][0] is before[0]


def test_new_list_forgets_what_it_does_not_name() -> None:
    """Pods that were deleted while no watch ran are gone after the next list, over several pages."""
    cache = PodCache(targets_of)
    cache.put([pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3")])
    cache.begin()
    assert not cache.put([pod("a", "10.0.0.1")])
    assert cache.put([pod("d", "10.0.0.4")])
    assert cache.end()
    assert addresses(cache) == ["10.0.0.1", "10.0.0.4"]


def test_list_that_changes_nothing_is_no_change() -> None:
    """Listing again after an interrupted watch writes no routes when nothing happened."""
    cache = PodCache(targets_of)
    cache.put([pod("a")])
    cache.begin()
    assert not cache.put([pod("a")])
    assert not cache.end()


def test_pod_of_the_same_name_is_another_pod() -> None:
    """The late deletion of a StatefulSet's old pod does not take the targets of the new one away."""
    cache = PodCache(targets_of)
    cache.put([pod("old", "10.0.0.1"), pod("new", "10.0.0.2")])
    assert cache.remove(pod("old"))
    assert addresses(cache) == ["10.0.0.2"]


def test_object_without_a_uid_is_left_out() -> None:
    """A damaged answer must not end the watch."""
    cache = PodCache(targets_of)
    broken: list[dict[str, Any]] = [{}, {"metadata": None}, {"metadata": {}}]
    assert not cache.put(broken)
    assert not cache.remove(broken[1])
    assert len(cache) == 0
