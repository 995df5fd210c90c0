"""What a scrape proxy tells its followers: the log of changes, its answers, and the follower's replica."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.prometheus.target_rows import target_row
from meshscrape.prometheus.targets import Target
from meshscrape.proxy import changes
from meshscrape.proxy.changes import ChangeLog, Replica, pause_after
from meshscrape.spiffe.ids import SpiffeId

JOBS = ("merged", "envoy")
WHERE = "https://10.0.0.1:15098/changes"


def pod(number: int, account: str = "web", *, address: str = "") -> Target:
    """A target of its own: another object each time."""
    identity = SpiffeId("cluster.local", f"/ns/shop/sa/{account}")
    return Target(address or f"10.0.0.{number}", 15092, identity, {"pod": f"web-{number}"})


def by_job(merged: Iterable[Target], envoy: Iterable[Target] = ()) -> dict[str, list[tuple[Target, ...]]]:
    return {"merged": [tuple(merged)], "envoy": [tuple(envoy)]}


def follow(replica: Replica, log: ChangeLog) -> tuple[bool, int]:
    """Give a replica the answer to its version; whether it changed, and how many lines it had."""
    lines = list(log.since(replica.version))
    answer = replica.begin(WHERE)
    for line in lines:
        answer.feed(line)
    return replica.take(answer), len(lines)


def started(*targets: Target, run: str = "one") -> tuple[ChangeLog, Replica]:
    """A log with these targets, and a follower that knows them."""
    log, replica = ChangeLog(run), Replica(JOBS)
    log.update(by_job(targets))
    follow(replica, log)
    return log, replica


def read(replica: Replica, *lines: Any) -> bool:
    """Give a replica an answer of these lines."""
    answer = replica.begin(WHERE)
    for line in lines:
        answer.feed(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    return replica.take(answer)


def head(version: str = "one.1.0", since: str = "", gone: int = 0, come: int = 0) -> dict[str, Any]:
    return {"version": version, "since": since, "gone": gone, "come": come}


def test_first_answer_is_the_whole_list() -> None:
    """Every job of the follower is present, also one without targets."""
    first, second = pod(1), pod(2)
    _, replica = started(first, second)
    assert replica.targets() == {"merged": (first, second), "envoy": ()}


def test_answer_to_a_known_version_has_only_what_changed() -> None:
    """One target of a hundred changes its address: one goes, one comes."""
    targets = [pod(number) for number in range(1, 101)]
    log, replica = started(*targets)
    before = {target.address: target for target in replica.targets()["merged"]}
    targets[7] = pod(200)
    log.update(by_job(targets))
    assert follow(replica, log) == (True, 3)
    now = replica.targets()["merged"]
    assert sorted(now, key=lambda target: target.address) == sorted(
        targets, key=lambda target: target.address
    )
    assert sum(before.get(target.address) is target for target in now) == 99


def test_version_stays_while_no_target_changes() -> None:
    """A follower that knows it has nothing to ask for."""
    targets = [pod(1), pod(2)]
    log, replica = started(*targets)
    log.update(by_job(targets))
    assert log.version == replica.version
    assert follow(replica, log) == (False, 1)


def test_targets_that_came_and_went_in_between_are_not_told() -> None:
    """The follower never knew them."""
    targets = [pod(number) for number in range(1, 11)]
    log, replica = started(*targets)
    log.update(by_job([*targets, pod(77)]))
    log.update(by_job(targets))
    assert log.version != replica.version
    assert follow(replica, log) == (False, 1)
    assert replica.version == log.version


def test_targets_with_one_address_are_kept_apart() -> None:
    """Pods of the node's network: the follower decides which addresses are contested."""
    first, second = pod(1, address="10.0.0.9"), pod(2, "impostor", address="10.0.0.9")
    log, replica = started(first, second)
    assert replica.targets()["merged"] == (first, second)
    log.update(by_job([second]))
    follow(replica, log)
    assert replica.targets()["merged"] == (second,)


