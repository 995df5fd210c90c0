"""The rotation's state machine: in whatever order, nobody shows what somebody does not trust."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshscrape.ca.rotation import RootUse, Rotation, RotationStage, parse, to_json, unconfirmed
from meshscrape.errors import InputError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
A, B = "aa" * 32, "bb" * 32
START = Rotation(RotationStage.DISTRIBUTE, old=A, new=B, started_at=NOW)


def seen(*, trusts: set[str], issuer: str, who: str = "web") -> RootUse:
    """A user that trusts these and has a certificate of that."""
    return RootUse(who, frozenset(trusts), frozenset(trusts), frozenset({issuer}))


@pytest.mark.parametrize(
    ("stage", "signing", "bundle"),
    [
        (RotationStage.DISTRIBUTE, A, (A, B)),
        (RotationStage.ISSUE, B, (B, A)),
        (RotationStage.WITHDRAW, B, (B,)),
        (RotationStage.FINISH, B, (B,)),
    ],
)
def test_each_stage_has_its_signing_root_and_trusted_roots(
    stage: RotationStage, signing: str, bundle: tuple[str, ...]
) -> None:
    """The table of the stages; who signs is always in the bundle."""
    rotation = replace(START, stage=stage)
    assert (rotation.signing, rotation.trusted) == (signing, bundle)
    assert signing in bundle


def test_every_stage_until_the_last_publishes_another_bundle() -> None:
    """Agents notice a stage by the bundle's file, so two neighbours never look alike, backwards neither."""
    idle = (A,)
    issue = START.advanced()
    withdraw = issue.advanced()
    forwards = [idle, START.trusted, issue.trusted, withdraw.trusted]
    assert all(one != two for one, two in pairwise(forwards))
    for at in (START, issue, withdraw):
        assert at.aborted().trusted != at.trusted


@pytest.mark.parametrize(
    ("stage", "trusts", "issuer", "reason"),
    [
        (RotationStage.DISTRIBUTE, {A}, A, "does not trust the new root yet"),
        (RotationStage.DISTRIBUTE, {A, B}, A, ""),
        (RotationStage.ISSUE, {A, B}, A, "still has a certificate of the old root"),
        (RotationStage.ISSUE, {A, B}, "", "still has a certificate of the old root"),
        (RotationStage.ISSUE, {A}, B, "does not trust the new root yet"),
        (RotationStage.ISSUE, {A, B}, B, ""),
        (RotationStage.WITHDRAW, {A, B}, B, "still trusts the old root"),
        (RotationStage.WITHDRAW, {B}, A, "still has a certificate of the old root"),
        (RotationStage.WITHDRAW, {B}, B, ""),
    ],
)
def test_certificates_and_roots_in_use_confirm_a_stage(
    stage: RotationStage, trusts: set[str], issuer: str, reason: str
) -> None:
    """Each stage asks for what makes the next one safe, of everybody, and names who lacks what."""
    rotation = replace(START, stage=stage)
    good = seen(trusts=set(rotation.trusted), issuer=rotation.signing, who="good")
    found = unconfirmed(rotation, rotation.trusted, [good, seen(trusts=trusts, issuer=issuer)])
    assert found == ([f"web: {reason}"] if reason else [])


def test_one_tls_context_that_lags_is_enough() -> None:
    """An Envoy trusts a root when all of its contexts do, and still trusts one as long as any does."""
    issue = START.advanced()
    half = RootUse("web", frozenset({A}), frozenset({A, B}), frozenset({A}))
    assert unconfirmed(START, START.trusted, [half]) == ["web: does not trust the new root yet"]
    two = RootUse("web", frozenset({A, B}), frozenset({A, B}), frozenset({A, B}))
    assert unconfirmed(issue, issue.trusted, [two]) == ["web: still has a certificate of the old root"]
    late = RootUse("web", frozenset({B}), frozenset({A, B}), frozenset({B}))
    withdraw = issue.advanced()
    assert unconfirmed(withdraw, withdraw.trusted, [late]) == ["web: still trusts the old root"]


def test_unreachable_root_user_confirms_nothing() -> None:
    """Neither an Envoy that does not answer, nor a CA that has not published the stage."""
    good = seen(trusts={A, B}, issuer=A)
    silent = replace(good, problem="does not answer")
    assert unconfirmed(START, START.trusted, [silent]) == ["web: does not answer"]
    for bundle in ((A,), (B, A), ()):
        assert unconfirmed(START, bundle, [good]) == ["the CA has not applied this stage yet"]


