"""Who gets a place at the CA's port, who loses one, and whose handshake comes next."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshscrape.ca.admission import (
    KNOWN_SECONDS,
    MAX_KNOWN,
    Active,
    Admission,
    Arrived,
    Cause,
    ConnectionStage,
    Decision,
    Elapsed,
    Ended,
    Event,
    Exhausted,
    Greeted,
    Limits,
    Proved,
    Secured,
    TurnTaken,
    decide,
    holder_of,
)

SMALL = Limits(silent_places=4, waiting_places=3, shaking_places=2, unproven_places=3, proven_places=3)


class Port:
    """An `Admission`, and what a server does with its decisions."""

    def __init__(self, limits: Limits = SMALL) -> None:
        self.state = Admission(limits)
        self.now = 1000.0
        self.numbers: Iterator[int] = count(1)
        self.ended: dict[int, Cause] = {}

    def on(self, event: Event) -> Decision:
        decision = decide(self.state, event, self.now)
        for number, cause in decision.end:
            self.ended[number] = cause
            decide(self.state, Ended(number), self.now)
        return decision

    def arrive(
        self, address: str, stage: ConnectionStage = ConnectionStage.SILENT, identity: str = ""
    ) -> int:
        """A new connection of `address`, brought as far as `stage`."""
        number = next(self.numbers)
        self.on(Arrived(number, address))
        if stage is not ConnectionStage.SILENT:
            self.on(Greeted(number))
        if stage in (ConnectionStage.SHAKING, ConnectionStage.UNPROVEN, ConnectionStage.PROVEN):
            assert self.on(TurnTaken()).start == number
        if stage in (ConnectionStage.UNPROVEN, ConnectionStage.PROVEN):
            self.on(Secured(number, identity))
        assert self.state.stage(number) is stage
        return number


def test_the_largest_holders_oldest_connection_makes_room() -> None:
    """When the silent places are full, whoever has most of them loses the oldest; nobody is refused."""
    port = Port()
    few = port.arrive("10.0.0.1")
    many = [port.arrive("10.0.0.9") for _ in range(3)]
    newcomer = port.arrive("10.0.0.2")
    assert port.ended == {many[0]: Cause.EVICTED}
    assert port.state.stage(few) is port.state.stage(newcomer) is ConnectionStage.SILENT


def test_a_flood_from_one_address_ends_its_own_oldest_connections() -> None:
    """A pod behind the same address as an attacker keeps its new connection for a whole round of places."""
    port = Port()
    flood = [port.arrive("10.0.0.9") for _ in range(4)]
    honest = port.arrive("10.0.0.9")
    port.arrive("10.0.0.9")
    assert sorted(port.ended) == flood[:2]
    port.on(Greeted(honest))
    assert port.on(TurnTaken()).start == honest


@pytest.mark.parametrize(
    "stage",
    [ConnectionStage.SILENT, ConnectionStage.WAITING, ConnectionStage.SHAKING, ConnectionStage.UNPROVEN],
)
def test_unproven_peers_take_no_place_of_proven_ones(stage: ConnectionStage) -> None:
    """However many connections come without a proof, one that has proved its identity stays."""
    port = Port()
    proven = port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://a")
    for number in range(50):
        port.arrive(f"10.0.0.{number}", stage)
    assert port.state.stage(proven) is ConnectionStage.PROVEN
    assert set(port.ended.values()) == {Cause.EVICTED}


def test_one_identity_does_not_take_the_places_of_another() -> None:
    """A workload that floods with its own certificate loses its own quietest connections."""
    port = Port()
    other = port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://a")
    first, second = (port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://b") for _ in range(2))
    port.now += 1
    port.on(Active(first))
    port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://b")
    assert port.ended == {second: Cause.EVICTED}
    assert port.state.stage(other) is ConnectionStage.PROVEN


def test_turns_alternate_between_known_and_unknown_addresses() -> None:
    """An address that has proved an identity lately has every second turn, however many others wait."""
    port = Port(Limits())
    proven = port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://a")
    assert port.state.stage(proven) is ConnectionStage.PROVEN
    strangers = [port.arrive(f"10.9.0.{number}", ConnectionStage.WAITING) for number in range(10)]
    known = [port.arrive("10.0.0.1", ConnectionStage.WAITING) for _ in range(2)]
    turns = [port.on(TurnTaken()).start for _ in range(4)]
    assert set(turns[:2]) & set(known) and set(turns[2:]) & set(known)
    assert len(set(turns) & set(strangers)) == 2


def test_known_addresses_are_forgotten_after_a_time() -> None:
    """After a day without a proof, and beyond the number that is remembered, an address is as any other."""
    port = Port(Limits())
    port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://a")
    assert port.state.knows("10.0.0.1", port.now)
    assert not port.state.knows("10.0.0.1", port.now + KNOWN_SECONDS)
    for number in range(MAX_KNOWN):
        port.arrive(f"10.1.{number // 256}.{number % 256}", ConnectionStage.PROVEN, "spiffe://b")
    assert port.state.knows("10.1.0.0", port.now)
    assert not port.state.knows("10.0.0.1", port.now)


def test_every_address_gets_a_turn() -> None:
    """Each address that waits has one turn in a round, however many connections it has."""
    port = Port(Limits())
    a = [port.arrive("10.0.0.1", ConnectionStage.WAITING) for _ in range(3)]
    b = [port.arrive("10.0.0.2", ConnectionStage.WAITING)]
    turns = [port.on(TurnTaken()).start for _ in range(5)]
    assert turns[0] in a and turns[1] == b[0] and {turns[2], turns[3]} < set(a)
    assert turns[4] is None


def test_neither_the_oldest_nor_the_newest_waits_for_ever() -> None:
    """While one address has more connections waiting than turns, its first and its last are served soon."""
    port = Port(Limits())
    oldest, *_ = (port.arrive("10.0.0.1", ConnectionStage.WAITING) for _ in range(50))
    newest = port.arrive("10.0.0.1", ConnectionStage.WAITING)
    turns = set()
    for _ in range(4):
        turns.add(port.on(TurnTaken()).start)
        port.arrive("10.0.0.1", ConnectionStage.WAITING)
    assert {oldest, newest} <= turns


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [
        (ConnectionStage.SILENT, SMALL.silent),
        (ConnectionStage.WAITING, SMALL.waiting),
        (ConnectionStage.SHAKING, SMALL.shaking),
        (ConnectionStage.UNPROVEN, SMALL.unproven),
        (ConnectionStage.PROVEN, SMALL.idle),
    ],
)
def test_each_stage_has_its_time(stage: ConnectionStage, seconds: float) -> None:
    """What has stayed in a stage for its time ends, not before; sending something does not buy more of it."""
    port = Port()
    number = port.arrive("10.0.0.1", stage, "spiffe://a" if stage is ConnectionStage.PROVEN else "")
    port.now += seconds - 0.01
    assert port.on(Elapsed()) == Decision()
    if stage is not ConnectionStage.PROVEN:
        port.on(Active(number))
    port.now += 0.01
    assert port.on(Elapsed()).end == ((number, Cause.TIMEOUT),)


def test_a_busy_connection_ends_after_its_life() -> None:
    """A proven connection that is never idle ends all the same; proving again does not make it younger."""
    port = Port()
    number = port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://a")
    for turn in range(int(SMALL.proven / 10)):
        assert not port.ended, turn
        port.on(Active(number))
        port.on(Proved(number, f"spiffe://{turn % 2}"))
        port.now += 10
        port.on(Elapsed())
    assert port.ended == {number: Cause.TIMEOUT}


def test_a_token_makes_a_connection_proven() -> None:
    """A connection without a client certificate leaves the unproven places with its first accepted token."""
    port = Port()
    number = port.arrive("10.0.0.1", ConnectionStage.UNPROVEN)
    port.on(Proved(number, "spiffe://a"))
    assert (port.state.stage(number), port.state.count(ConnectionStage.UNPROVEN)) == (
        ConnectionStage.PROVEN,
        0,
    )


def test_a_machine_without_descriptors_ends_a_silent_connection_first() -> None:
    """Short of descriptors, the CA ends what has proved nothing, and never what has proved an identity."""
    port = Port()
    port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://a")
    assert port.on(Exhausted()) == Decision()
    unproven, silent = port.arrive("10.0.0.2", ConnectionStage.UNPROVEN), port.arrive("10.0.0.3")
    assert port.on(Exhausted()).end == ((silent, Cause.EVICTED),)
    assert port.on(Exhausted()).end == ((unproven, Cause.EVICTED),)


def test_events_of_a_connection_that_is_gone_change_nothing() -> None:
    """A late event of an ended connection gives it no place."""
    port = Port()
    number = port.arrive("10.0.0.1")
    for event in (Ended(number), Greeted(number), Secured(number, "a"), Proved(number, "a"), Active(number)):
        assert port.on(event) == Decision()
    assert sum(port.state.count(stage) for stage in ConnectionStage) == 0
    assert port.on(TurnTaken()).start is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "", True),
    ],
)
def test_an_ipv6_host_is_its_network(one: str, other: str, same: bool) -> None:
    """Addresses that one host can choose from count as one; a mapped IPv4 address is the IPv4 address."""
    assert (holder_of(one) == holder_of(other)) is same


def test_places_shrink_with_the_descriptors_of_the_process() -> None:
    """A process that may open few files has fewer places, for every stage some; times stay as they are."""
    shrunk = Limits().within(1000)
    assert sum(shrunk.places(stage) for stage in ConnectionStage) <= 1000
    assert all(shrunk.places(stage) >= 8 for stage in ConnectionStage)
    assert shrunk.silent == Limits().silent
    assert Limits().within(10**6) == Limits()


EVENTS = st.lists(
    st.tuples(st.sampled_from(["arrive", "greet", "turn", "secure", "prove", "end", "elapse", "exhaust"]),
              st.integers(0, 12), st.sampled_from(["10.0.0.1", "10.0.0.2", "::1", "::2"])),
    max_size=80,
)  # fmt: skip


@given(EVENTS)
@settings(max_examples=200, deadline=None)
def test_places_are_never_overbooked(events: list[tuple[str, int, str]]) -> None:
    """In any order of events no stage has more connections than places, and each connection has one place."""
    port = Port()
    for kind, number, name in events:
        port.now += number / 4
        match kind:
            case "arrive":
                port.on(Arrived(next(port.numbers), name))
            case "greet":
                port.on(Greeted(number))
            case "turn":
                started = port.on(TurnTaken()).start
                assert started is None or started not in port.ended
            case "secure":
                port.on(Secured(number, name if number % 2 else ""))
            case "prove":
                port.on(Proved(number, name))
            case "end":
                port.on(Ended(number))
            case "elapse":
                port.on(Elapsed())
            case "exhaust":
                port.on(Exhausted())
        for stage in ConnectionStage:
            held = [one for room in port.state._rooms[stage].values() for one in room]
            assert port.state.count(stage) == len(held) == len(set(held)) <= SMALL.places(stage)
            assert all(port.state.stage(one) is stage for one in held)
        assert not any(port.state.stage(one) for one in port.ended)


def test_the_largest_holder_is_named() -> None:
    """Whoever has most places in a stage, and how many; nobody where there is no connection."""
    port = Port()
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.2"):
        port.arrive(address)
    assert port.state.largest(ConnectionStage.SILENT) == ("10.0.0.2", 2)
    assert port.state.largest(ConnectionStage.PROVEN) == ("", 0)


def test_connection_counts_for_the_identity_it_proved_last() -> None:
    """One that proves another identity leaves the places of the first."""
    port = Port()
    number = port.arrive("10.0.0.1", ConnectionStage.PROVEN, "spiffe://a")
    port.on(Proved(number, "spiffe://b"))
    assert port.state.largest(ConnectionStage.PROVEN) == ("spiffe://b", 1)