def test_restarted_proxy_tells_the_whole_list_although_its_counts_are_the_same() -> None:
    """Versions begin again, so they carry the run. Equal targets stay the same objects: nothing changes."""
    _, replica = started(pod(1), pod(2))
    known = replica.targets()["merged"]
    log = ChangeLog("two")
    log.update(by_job([pod(1), pod(2)]))
    assert log.version.partition(".")[2] == replica.version.partition(".")[2]
    assert follow(replica, log) == (False, 3)
    assert all(before is now for before, now in zip(known, replica.targets()["merged"], strict=True))
    log.update(by_job([pod(1), pod(3)]))
    assert follow(replica, log)[0]
    assert replica.version == log.version


def test_restarted_proxy_with_another_identity_at_an_address_changes_it() -> None:
    """Same address, port and path; only the identity differs."""
    _, replica = started(pod(1))
    log = ChangeLog("two")
    log.update(by_job([pod(1, "other")]))
    assert follow(replica, log)[0]
    assert replica.targets()["merged"] == (pod(1, "other"),)


def test_follower_that_was_away_for_long_gets_the_whole_list() -> None:
    """The log keeps a bounded number of removals."""
    log, replica = ChangeLog("one", removals_kept=5), Replica(JOBS)
    kept = [pod(number) for number in range(1, 101)]
    log.update(by_job(kept))
    follow(replica, log)
    for number in range(200, 206):
        log.update(by_job([*kept, pod(number)]))
    log.update(by_job(kept))
    assert follow(replica, log) == (False, 101)


def test_larger_change_than_the_list_is_told_as_the_whole_list() -> None:
    """After a rollout of everything, the list is shorter than what changed."""
    log, replica = started(*(pod(number) for number in range(1, 11)))
    new = [pod(number) for number in range(11, 21)]
    log.update(by_job(new))
    assert follow(replica, log) == (True, 11)
    assert replica.targets()["merged"] == tuple(new)


@pytest.mark.parametrize(
    "version",
    ["", "x", "one", "one.2", "one.2.0.0", "two.2.0", "one.3.0", "one.2.1", "one.-1.0", "one.2.x", "one.2.²",
     "one." + "9" * 5000 + ".0", ".2.0", "one..0"],
)  # fmt: skip
def test_unknown_version_gets_the_whole_list(version: str) -> None:
    """Whatever a follower sends, the answer is right."""
    log, _ = started(pod(1), pod(2))
    lines = list(log.since(version))
    assert json.loads(lines[0]) == head("one.2.0", come=2)
    assert len(lines) == 3


_STEPS = st.lists(st.tuples(st.sets(st.integers(1, 12)), st.booleans(), st.booleans()), max_size=30)


@given(_STEPS, st.integers(1, 8))
def test_follower_always_ends_with_the_targets_of_the_proxy(
    steps: list[tuple[set[int], bool, bool]], kept: int
) -> None:
    """Any changes, any version that the follower comes back with, restarts in between."""
    pods = {number: pod(number) for number in range(1, 13)}
    log, replica, run = ChangeLog("run0", kept), Replica(JOBS), 0
    for present, asks, restarts in steps:
        if restarts:
            run += 1
            log = ChangeLog(f"run{run}", kept)
        merged = [pods[number] for number in sorted(present) if number % 3]
        envoy = [pods[number] for number in sorted(present) if not number % 3]
        log.update(by_job(merged, envoy))
        if asks:
            before = replica.targets()
            changed, _ = follow(replica, log)
            now = {job: {target.address for target in targets} for job, targets in replica.targets().items()}
            assert now == {"merged": {p.address for p in merged}, "envoy": {p.address for p in envoy}}
            then = {job: {target.address for target in targets} for job, targets in before.items()}
            assert changed == (now != then)


@given(st.integers(1, 50))
def test_answer_may_arrive_in_pieces(size: int) -> None:
    """The pieces of a stream end anywhere."""
    log = ChangeLog("one")
    log.update(by_job([pod(1), pod(2)]))
    data = b"".join(log.since(""))
    replica = Replica(JOBS)
    answer = replica.begin(WHERE)
    for place in range(0, len(data), size):
        answer.feed(data[place : place + size])
    assert replica.take(answer)
    assert len(replica.targets()["merged"]) == 2