def test_abort_ends_the_rotation() -> None:
    """Aborting twice is aborting once; a rotation that is finishing has nothing to go back to."""
    back = START.advanced().aborted()
    assert back.aborting
    assert back.aborted() == back
    with pytest.raises(InputError, match="cannot be aborted any more"):
        replace(START, stage=RotationStage.FINISH).aborted()
    with pytest.raises(ValueError, match="last stage"):
        replace(START, stage=RotationStage.FINISH).advanced()


@pytest.mark.parametrize("stage", list(RotationStage))
def test_the_record_reads_as_it_was_written(stage: RotationStage) -> None:
    """Nothing is lost between two processes."""
    rotation = replace(START, stage=stage, aborting=stage is RotationStage.ISSUE)
    assert parse(to_json(rotation), "here") == rotation


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"null", b"\xff", to_json(START).replace(b'"version": 1', b'"version": 2'),
     to_json(START).replace(b"distribute", b"distributed"), to_json(START).replace(b"bb", b"aa"),
     to_json(START).replace(b"bb", b"b"), to_json(START).replace(b"false", b"0")],
)  # fmt: skip
def test_malformed_record_is_refused(text: bytes) -> None:
    """A CA must not guess with which root to sign."""
    with pytest.raises(InputError, match="here"):
        parse(text, "here")


@dataclass
class Agent:
    """What an agent shows and trusts, and the answer of the CA that it has not used yet."""

    has: tuple[str, tuple[str, ...]] | None = None
    pending: tuple[str, tuple[str, ...]] | None = None

    def seen(self) -> RootUse:
        if self.has is None:
            return RootUse("agent", problem="has no usable certificate yet")
        issuer, bundle = self.has
        return RootUse("agent", frozenset(bundle), frozenset(bundle), frozenset({issuer}))


@dataclass
class Mesh:
    """A CA with a rotation or without, and its agents."""

    root: str = A
    rotation: Rotation | None = None
    made: int = 0
    agents: list[Agent] = field(default_factory=lambda: [Agent((A, (A,))) for _ in range(3)])

    def answer(self) -> tuple[str, tuple[str, ...]]:
        if self.rotation is None:
            return self.root, (self.root,)
        return self.rotation.signing, self.rotation.trusted


class Rotations(RuleBasedStateMachine):
    """Agents that ask and follow whenever they like, and an operator who goes on, aborts and begins again."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh = Mesh()

    @precondition(lambda self: self.mesh.rotation is None)
    @rule()
    def begin(self) -> None:
        self.mesh.made += 1
        new = f"{self.mesh.made:064x}"
        self.mesh.rotation = Rotation(RotationStage.DISTRIBUTE, self.mesh.root, new, NOW)

    @precondition(lambda self: self.mesh.rotation is not None)
    @rule()
    def go_on(self) -> None:
        mesh, rotation = self.mesh, self.mesh.rotation
        assert rotation is not None
        if unconfirmed(rotation, rotation.trusted, [each.seen() for each in mesh.agents]):
            return
        mesh.rotation = rotation.advanced()
        if mesh.rotation.stage is RotationStage.FINISH:
            mesh.root, mesh.rotation = rotation.new, None

    @precondition(lambda self: self.mesh.rotation is not None)
    @rule()
    def abort(self) -> None:
        assert self.mesh.rotation is not None
        self.mesh.rotation = self.mesh.rotation.aborted()

    @precondition(lambda self: len(self.mesh.agents) < 5)
    @rule()
    def join(self) -> None:
        self.mesh.agents.append(Agent())

    @rule(which=st.integers(0, 4))
    def ask(self, which: int) -> None:
        agent = self.mesh.agents[which % len(self.mesh.agents)]
        agent.pending = agent.pending or self.mesh.answer()

    @rule(which=st.integers(0, 4))
    def use(self, which: int) -> None:
        agent = self.mesh.agents[which % len(self.mesh.agents)]
        if agent.pending is not None:
            agent.has, agent.pending = agent.pending, None

    @rule()
    def all_follow(self) -> None:
        for agent in self.mesh.agents:
            agent.has, agent.pending = self.mesh.answer(), None

    @invariant()
    def everybody_trusts_what_everybody_shows(self) -> None:
        agents = [each.has for each in self.mesh.agents if each.has is not None]
        for issuer, _ in agents:
            for _, bundle in agents:
                assert issuer in bundle


Rotations.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRotations = Rotations.TestCase
