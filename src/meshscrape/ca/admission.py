"""Decide which connections the CA keeps and which TLS handshake comes next (pure).

The CA's port is open to peers that have proved nothing yet: a workload's first request comes with a token,
which is read only after the handshake. A connection goes through stages, and each stage has its own places,
so that unproven peers cannot starve the others:

    silent     connected; its ClientHello has not arrived. Costs a descriptor.
    waiting    its ClientHello has arrived; it waits for its turn. Costs a descriptor.
    shaking    the CA has answered the ClientHello. Costs TLS state and a signature.
    unproven   TLS stands, and no identity is proved yet.
    proven     a certificate or a token has proved an identity.

A full stage does not refuse a new connection. Instead, the holder with the most places in that stage loses
its oldest connection. Before an identity is proved the holder is the peer's address, afterwards it is the
identity. A pod that shares its address with an attacker (NAT, one machine) is still served: an honest peer
needs its place only for a few round trips, and the oldest connection ends first.

Handshakes alternate between addresses that proved an identity recently and other addresses, round robin in
each group. Within one address they alternate between its oldest connection, so that none waits for ever, and
its newest, because under overload the peers have often given up the old ones. Nothing waits for long: an
honest peer that shares its address with a flood is better off with another try than with a long queue.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

# How long (seconds) an address counts as having proved an identity, and how many addresses are remembered.
KNOWN_SECONDS = 86400.0
MAX_KNOWN = 4096


class ConnectionStage(StrEnum):
    """The stage of a connection; the values are a metric's labels."""

    SILENT = "silent"
    WAITING = "waiting"
    SHAKING = "shaking"
    UNPROVEN = "unproven"
    PROVEN = "proven"