@pytest.mark.parametrize("missing", [1, 2, 3, 30])
def test_cut_answer_changes_nothing(missing: int) -> None:
    """The version stays, so that the next answer begins where this one did."""
    log, replica = started(pod(1))
    log.update(by_job([pod(2)]))
    data = b"".join(log.since(replica.version))[:-missing]
    answer = replica.begin(WHERE)
    answer.feed(data)
    with pytest.raises(InputError, match="ends too early"):
        replica.take(answer)
    assert (replica.targets()["merged"], replica.version) == ((pod(1),), "one.1.0")
    assert follow(replica, log)[0]
    assert replica.targets()["merged"] == (pod(2),)


def test_targets_of_other_jobs_are_left_out() -> None:
    """The other proxy may have target files of its own; their removal is no change either."""
    own, other = pod(1), pod(2)
    log, replica = ChangeLog("one"), Replica(JOBS)
    log.update(by_job([own]) | {"mesh": [(other,)]})
    assert follow(replica, log) == (True, 3)
    assert replica.targets() == {"merged": (own,), "envoy": ()}
    log.update(by_job([own]))
    assert follow(replica, log) == (False, 2)


def test_equal_texts_are_one_object() -> None:
    """Thousands of targets have the same names of labels and the same namespace."""
    first, second = pod(1), pod(2)
    _, replica = started(first, second)
    one, other = replica.targets()["merged"]
    assert all(a is b for a, b in zip(one.labels, other.labels, strict=True))
    assert one.path is other.path


ENTRY = [0, "merged", *target_row(pod(1))]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"\n"],
        [b"[]\n"],
        [b"not json\n"],
        [b"[" * 60_000 + b"\n"],
        [b"9" * 5_000 + b"\n"],
        [b"\xff\n"],
        [b" " * (changes.LONGEST_LINE + 1)],
        [b" " * changes.LONGEST_LINE + b"{}\n"],
        [head() | {"more": 1}],
        [head(version="")],
        [head(version="a\r\nb")],
        [head(version="a" * 101)],
        [head() | {"version": 1}],
        [head() | {"since": None}],
        [head(come=-1)],
        [head() | {"gone": True}],
        [head() | {"come": 1.0}],
        [head(come=changes.MOST_TARGETS + 1)],
        [head(gone=changes.MOST_TARGETS + 1)],
        [head(since="two.1.0")],
        [head(come=1)],
        [head(come=1), 5],
        [head(come=1), [0]],
        [head(come=1), [0, 1, *ENTRY[2:]]],
        [head(come=1), [-1, *ENTRY[1:]]],
        [head(come=1), [1 << 63, *ENTRY[1:]]],
        [head(come=1), ENTRY[:-1]],
        [head(come=1), ENTRY, ENTRY],
        [head(since="one.1.0", gone=1), ENTRY],
        [head(since="one.1.0", gone=1), True],
        [head(), b"rest"],
    ],
)  # fmt: skip
def test_refuses_what_no_scrape_proxy_tells(lines: list[Any]) -> None:
    """One line says where it came from, and the targets stay."""
    _, replica = started(pod(1))
    with pytest.raises(InputError) as caught:
        read(replica, *lines)
    assert caught.value.where == WHERE
    assert (replica.targets()["merged"], replica.version) == ((pod(1),), "one.1.0")


def test_changes_cannot_add_up_to_more_targets_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is small, their sum is not."""
    monkeypatch.setattr(changes, "MOST_TARGETS", 3)
    _, replica = started(pod(1), pod(2))
    assert read(replica, head("one.3.0", "one.2.0", come=1), [7, *ENTRY[1:]])
    with pytest.raises(InputError, match="more than 3 targets"):
        read(replica, head("one.4.0", "one.3.0", come=1), [8, *ENTRY[1:]])
    assert len(replica.targets()["merged"]) == 3


@pytest.mark.parametrize(
    ("seconds", "whole", "pause"),
    [(0, False, 0.1), (0.1, False, 0.5), (9, False, 1.0), (0, True, 0.1), (1, True, 5.0), (99, True, 30.0)],
)  # fmt: skip
def test_pause_grows_with_what_an_answer_cost(seconds: float, whole: bool, pause: float) -> None:
    """A proxy that tells the whole list all the time cannot keep a follower busy."""
    assert pause_after(seconds, whole=whole) == pause