class Cause(StrEnum):
    """Why a connection ended; the values are a metric's labels."""

    EVICTED = "evicted"
    TIMEOUT = "timeout"
    NOT_TLS = "not_tls"
    HANDSHAKE = "handshake"
    PROTOCOL = "protocol"
    FLOOD = "flood"
    PEER = "peer"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Limits:
    """Places for each stage, and seconds that a connection may stay in it.

    `idle` and `proven` bound a connection with a proved identity: `idle` without any byte, `proven` in total.
    """

    silent_places: int = 2048
    waiting_places: int = 512
    shaking_places: int = 256
    unproven_places: int = 512
    proven_places: int = 1024
    silent: float = 5.0
    waiting: float = 3.0
    shaking: float = 5.0
    unproven: float = 5.0
    proven: float = 300.0
    idle: float = 60.0

    def places(self, stage: ConnectionStage) -> int:
        """Return how many connections may be in `stage`."""
        number: int = getattr(self, f"{stage.value}_places")
        return number

    def within(self, descriptors: int) -> Limits:
        """Return these limits with fewer places if the process can open only `descriptors` files."""
        total = sum(self.places(stage) for stage in ConnectionStage)
        if descriptors >= total:
            return self
        scaled = {
            f"{stage.value}_places": max(8, self.places(stage) * descriptors // total)
            for stage in ConnectionStage
        }
        return replace(self, **scaled)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A peer has connected."""

    connection: int
    address: str


@dataclass(frozen=True, slots=True)
class Greeted:
    """The whole first TLS record (the ClientHello) has arrived."""

    connection: int


@dataclass(frozen=True, slots=True)
class TurnTaken:
    """The CA has time for another handshake."""


@dataclass(frozen=True, slots=True)
class Secured:
    """The handshake is complete; `identity` is what the client certificate proves, empty without one."""

    connection: int
    identity: str


@dataclass(frozen=True, slots=True)
class Proved:
    """A request has proved `identity`."""

    connection: int
    identity: str


@dataclass(frozen=True, slots=True)
class Active:
    """The peer has sent something."""

    connection: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is gone."""

    connection: int


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The machine has no descriptor or memory for another connection."""


Event: TypeAlias = Arrived | Greeted | TurnTaken | Secured | Proved | Active | Ended | Elapsed | Exhausted


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do: end these connections, each with its cause, then begin the handshake of `start`."""

    end: tuple[tuple[int, Cause], ...] = ()
    start: int | None = None


@dataclass(slots=True)
class _Place:
    """One connection's place. It counts for `holder`; `since` is when the stage began."""

    address: str
    stage: ConnectionStage
    holder: str
    since: float
    active: float


_NOTHING = Decision()


@dataclass(slots=True)
class Admission:
    """The state of all places. Only `decide` changes it; time comes as an argument (seconds, monotonic)."""

    limits: Limits = field(default_factory=Limits)
    _places: dict[int, _Place] = field(default_factory=dict)
    _rooms: dict[ConnectionStage, dict[str, dict[int, None]]] = field(
        default_factory=lambda: {stage: {} for stage in ConnectionStage}
    )
    _counts: Counter[ConnectionStage] = field(default_factory=Counter)
    _known: OrderedDict[str, float] = field(default_factory=OrderedDict)
    _turns: int = 0

    def count(self, stage: ConnectionStage) -> int:
        """Return how many connections are in `stage`."""
        return self._counts[stage]

    def largest(self, stage: ConnectionStage) -> tuple[str, int]:
        """Return the holder with the most places in `stage` and their number; ("", 0) without connections."""
        room = self._rooms[stage]
        holder = max(room, key=lambda one: len(room[one]), default="")
        return holder, len(room.get(holder, ()))

    def knows(self, address: str, now: float) -> bool:
        """Return whether the address (in the form of `holder_of`) has proved an identity recently."""
        return now - self._known.get(address, -KNOWN_SECONDS) < KNOWN_SECONDS

    def stage(self, connection: int) -> ConnectionStage | None:
        """Return the stage of a connection, None if it has no place."""
        place = self._places.get(connection)
        return place.stage if place else None


def decide(state: Admission, event: Event, now: float) -> Decision:
    """Update `state` with `event` and return what to do."""
    match event:
        case Arrived(connection, address):
            state._places[connection] = _Place(address, ConnectionStage.SILENT, holder_of(address), now, now)
            return _settle(state, connection, ConnectionStage.SILENT, now)
        case Greeted(connection):
            return _settle(state, connection, ConnectionStage.WAITING, now)
        case TurnTaken():
            return _turn(state, now)
        case Secured(connection, identity) if identity:
            return _prove(state, connection, identity, now)
        case Secured(connection):
            return _settle(state, connection, ConnectionStage.UNPROVEN, now)
        case Proved(connection, identity):
            return _prove(state, connection, identity, now)
        case Active(connection):
            if place := state._places.get(connection):
                place.active = now
        case Ended(connection):
            _leave(state, connection)
            state._places.pop(connection, None)
        case Elapsed():
            return _expire(state, now)
        case Exhausted():
            return _make_room(state)
    return _NOTHING


def holder_of(address: str) -> str:
    """Return the unit that counts as one address: an IPv4 address, or an IPv6 host's /64 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def _leave(state: Admission, connection: int) -> None:
    place = state._places.get(connection)
    if place is None:
        return
    room = state._rooms[place.stage]
    held = room.get(place.holder)
    if held is not None and connection in held:
        del held[connection]
        state._counts[place.stage] -= 1
        if not held:
            del room[place.holder]


def _settle(
    state: Admission, connection: int, stage: ConnectionStage, now: float, holder: str = ""
) -> Decision:
    """Give the connection a place in `stage`; if it is full, end the oldest of its largest holder."""
    place = state._places.get(connection)
    if place is None:
        return _NOTHING
    _leave(state, connection)
    place.stage, place.since, place.active = stage, now, now
    place.holder = holder or place.holder
    room = state._rooms[stage]
    room.setdefault(place.holder, {})[connection] = None
    state._counts[stage] += 1
    if state.count(stage) <= state.limits.places(stage):
        return _NOTHING
    return Decision(end=((_oldest_of_largest(state, stage), Cause.EVICTED),))


def _oldest_of_largest(state: Admission, stage: ConnectionStage) -> int:
    holder, _ = state.largest(stage)
    held = state._rooms[stage][holder]
    if stage is ConnectionStage.PROVEN:
        # Proven connections live long and are reused, so end the one that has been idle for longest.
        return min(held, key=lambda one: state._places[one].active)
    return next(iter(held))


def _prove(state: Admission, connection: int, identity: str, now: float) -> Decision:
    place = state._places.get(connection)
    if place is None:
        return _NOTHING
    address = holder_of(place.address)
    state._known[address] = now
    state._known.move_to_end(address)
    while len(state._known) > MAX_KNOWN:
        state._known.popitem(last=False)
    # A second proof must not extend the connection's time.
    since = place.since if place.stage is ConnectionStage.PROVEN else now
    decision = _settle(state, connection, ConnectionStage.PROVEN, now, identity)
    place.since = since
    return decision


def _turn(state: Admission, now: float) -> Decision:
    room = state._rooms[ConnectionStage.WAITING]
    if not room:
        return _NOTHING
    known = next((one for one in room if state.knows(one, now)), None)
    other = next((one for one in room if not state.knows(one, now)), None)
    state._turns += 1
    holder = (known or other) if state._turns % 2 else (other or known)
    if holder is None:
        return _NOTHING
    held = room[holder]
    connection = next(iter(held)) if state._turns // 2 % 2 else next(reversed(held))
    # Move the address to the end of the round: dictionaries keep their order.
    room[holder] = room.pop(holder)
    decision = _settle(state, connection, ConnectionStage.SHAKING, now)
    return Decision(end=decision.end, start=connection)


def _expire(state: Admission, now: float) -> Decision:
    return Decision(
        end=tuple(
            (connection, Cause.TIMEOUT)
            for connection, place in state._places.items()
            if now - place.since >= getattr(state.limits, place.stage.value)
            or (place.stage is ConnectionStage.PROVEN and now - place.active >= state.limits.idle)
        )
    )


def _make_room(state: Admission) -> Decision:
    for stage in ConnectionStage:
        if stage is not ConnectionStage.PROVEN and state._rooms[stage]:
            return Decision(end=((_oldest_of_largest(state, stage), Cause.EVICTED),))
    return _NOTHING
